"""The names that LoRA files give to the Linears of FLUX.3's transformer, as one dictionary."""

from __future__ import annotations

from functools import cache

from fluxserve.models.flux3.names import SWAPPED, linear_parts
from fluxserve.models.flux3.sizes import TINY, Flux3Params
from fluxserve.models.flux3.transformer import Flux3Transformer
from fluxserve.models.lora_target import FusedNames, LoraTarget, linears, numbers_apart
from fluxserve.models.parts.shapes import shapes_of


def lora_targets(params: Flux3Params) -> dict[str, LoraTarget]:
    """Every name that a LoRA file may give to a module of this network."""
    parts = linear_parts(params.depth, params.depth_single_blocks)
    own = linears(shapes_of(lambda: Flux3Transformer(params)))
    return dict(FusedNames("transformer", own, parts, params.hidden_size, SWAPPED).targets())


def names_lora(module: str) -> bool:
    """Whether it is such a name, whatever the sizes."""
    return numbers_apart(module) in _spellings()


@cache
def _spellings() -> frozenset[str]:
    return frozenset(map(numbers_apart, lora_targets(TINY.transformer)))
