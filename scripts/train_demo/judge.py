"""Names the thing a picture shows, among all that the demo knows: the judge of scripts/eval_demo.

A small convolutional network, trained on the references alone, laid on random backgrounds, moved, scaled, blurred and
dulled. It never sees a generated picture.
"""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from scripts.train_demo import checkpoint, scenes
from scripts.train_demo.autoencoder import schedule, to_pixels
from scripts.train_demo.muon import Muon
from scripts.train_demo.precision import mixed
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

SIDE = 64
BATCH = 64
WIDTHS = (32, 64, 128, 256)
FEATURES = 384


class Residual(nn.Module):
    """Halves the sides, then one residual block."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return x + self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))  # type: ignore[no-any-return]


class Judge(nn.Module):
    def __init__(self, concepts: int) -> None:
        super().__init__()
        widths = (3, *WIDTHS)
        self.body = nn.Sequential(*(Residual(a, b) for a, b in zip(widths, WIDTHS, strict=False)))
        self.features = nn.Linear(WIDTHS[-1] * (SIDE // 16) ** 2, FEATURES)
        self.names = nn.Linear(FEATURES, concepts)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels: (B, 3, n, n) in [-1, 1], any n. Returns logits (B, concepts)."""
        small = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        features = self.features(F.relu(self.body(small)).flatten(1))
        return self.names(F.relu(F.layer_norm(features, (FEATURES,))))  # type: ignore[no-any-return]


def augmented(pictures: NDArray[np.uint8], chosen: list[int], rng: Random) -> Tensor:
    """(B, 3, 128, 128): each thing once, on any background, moved, scaled, and some of them blurred or noisy."""
    painted = []
    for concept in chosen:
        colour = rng.choice([None, None, *scenes.COLOURS])
        canvas = np.empty((128, 128, 3), np.uint8)
        canvas[:] = scenes.background(colour, rng)
        x, y, side = 64 + rng.uniform(-9, 9), 64 + rng.uniform(-9, 9), 128 * rng.uniform(0.7, 1.0)
        scenes.stamp(canvas, pictures[concept], x, y, side)
        painted.append(canvas)
    pixels = to_pixels(painted)
    for i in range(len(pixels)):
        if rng.random() < 0.4:
            factor = rng.choice([0.35, 0.5, 0.7])
            small = F.interpolate(pixels[i : i + 1], scale_factor=factor, mode="bilinear", antialias=True)
            pixels[i] = F.interpolate(small, (128, 128), mode="bilinear")[0]
        if rng.random() < 0.3:
            pixels[i] = pixels[i] * rng.uniform(0.85, 1.1) + rng.uniform(-0.08, 0.08)
    return (pixels + 0.05 * rng.random() * torch.randn_like(pixels)).clamp(-1, 1)


def train(state: Path, pictures: NDArray[np.uint8], steps: int) -> Judge:
    """Goes on from state/judge.pt to `steps`."""
    torch.manual_seed(4)
    judge, step, path = Judge(len(pictures)).to(memory_format=torch.channels_last), 0, state / "judge.pt"
    matrices = [p for n, p in judge.named_parameters() if p.ndim > 1 and "names" not in n and "body.0.down" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in judge.parameters() if id(p) not in chosen]
    optimizer = Muon(matrices, others, lr=0.02, adam_lr=2e-3, decay=0.02)
    if (kept := checkpoint.load(path)) is not None:
        judge.load_state_dict(kept["judge"])
        optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]
    if step >= steps:
        return judge.eval()

    def write() -> None:
        checkpoint.save(path, {"judge": judge.state_dict(), "optimizer": optimizer.state_dict(), "step": step})

    draws = [Random(1000 * step + i) for i in range(THREADS)]

    def job(thread: int) -> Tensor:
        wanted = [draws[thread].randrange(len(pictures)) for _ in range(BATCH)]
        pixels = augmented(pictures, wanted, draws[thread])
        with mixed(torch.device("cpu")):
            logits = judge(pixels.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), torch.tensor(wanted), label_smoothing=0.02)

    parameters = [*matrices, *others]
    keeper = checkpoint.Keeper(write)
    with Workers(parameters, job, THREADS) as workers:
        while step < steps:
            loss = workers.gradients(parameters, 2)
            for group in optimizer.param_groups:
                group["scale"] = schedule(step, steps)
            optimizer.step()
            step += 1
            if step % 50 == 0:
                log.info("judge %d/%d loss %.3f", step, steps, loss)
            keeper.after_step()
    write()
    return judge.eval()


@torch.no_grad()
def own_share(judge: Judge, pictures: NDArray[np.uint8]) -> float:
    """Of augmentations it was not trained on, two a concept, the share the judge names rightly."""
    rng, right = Random(-1), 0
    torch.manual_seed(-1)
    everything = list(range(len(pictures))) * 2
    for start in range(0, len(everything), BATCH):
        wanted = everything[start : start + BATCH]
        right += int((judge(augmented(pictures, wanted, rng)).argmax(-1) == torch.tensor(wanted)).sum())
    return right / len(everything)
