"""Names and shapes of the transformer's and the autoencoder's tensors, in BFL's names. Reads nothing.

The networks themselves tell them, built on the meta device.
"""

from __future__ import annotations

import torch

from fluxserve.models.flux1.autoencoder import Autoencoder
from fluxserve.models.flux1.sizes import FluxParams
from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.models.parts.autoencoder import AutoencoderParams


def transformer_shapes(params: FluxParams) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in FluxTransformer(params).state_dict().items()}


def autoencoder_shapes(params: AutoencoderParams) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in Autoencoder(params).state_dict().items()}
