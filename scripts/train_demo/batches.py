"""Draws what the transformer learns from: painted scenes, their captions as tokens, their codes.

They are painted and put into words while it trains, so no two are the same. For a GPU, in processes of their own, so
that it never waits for a picture. Knows nothing of networks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from scripts.train_demo import captions, scenes
from scripts.train_demo.codes import Codes
from scripts.train_demo.encoders import TextEncoders
from scripts.train_demo.latents import PatchBasis
from scripts.train_demo.lessons import Lessons

SQUARE_SHARE = 0.8
"""Share of batches on the square canvas; the others take one of the wider or taller ones."""

COARSE_CANVASES = ((64, 64), (80, 48), (48, 80))

NATIVE_AREA = 128 * 128

PARAPHRASE_SHARE = 0.12
"""Share of single things that a dictionary text describes in place of a caption."""


class Batch(NamedTuple):
    """pictures: (B, height, width, 3) bytes, all on one canvas. clip_ids, t5_ids: (B, T). codes: (B, POOLED_WIDTH)."""

    pictures: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    codes: Tensor

    @property
    def spacing(self) -> float:
        """How far apart its tokens are, in units of those at native size."""
        return 2.0 if self.pictures[0, ..., 0].numel() < NATIVE_AREA / 2 else 1.0

    @property
    def square(self) -> bool:
        return self.pictures.shape[1] == self.pictures.shape[2]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True)
class Material:
    """What scenes are painted from and put into words with."""

    pictures: NDArray[np.uint8]
    names: captions.Names
    lessons: Lessons
    basis: PatchBasis
    codes: Codes


@dataclass(frozen=True)
class Mix:
    """size: pictures a batch, twice as many in coarse ones. share_single: of pictures; share_coarse: of batches."""

    size: int
    share_single: float
    share_coarse: float


class Captioned:
    """Draws batches of scenes. Of `encoders` only the tokenizers are used."""

    def __init__(self, material: Material, encoders: TextEncoders, mix: Mix, seed: int) -> None:
        self._material, self._encoders, self._mix = material, encoders, mix
        self._paraphrases = material.lessons.paraphrases()
        self._rng = Random(seed)

    def draw(self) -> Batch:
        material, mix, rng = self._material, self._mix, self._rng
        coarse = rng.random() < mix.share_coarse
        canvases, size = (COARSE_CANVASES, 2 * mix.size) if coarse else (scenes.CANVASES, mix.size)
        width, height = canvases[0] if rng.random() < SQUARE_SHARE else rng.choice(canvases[1:])
        drawn = [scenes.random_scene(rng, len(material.pictures), mix.share_single) for _ in range(size)]
        painted = [scenes.paint(scene, material.pictures, width, height, rng) for scene in drawn]
        texts = [self._caption(scene) for scene in drawn]
        return Batch(
            torch.from_numpy(np.stack(painted)),
            self._encoders.clip_ids(texts),
            self._encoders.t5_ids(texts),
            material.codes(drawn),
        )

    def _caption(self, scene: scenes.Scene) -> str:
        plain = scene.layout == "single" and scene.size == "normal" and scene.colour is None
        described = self._paraphrases.get(scene.concepts[0], []) if plain else []
        if described and self._rng.random() < 2 * PARAPHRASE_SHARE:
            return self._rng.choice(described)
        return captions.caption(scene, self._material.names, self._rng)


class _Endless(IterableDataset[Batch]):
    """Batches without end, in every process those of its own source."""

    def __init__(self, source: Callable[[int], Captioned]) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        source = self._source(worker.id if worker else 0)
        while True:
            yield source.draw()


def from_processes(source: Callable[[int], Captioned]) -> Iterator[Batch]:
    """Batches in pinned memory, from one process a core but one. source: makes the one of a process by its number."""
    processes = max(1, (os.cpu_count() or 1) - 1)
    loader = DataLoader(_Endless(source), batch_size=None, num_workers=processes, prefetch_factor=3, pin_memory=True)
    return iter(loader)
