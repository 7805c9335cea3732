"""Decoding a picture in overlapping tiles, when its feature maps do not fit whole. Knows nothing of memory.

Each tile has its own group-norm statistics, so a tiled picture differs a little from a whole one; the overlaps are
blended linearly to hide the seams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fluxserve.placement.plan import TILE_SIDE

SCALE = 8
"""Pixels a latent."""
TILE = TILE_SIDE // SCALE
OVERLAP = 16
"""Latents that neighbouring tiles share."""


def decode_tiled(decode: Callable[[Tensor], Tensor], latents: Tensor) -> Tensor:
    """latents: (1, C, h, w). decode: (1, C, h', w') to (1, 3, 8 h', 8 w'). Returns (1, 3, 8 h, 8 w) float32."""
    _, _, height, width = latents.shape
    image = torch.zeros(1, 3, height * SCALE, width * SCALE, device=latents.device)
    weight = torch.zeros(1, 1, height * SCALE, width * SCALE, device=latents.device)
    for rows in _spans(height):
        for columns in _spans(width):
            tile = decode(latents[:, :, rows, columns]).float()
            ramp = _ramp(tile.shape[2])[:, None] * _ramp(tile.shape[3])
            place = (..., _scaled(rows), _scaled(columns))
            image[place] += tile * ramp.to(tile.device)
            weight[place] += ramp.to(tile.device)
    return image / weight


def _spans(side: int) -> list[slice]:
    """Tiles along one side, in latents; the last one ends at the edge."""
    if side <= TILE:
        return [slice(0, side)]
    starts = [*range(0, side - TILE, TILE - OVERLAP), side - TILE]
    return [slice(start, start + TILE) for start in starts]


def _scaled(span: slice) -> slice:
    return slice(span.start * SCALE, span.stop * SCALE)


def _ramp(side: int) -> Tensor:
    """(side,) weights that rise and fall over the overlap, and never reach zero."""
    edge = (torch.arange(side) + 1) / (OVERLAP * SCALE)
    return torch.minimum(edge, edge.flip(0)).clamp(max=1.0)
