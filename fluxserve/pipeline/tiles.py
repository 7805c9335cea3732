"""Decoding a picture in overlapping tiles, when its feature maps do not fit whole.

Each tile has its own group-norm statistics, so a tiled picture differs a little from a whole one; the overlaps are
blended linearly to hide the seams.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fluxserve.placement.plan import TILE_SIDE

OVERLAP = 128
"""Pixels that neighbouring tiles share."""


def decode_tiled(decode: Callable[[Tensor], Tensor], latents: Tensor, scale: int) -> Tensor:
    """latents: (1, C, h, w). scale: pixels a side of a latent. decode: (1, C, h', w') to (1, 3, scale h', scale w').

    Returns (1, 3, scale h, scale w) float32.
    """
    _, _, height, width = latents.shape
    image = torch.zeros(1, 3, height * scale, width * scale, device=latents.device)
    weight = torch.zeros(1, 1, height * scale, width * scale, device=latents.device)
    for rows in _spans(height, scale):
        for columns in _spans(width, scale):
            tile = decode(latents[:, :, rows, columns]).float()
            ramp = _ramp(tile.shape[2])[:, None] * _ramp(tile.shape[3])
            place = (..., _scaled(rows, scale), _scaled(columns, scale))
            image[place] += tile * ramp.to(tile.device)
            weight[place] += ramp.to(tile.device)
    return image / weight


def _spans(side: int, scale: int) -> list[slice]:
    """Tiles along one side, in latents; the last one ends at the edge."""
    tile, stride = TILE_SIDE // scale, (TILE_SIDE - OVERLAP) // scale
    if side <= tile:
        return [slice(0, side)]
    starts = [*range(0, side - tile, stride), side - tile]
    return [slice(start, start + tile) for start in starts]


def _scaled(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


def _ramp(side: int) -> Tensor:
    """(side,) weights that rise and fall over the overlap, and never reach zero."""
    edge = (torch.arange(side) + 1) / OVERLAP
    return torch.minimum(edge, edge.flip(0)).clamp(max=1.0)
