"""The latent space of the demo: a linear map of 8 x 8 pixel patches to 16 numbers.

The principal components of the patches of painted scenes. So latents cost one matrix product, the transformer can train
before the autoencoder has, and the autoencoder can be made better later without touching the transformer: its encoder
learns to give these latents, its decoder to paint from them (better than the linear inverse, since it sees neighbours).
Component k is divided by the square root of its deviation: half way between leaving it as it is (the four sampling
steps would leave the finest components noisy) and whitening it (the transformer would spend itself on them).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PATCH = 8
CHANNELS = 16


@dataclass(frozen=True)
class PatchBasis:
    """mean: (192,). analysis: (16, 192), pixels to latents. synthesis: (192, 16), the least-squares way back."""

    mean: Tensor
    analysis: Tensor
    synthesis: Tensor

    def encode(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, height, width) in [-1, 1]. Returns (B, 16, h, w), about zero mean and unit variance."""
        return torch.einsum("kp,byxp->bkyx", self.analysis, patches(pixels) - self.mean)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, 16, h, w) to (B, 3, height, width), blocky: for looking on while there is no decoder."""
        flat = torch.einsum("pk,bkyx->byxp", self.synthesis, latents) + self.mean
        grid = flat.unflatten(-1, (3, PATCH, PATCH))  # (B, h, w, 3, dy, dx)
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def to(self, device: torch.device) -> PatchBasis:
        return PatchBasis(*(tensor.to(device) for tensor in (self.mean, self.analysis, self.synthesis)))

    def save(self, path: Path) -> None:
        save_file({"mean": self.mean, "analysis": self.analysis, "synthesis": self.synthesis}, path)

    @classmethod
    def load(cls, path: Path) -> PatchBasis:
        return cls(**load_file(path))


def patches(pixels: Tensor) -> Tensor:
    """(B, 3, height, width) to (B, h, w, 192), channel slowest."""
    grid = pixels.unflatten(-1, (-1, PATCH)).unflatten(-3, (-1, PATCH))  # (B, 3, h, dy, w, dx)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3)


def fit(pixels: Tensor) -> PatchBasis:
    """The basis for the patches of these pictures, (B, 3, height, width) in [-1, 1]."""
    flat = patches(pixels).flatten(0, 2).double()
    mean = flat.mean(0)
    variance, vectors = torch.linalg.eigh((flat - mean).T @ (flat - mean) / len(flat))
    variance, vectors = variance.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
    scale = variance**-0.25  # component / sqrt(deviation)
    scale = scale / (variance * scale**2).mean().sqrt()  # unit variance over all channels
    return PatchBasis(mean.float(), (vectors * scale).T.float().contiguous(), (vectors / scale).float().contiguous())


def fit_to(pixels: Tensor, latents: Tensor) -> PatchBasis:
    """The linear map nearest to a trained encoder's. latents: (B, 16, h, w), what it gives for these pixels."""
    flat, wanted = patches(pixels).flatten(0, 2).double(), latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = flat.mean(0) - wanted.mean(0) @ torch.linalg.lstsq(wanted - wanted.mean(0), flat - flat.mean(0)).solution
    analysis = torch.linalg.lstsq(flat - mean, wanted).solution.T
    synthesis = torch.linalg.lstsq(wanted, flat - mean).solution.T
    return PatchBasis(mean.float(), analysis.float().contiguous(), synthesis.float().contiguous())
