"""Names and shapes of the transformer's tensors, in BFL's names."""

from __future__ import annotations

from fluxserve.models.flux1.sizes import FluxParams
from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.models.parts.shapes import shapes_of
from fluxserve.tensors.reader import Shapes


def transformer_shapes(params: FluxParams) -> Shapes:
    return shapes_of(lambda: FluxTransformer(params))
