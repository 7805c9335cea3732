"""The names that LoRA files give to the Linears of Z-Image's transformer, as one dictionary."""

from __future__ import annotations

from functools import cache

from fluxserve.models.lora_target import FusedNames, LoraTarget, linears, numbers_apart
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.models.zimage.names import layer_parts
from fluxserve.models.zimage.sizes import TINY, ZImageParams
from fluxserve.models.zimage.transformer import ZImageTransformer

_ONETRAINER = "lora_transformer_"


def lora_targets(params: ZImageParams) -> dict[str, LoraTarget]:
    """Every name that a LoRA file may give to a module of this network; musubi's have kohya's prefix."""
    parts = layer_parts(params.depth, params.refiner_depth)
    own = linears(shapes_of(lambda: ZImageTransformer(params)))
    named = dict(FusedNames("transformer", own, parts, params.hidden_size).targets())
    musubi = {
        f"lora_unet_{name.removeprefix(_ONETRAINER)}": named[name] for name in named if name.startswith(_ONETRAINER)
    }
    return musubi | named


def names_lora(module: str) -> bool:
    """Whether it is such a name, whatever the sizes."""
    return numbers_apart(module) in _spellings()


@cache
def _spellings() -> frozenset[str]:
    return frozenset(map(numbers_apart, lora_targets(TINY.transformer)))
