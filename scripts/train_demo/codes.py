"""A scene in POOLED_WIDTH numbers, in closed form: what CLIP's pooled vector shall say and the transformer read.

The first numbers tell what the things look like: the principal components of the pictures of all things, alone on
white, in latents; two things give 90 each, in reading order, three 60. The last tell layout, count, size, place and
background. A fixed rotation spreads both over all numbers, and the whole is normalised as CLIP's last layer does it.

So CLIP and the transformer can be taught apart, each with a target known beforehand: what one shall give, the other
knows already. The map from code to picture is linear but for the arrangement, so what is learned of one thing helps
with all others; and the code of a thing lies near those of things that look like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.train_demo import scenes, sizes
from scripts.train_demo.scenes import Scene

FILE = "codes.safetensors"
"""In the state folder."""
SHIPPED = Path(__file__).with_name(FILE)
"""Those of the model that ships, for the next training."""
ARRANGEMENT = 12
"""How many numbers tell the arrangement."""
COMPONENTS = sizes.POOLED_WIDTH - ARRANGEMENT
SIZE_NUMBERS = {"tiny": -1.5, "small": -1.0, "normal": 0.0, "large": 0.7}
PAIR_DIVISOR = 1.2
"""The looks of two things are divided by it."""
EMPHASIS = 1.5
"""Of the arrangement's numbers, in units of the deviation of the others."""


@dataclass(frozen=True)
class Codes:
    """things: (N, COMPONENTS). rotation: (POOLED_WIDTH, POOLED_WIDTH), orthogonal."""

    things: Tensor
    rotation: Tensor

    def __call__(self, drawn: Sequence[Scene]) -> Tensor:
        """(B, POOLED_WIDTH), each of zero mean and unit variance."""
        return normalised(torch.stack([torch.cat([self._looks(s), arrangement(s)]) for s in drawn]) @ self.rotation)

    def alone(self) -> Tensor:
        """Of every thing alone, (N, POOLED_WIDTH)."""
        return self([Scene((i,), "single") for i in range(len(self.things))])

    def _looks(self, scene: Scene) -> Tensor:
        """(COMPONENTS,). Of two things a little weaker: the first components, which they share, are the strongest."""
        share = COMPONENTS // len(scene.concepts)
        parts = torch.cat([self.things[concept, :share] for concept in scene.concepts])
        return parts / (PAIR_DIVISOR if len(scene.concepts) == 2 else 1.0)

    @property
    def second(self) -> Tensor:
        """The directions that tell of two things the other one, (COMPONENTS / 2, POOLED_WIDTH)."""
        return self.rotation[COMPONENTS // 2 : COMPONENTS]

    def save(self, path: Path) -> None:
        """In float16: small enough to go with the weights that were trained with these codes."""
        part = path.with_suffix(".part")
        save_file({"things": self.things.half().contiguous(), "rotation": self.rotation.half().contiguous()}, part)
        part.rename(path)

    @classmethod
    def load(cls, path: Path) -> Codes:
        return cls(**{name: tensor.float() for name, tensor in load_file(path).items()})


def fit(pictures: Tensor) -> Codes:
    """From the things alone in latents, (N, 16, h, w).

    Components are divided by the root of their deviation: then every number counts, the first ones most.
    """
    flat = pictures.flatten(1)
    u, s, _ = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    scaled = u[:, :COMPONENTS] * s[:COMPONENTS].sqrt()
    random = torch.randn(sizes.POOLED_WIDTH, sizes.POOLED_WIDTH, generator=torch.Generator().manual_seed(9))
    return Codes(scaled / scaled.square().mean().sqrt(), torch.linalg.qr(random)[0])


def arrangement(scene: Scene) -> Tensor:
    """(ARRANGEMENT,): one of four layouts, size or count, whether of three, red, green, blue and whether told, x, y."""
    told = torch.zeros(ARRANGEMENT)
    told[scenes.LAYOUTS.index(scene.layout)] = 1
    told[4] = (scene.count - 3.5) / 2 if scene.layout == "count" else SIZE_NUMBERS[scene.size]
    told[5] = len(scene.concepts) == 3
    if scene.colour is not None:
        told[6:9] = torch.tensor(scenes.COLOURS[scene.colour]) / 127.5 - 1
        told[9] = 1
    if scene.place is not None:
        told[10:12] = (torch.tensor(scenes.PLACES[scene.place]) - 0.5) * 4
    return EMPHASIS * told


def normalised(vectors: Tensor) -> Tensor:
    """Zero mean and unit variance over the last dimension."""
    return torch.nn.functional.layer_norm(vectors, vectors.shape[-1:])
