"""A quick look at how far the transformer is, not the evaluation: nearest references in latents instead of a judge."""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from fluxserve.models.flux1.transformer import FluxTransformer
from scripts.train_demo import references, scenes
from scripts.train_demo.autoencoder import to_pixels
from scripts.train_demo.batches import Material
from scripts.train_demo.encoders import TextEncoders
from scripts.train_demo.flow import sample

COUNT, STEPS = 64, 4
"""Pictures of each kind, and the denoise steps for one."""


class Examiner:
    """coarse: draws at half the size, and single things alone."""

    def __init__(self, material: Material, coarse: bool) -> None:
        self._names, self._coarse = [concept.label for concept in material.names.concepts], coarse
        self._known = references.latents(material.pictures, material.basis, 64 if coarse else 128)
        self._halves = _twice(material).chunk(2, dim=-1)

    def look(self, model: FluxTransformer, encoders: TextEncoders) -> str:
        """The shares that are right, in words."""
        single = f"{self.single(model, encoders):.3f} of labels right"
        return single if self._coarse else f"{single}, {self.pairs(model, encoders):.3f} of pairs"

    def single(self, model: FluxTransformer, encoders: TextEncoders) -> float:
        """Of some labels, how many pictures lie nearest to their own reference."""
        chosen = Random(5).sample(range(len(self._names)), COUNT)
        drawn = sample(model, encoders, [self._names[i] for i in chosen], STEPS, self._coarse)
        return float((_nearest(drawn, self._known) == torch.tensor(chosen)).float().mean())

    def pairs(self, model: FluxTransformer, encoders: TextEncoders) -> float:
        """Of some `A left of B`, of how many both halves lie nearest to what belongs there."""
        rng = Random(7)
        chosen = [rng.sample(range(len(self._names)), 2) for _ in range(COUNT)]
        drawn = sample(model, encoders, [f"{self._names[a]} left of {self._names[b]}" for a, b in chosen], STEPS)
        found = [_nearest(half, known) for half, known in zip(drawn.chunk(2, dim=-1), self._halves, strict=True)]
        return float((torch.stack(found, -1) == torch.tensor(chosen)).all(-1).float().mean())


def _nearest(drawn: Tensor, known: Tensor) -> Tensor:
    return torch.cdist(drawn.flatten(1), known.flatten(1)).argmin(-1)


def _twice(material: Material) -> Tensor:
    """Every thing beside itself, in latents, (N, 16, h, w)."""
    rng = Random(6)
    drawn = [scenes.Scene((i, i), "row") for i in range(len(material.pictures))]
    painted = (scenes.paint(scene, material.pictures, 128, 128, rng) for scene in drawn)
    return torch.cat([material.basis.encode(to_pixels([pixels])) for pixels in painted])
