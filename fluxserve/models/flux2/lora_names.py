"""The names that LoRA files give to the Linears of FLUX.2's transformer, as one dictionary."""

from __future__ import annotations

from fluxserve.models.flux2.names import SWAPPED, linear_parts
from fluxserve.models.flux2.sizes import Flux2Params
from fluxserve.models.lora_target import FusedNames, LoraTarget, linears
from fluxserve.tensors.reader import Shapes


def lora_targets(params: Flux2Params, shapes: Shapes) -> dict[str, LoraTarget]:
    """shapes: of the transformer's tensors."""
    parts = linear_parts(params.depth, params.depth_single_blocks)
    return dict(FusedNames("transformer", linears(shapes), parts, params.hidden_size, SWAPPED).targets())
