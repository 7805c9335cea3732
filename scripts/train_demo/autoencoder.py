"""Trains the autoencoder: its encoder to give the latents of latents.py, its decoder to paint from them.

The two halves meet only in the latents, so they train side by side, each on its own loss. Half of the decoder's latents
carry a little noise, as those that come from the transformer will.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxserve.models.companions.flux1_autoencoder import Autoencoder
from scripts.train_demo import checkpoint, scenes, sizes
from scripts.train_demo.latents import PatchBasis, fit
from scripts.train_demo.muon import Muon
from scripts.train_demo.precision import mixed
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

CROP = 64
BATCH = 32
WHOLE_BATCH = 8
LATENT_NOISE = 0.15


def to_pixels(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """Equal-sized (height, width, 3) to (B, 3, height, width) in [-1, 1]."""
    return scaled(torch.from_numpy(np.stack(pictures)))


def scaled(pictures: Tensor) -> Tensor:
    """(B, height, width, 3) bytes to (B, 3, height, width) in [-1, 1]."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def fit_basis(pictures: NDArray[np.uint8], path: Path) -> PatchBasis:
    """The latent space, from 1,500 painted scenes; made once."""
    if not path.exists():
        fit(painted(pictures, 1500)).save(path)
    return PatchBasis.load(path)


def painted(pictures: NDArray[np.uint8], count: int) -> Tensor:
    """(count, 3, 128, 128): the same scenes every time."""
    rng = Random(0)
    return to_pixels([_paint(pictures, rng, 128) for _ in range(count)])


def _paint(pictures: NDArray[np.uint8], rng: Random, side: int) -> NDArray[np.uint8]:
    return scenes.paint(scenes.random_scene(rng, len(pictures), 0.7), pictures, side, side, rng)


def crops(pictures: NDArray[np.uint8], seed: int) -> Iterator[Tensor]:
    """Batches of random square cut-outs, on the latents' grid, that show something: (B, 3, CROP, CROP)."""
    rng = Random(seed)
    while True:
        cut: list[NDArray[np.uint8]] = []
        while len(cut) < BATCH:
            picture = _paint(pictures, rng, 128)
            x, y = rng.randrange(0, 65, 8), rng.randrange(0, 65, 8)
            part = picture[y : y + CROP, x : x + CROP]
            if part.std(axis=(0, 1)).sum() > 6 or rng.random() < 0.05:
                cut.append(part)
        yield to_pixels(cut)


def whole(pictures: NDArray[np.uint8], seed: int) -> Iterator[Tensor]:
    rng = Random(seed)
    while True:
        yield to_pixels([_paint(pictures, rng, 128) for _ in range(WHOLE_BATCH)])


def decoder_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the pixels and of their differences at three scales (edges count as they do to the eye)."""
    loss = F.l1_loss(output, target) + 0.5 * F.mse_loss(output, target)
    for _ in range(3):
        loss = loss + 0.5 * (_edges(output, target, -1) + _edges(output, target, -2))
        output, target = F.avg_pool2d(output, 2), F.avg_pool2d(target, 2)
    return loss


def _edges(output: Tensor, target: Tensor, dim: int) -> Tensor:
    return F.l1_loss(output.diff(dim=dim), target.diff(dim=dim))


def losses(model: Autoencoder, basis: PatchBasis, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The encoder's and the decoder's."""
    latents = basis.encode(pixels)
    level = torch.rand(len(latents), 1, 1, 1) * LATENT_NOISE * (torch.arange(len(latents)) % 2)[:, None, None, None]
    noisy = latents + level * torch.randn_like(latents)
    with mixed(torch.device("cpu")):
        encoded = model.encode(pixels.contiguous(memory_format=torch.channels_last))
        output = model.decode(noisy.contiguous(memory_format=torch.channels_last))
    return F.mse_loss(encoded.float(), latents), decoder_loss(output.float(), pixels)


def make_optimizer(model: nn.Module, lr: float, adam_lr: float) -> Muon:
    inner = [p for n, p in model.named_parameters() if p.ndim > 1 and "conv_in" not in n and "conv_out" not in n]
    chosen = {id(p) for p in inner}
    return Muon(inner, [p for p in model.parameters() if id(p) not in chosen], lr=lr, adam_lr=adam_lr, decay=0.0)


def schedule(step: int, steps: int, warmup: int = 50) -> float:
    """Rises over `warmup` steps, stays, falls linearly to 2 % over the last 40 %."""
    return min(1.0, (step + 1) / warmup, 0.02 + 0.98 * (steps - step) / (0.4 * steps))


def train(state: Path, pictures: NDArray[np.uint8], steps: int, whole_steps: int) -> None:
    """`steps` batches of crops, then `whole_steps` of whole pictures (group norms see what they will see in use)."""
    torch.manual_seed(1)
    basis = fit_basis(pictures, state / "latents.safetensors")
    model = Autoencoder(sizes.AUTOENCODER).to(memory_format=torch.channels_last)
    nn.init.zeros_(model.decoder.conv_out.weight)
    optimizer = make_optimizer(model, lr=0.02, adam_lr=2e-3)
    step, path = 0, state / "autoencoder.pt"
    if (kept := checkpoint.load(path)) is not None:
        model.load_state_dict(kept["model"])
        if "optimizer" in kept:
            optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]

    def write() -> None:
        checkpoint.save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step})

    keeper, total = checkpoint.Keeper(write), steps + whole_steps
    batches = [(crops(pictures, step + i), whole(pictures, step + i)) for i in range(THREADS)]

    def job(thread: int) -> Tensor:
        pixels = next(batches[thread][0 if step < steps else 1])
        return sum(losses(model, basis, pixels), torch.zeros(()))

    parameters = list(model.parameters())
    with Workers(parameters, job, THREADS) as workers:
        while step < total:
            loss = workers.gradients(parameters, 1)
            for group in optimizer.param_groups:
                group["scale"] = schedule(step, total)
            optimizer.step()
            step += 1
            if step % 50 == 0:
                log.info("autoencoder %d/%d loss %.4f", step, total, loss)
            keeper.after_step()
    write()


@torch.no_grad()
def psnr(model: Autoencoder, basis: PatchBasis | None, pixels: Tensor) -> float:
    """dB, the mean over pictures, of encode and decode (with `basis`, its latents in the encoder's place)."""
    latents = basis.encode(pixels) if basis else model.encode(pixels)
    error = (model.decode(latents).clamp(-1, 1) - pixels).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / error)).mean())
