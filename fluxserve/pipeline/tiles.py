"""Decoding or encoding a picture in overlapping tiles, when its feature maps do not fit whole.

Each tile has its own group-norm statistics, so a tiled picture differs a little from a whole one; the overlaps are
blended linearly to hide the seams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
    tiles = (
        (_scaled(rows, scale), _scaled(columns, scale), decode(latents[:, :, rows, columns]))
        for rows in _spans(height, scale)
        for columns in _spans(width, scale)
    )
    return _blended(tiles, (height * scale, width * scale), OVERLAP)


def encode_tiled(encode: Callable[[Tensor], Tensor], pixels: Tensor, scale: int) -> Tensor:
    """pixels: (1, 3, scale h, scale w). encode: the way back of `decode`. Returns (1, C, h, w) float32."""
    height, width = (side // scale for side in pixels.shape[2:])
    tiles = (
        (rows, columns, encode(pixels[:, :, _scaled(rows, scale), _scaled(columns, scale)]))
        for rows in _spans(height, scale)
        for columns in _spans(width, scale)
    )
    return _blended(tiles, (height, width), OVERLAP // scale)


def _blended(tiles: Iterable[tuple[slice, slice, Tensor]], size: tuple[int, int], overlap: int) -> Tensor:
    """tiles: (rows, columns, values) of a map of this size (height, width)."""
    total, weight = torch.zeros(()), torch.zeros(())
    for rows, columns, tile in tiles:
        if total.ndim == 0:
            total, weight = (torch.zeros(1, channels, *size, device=tile.device) for channels in (tile.shape[1], 1))
        ramp = (_ramp(tile.shape[2], overlap)[:, None] * _ramp(tile.shape[3], overlap)).to(tile.device)
        total[..., rows, columns] += tile.float() * ramp
        weight[..., rows, columns] += ramp
    return total / weight


def _spans(side: int, scale: int) -> list[slice]:
    """Tiles along one side, in latents; the last one ends at the edge."""
    tile, stride = TILE_SIDE // scale, (TILE_SIDE - OVERLAP) // scale
    if side <= tile:
        return [slice(0, side)]
    starts = [*range(0, side - tile, stride), side - tile]
    return [slice(start, start + tile) for start in starts]


def _scaled(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


def _ramp(side: int, overlap: int) -> Tensor:
    """(side,) weights that rise and fall over the overlap, and never reach zero."""
    edge = (torch.arange(side) + 1) / overlap
    return torch.minimum(edge, edge.flip(0)).clamp(max=1.0)
