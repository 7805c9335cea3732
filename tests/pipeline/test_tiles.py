"""Tiled decoding: exact where the decoder is local, seamless in size, and used where memory is short."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from fluxserve.completion import complete_request
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.pipeline.tiles import decode_tiled, encode_tiled
from tests.conftest import MakeCheckpoint
from tests.models.sketches import sketch


def nearest(latents: Tensor) -> Tensor:
    """A decoder without statistics or neighbours: three channels, eight times as large."""
    return latents[:, :3].repeat_interleave(8, 2).repeat_interleave(8, 3)


@pytest.mark.parametrize(("height", "width"), [(16, 64), (64, 65), (100, 150), (128, 64)])
def test_tiles_of_a_local_decoder_make_the_whole_picture(height: int, width: int) -> None:
    latents = torch.randn(1, 16, height, width)
    tiles: list[tuple[int, int]] = []

    def decode(tile: Tensor) -> Tensor:
        tiles.append((tile.shape[2], tile.shape[3]))
        return nearest(tile)

    assert torch.allclose(decode_tiled(decode, latents, 8), nearest(latents), atol=1e-5)
    assert max(max(tile) for tile in tiles) <= 64


@pytest.mark.parametrize(("height", "width", "scale"), [(16, 64, 8), (64, 65, 8), (100, 150, 8), (40, 33, 16)])
def test_tiles_of_a_local_encoder_make_the_whole_map(height: int, width: int, scale: int) -> None:
    pixels = torch.randn(1, 3, height * scale, width * scale)
    tiles: list[tuple[int, int]] = []

    def encode(tile: Tensor) -> Tensor:
        tiles.append((tile.shape[2], tile.shape[3]))
        return torch.nn.functional.avg_pool2d(tile, scale)

    whole = torch.nn.functional.avg_pool2d(pixels, scale)
    assert torch.allclose(encode_tiled(encode, pixels, scale), whole, atol=1e-5)
    assert max(max(tile) for tile in tiles) <= 512


def test_a_plan_without_room_encodes_in_tiles(tiny_checkpoint: MakeCheckpoint) -> None:
    """Of random weights, with wild statistics: the middle of a tile is alike, no more."""
    pipeline = FluxPipeline.from_pretrained(str(tiny_checkpoint()), device="cpu", dtype="float32")
    pictures, pixels = pipeline.pictures, np.asarray(sketch(576, 64))
    whole = pictures.encode(pixels, 576, 64, lambda: None)
    small = replace(pipeline.plan.work, width=64, height=64)
    pictures.plan = replace(pipeline.plan, work=small, budget_bytes=0, tiled=True)
    assert not pictures.plan.encodes_whole(576, 64)
    tiled = pictures.encode(pixels, 576, 64, lambda: None)
    assert tiled.shape == whole.shape
    assert 0 < (tiled - whole).abs().mean() < 0.5 * whole.std()


def test_a_plan_without_room_decodes_in_tiles_and_draws_nearly_the_same(tiny_checkpoint: MakeCheckpoint) -> None:
    pipeline = FluxPipeline.from_pretrained(str(tiny_checkpoint()), device="cpu", dtype="float32")
    request = complete_request(pipeline.card, "a cat", width=576, height=64, num_inference_steps=1, seed=1)
    (sample,) = pipeline.begin(request)
    pipeline.step([sample])
    whole = pipeline.decode(sample)
    small = replace(pipeline.plan.work, width=64, height=64)
    pipeline.pictures.plan = replace(pipeline.plan, work=small, budget_bytes=0, tiled=True)
    assert not pipeline.pictures.plan.decodes_whole(576, 64)
    tiled = pipeline.decode(sample)
    assert tiled.shape == whole.shape
    difference = np.abs(tiled.astype(int) - whole.astype(int))
    assert 0 < difference.mean() < 16  # random weights have wild statistics; a trained decoder differs far less
