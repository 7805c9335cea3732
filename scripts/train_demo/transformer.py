"""Trains the transformer of fluxserve/flux on painted scenes and their captions, and T5 along with it.

The pooled vector is the scene's code (codes.py), in half of the batches what CLIP takes for it. CLIP (clip.py) comes
trained and stays; T5 (t5.py) comes trained and learns along at a lower rate: its states come to hold what is needed.

Rectified flow: x_t = (1 - t) image + t noise, and the network predicts noise - image. Latents come from the linear
basis (latents.py), so pictures are painted, put into words and encoded while it trains and no two are the same.

In a part of the pictures x_t holds the network's own first guess (its x_0 prediction at t = 1) in place of the image,
as in sampling, and it must predict the velocity that leads to the image (after Self Forcing, arXiv 2506.08009, which
rolls out whole videos). A real x_t shows what the words leave open. What learns from these alone takes noise for
knowledge when it samples: with more steps its pictures became worse, not better.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import T5EncoderModel

from fluxserve.flux import sampling
from fluxserve.flux.layers import rotary_table
from fluxserve.flux.transformer import FluxTransformer
from scripts.train_demo import captions, checkpoint, references, scenes, sizes
from scripts.train_demo.autoencoder import to_pixels
from scripts.train_demo.codes import Codes
from scripts.train_demo.encoders import TextEncoders, hidden_matrices
from scripts.train_demo.latents import PatchBasis
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

SQUARE_SHARE = 0.8
"""Share of batches on the square canvas; the others take one of the wider or taller ones."""

COARSE_CANVASES = ((64, 64), (80, 48), (48, 80))

PARAPHRASE_SHARE = 0.12
"""Share of single things that a dictionary text describes in place of a caption."""

T5_RATE = 0.2
"""T5's learning rates in units of the transformer's."""

READ_SHARE = 0.5
"""Of the batches, those that take CLIP's vectors and not the codes."""

GUESS_SHARE = 0.75
"""Of the pictures at times below 1, those that show the network's own guess."""

EARLIEST_GUESS = 0.2
"""Lowest time of these: below, almost nothing of the guess's errors would be left to mend."""

AVERAGING = 0.995
"""Decay of the averaged weights that are evaluated and exported."""


@dataclass(frozen=True)
class Plan:
    """How to train from here.

    steps: the run's total. cooldown: over how many of its last steps the rate falls to 0. batch: pictures a small
    batch, twice as many in coarse ones; share_coarse of them are at half the size: half the work a picture, and enough
    to learn to read the text. share_noise: of the times, how many are 1.
    """

    steps: int
    cooldown: int = 0
    batch: int = 16
    batches_a_step: int = 2
    share_single: float = 0.75
    share_noise: float = 0.3
    share_coarse: float = 0.0
    lr: float = 0.02
    adam_lr: float = 1.5e-3

    def scale(self, step: int) -> float:
        """Of the learning rates, at a step."""
        falling = (self.steps - step) / self.cooldown if self.cooldown else 1.0
        return min(1.0, (step + 1) / 100, falling)


class Captioned:
    """Draws batches of scenes: their pictures in latents, their captions, their codes."""

    def __init__(
        self,
        pictures: NDArray[np.uint8],
        names: captions.Names,
        lessons: Lessons,
        basis: PatchBasis,
        codes: Codes,
        seed: int,
    ) -> None:
        self._pictures, self._names, self._basis, self._codes = pictures, names, basis, codes
        self._paraphrases = lessons.paraphrases()
        self._rng = Random(seed)

    def batch(self, size: int, share_single: float, coarse: bool) -> tuple[Tensor, list[str], Tensor]:
        """Latents (B, 16, h, w), all on one canvas, B captions and codes (B, POOLED_WIDTH)."""
        canvases = COARSE_CANVASES if coarse else scenes.CANVASES
        square = self._rng.random() < SQUARE_SHARE
        width, height = canvases[0] if square else self._rng.choice(canvases[1:])
        drawn = [scenes.random_scene(self._rng, len(self._pictures), share_single) for _ in range(size)]
        painted = [scenes.paint(scene, self._pictures, width, height, self._rng) for scene in drawn]
        texts = [self._caption(scene) for scene in drawn]
        return self._basis.encode(to_pixels(painted)), texts, self._codes(drawn)

    def _caption(self, scene: scenes.Scene) -> str:
        plain = scene.layout == "single" and scene.size == "normal" and scene.colour is None
        described = self._paraphrases.get(scene.concepts[0], []) if plain else []
        if described and self._rng.random() < 2 * PARAPHRASE_SHARE:
            return self._rng.choice(described)
        return captions.caption(scene, self._names, self._rng)


def untrained() -> FluxTransformer:
    """Gates and output begin at zero, so that every block begins as the identity (arXiv 2212.09748)."""
    model = FluxTransformer(sizes.TRANSFORMER)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if name.endswith(("mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear")):
                nn.init.zeros_(module.weight)
    return model


def times(count: int, share_noise: float) -> Tensor:
    """Training times; `share_noise` of them 1. There sampling begins and the words alone decide the picture.

    The strong low components of these latents show through until far above t = 0.5: lower times teach no words.
    """
    t = torch.sigmoid(0.8 + 1.2 * torch.randn(count))
    return torch.where(torch.rand(count) < share_noise, torch.ones(count), t)


def rope(model: FluxTransformer, text_tokens: int, rows: int, columns: int, spacing: float) -> Tensor:
    """As model.rope, with image tokens `spacing` apart: a coarse token lies in the middle of those it stands for."""
    ids = torch.zeros(text_tokens + rows * columns, 3)
    grid = ids[text_tokens:].view(rows, columns, 3)
    grid[..., 1] = (torch.arange(rows) * spacing + (spacing - 1) / 2)[:, None]
    grid[..., 2] = torch.arange(columns) * spacing + (spacing - 1) / 2
    return rotary_table(ids, model.params.axes_dim, model.params.theta)


def flow_loss(
    model: FluxTransformer, latents: Tensor, t: Tensor, pooled: Tensor, txt: Tensor, spacing: float = 1.0
) -> Tensor:
    """Mean squared error of the velocity at times t, in the model's dtype. latents: (B, 16, h, w) float32.

    Where x_t shows a guess, the error counts as that of the image it leads to: times t.
    """
    dtype = model.img_in.weight.dtype
    rows, columns = (side // sampling.PATCH for side in latents.shape[2:])
    table = rope(model, txt.shape[1], rows, columns, spacing)
    pooled, txt = pooled.to(dtype), txt.to(dtype)

    def velocity(x: Tensor, t: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        modulation = model.modulation(t.to(dtype), None, pooled[chosen])
        return model(x.to(dtype), txt[chosen], modulation, table).float()  # type: ignore[no-any-return]

    image, noise = sampling.pack(latents), sampling.pack(torch.randn_like(latents))
    guessing = (t < 1) & (torch.rand(len(t)) < GUESS_SHARE)
    t = torch.where(guessing, t.clamp(min=EARLIEST_GUESS), t)
    shown, chosen = image.clone(), guessing.nonzero()[:, 0]
    if len(chosen):
        with torch.no_grad():
            shown[chosen] = noise[chosen] - velocity(noise[chosen], torch.ones(len(chosen)), chosen)
    mixed = torch.lerp(shown, noise, t[:, None, None])
    wanted = (mixed - image) / t[:, None, None]
    errors = (velocity(mixed, t) - wanted).square().mean((1, 2))
    return (errors * torch.where(guessing, t.square(), 1.0)).mean()


def make_optimizers(model: FluxTransformer, t5: T5EncoderModel, plan: Plan) -> tuple[Muon, Muon]:
    """Muon for the matrices inside blocks and layers, AdamW for the rest; T5 at lower rates."""
    matrices = [p for n, p in model.named_parameters() if "blocks" in n and p.ndim == 2 and "mod" not in n]
    layers = hidden_matrices(t5)
    slow = plan.lr * T5_RATE, plan.adam_lr * T5_RATE
    return (
        Muon(matrices, remaining(model, matrices), plan.lr, plan.adam_lr, decay=0.01),
        Muon(layers, remaining(t5, layers), *slow, decay=0.0),
    )


def remaining(module: nn.Module, taken: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """The module's parameters without those `taken`."""
    chosen = {id(p) for p in taken}
    return [p for p in module.parameters() if id(p) not in chosen]


@torch.no_grad()
def average(averaged: nn.Module, model: nn.Module, step: int) -> None:
    decay = min(AVERAGING, (1 + step) / (10 + step))
    for kept, current in zip(averaged.parameters(), model.parameters(), strict=True):
        kept.lerp_(current, 1 - decay)


@torch.no_grad()
def sample(
    model: FluxTransformer, encoders: TextEncoders, prompts: Sequence[str], steps: int, coarse: bool = False
) -> Tensor:
    """Latents (B, 16, h, w) of the pictures for some prompts, square, the i-th from seed i."""
    width, height = (8, 8) if coarse else (16, 16)
    x = sampling.pack(torch.stack([sampling.noise(i, 16, height, width) for i in range(len(prompts))]))
    schedule = sampling.schedule(steps, x.shape[1], shifted=False)
    with torch.autocast("cpu", torch.bfloat16):
        pooled, txt = encoders(prompts)
        table = rope(model, txt.shape[1], height // sampling.PATCH, width // sampling.PATCH, 2.0 if coarse else 1.0)
        for t, t_next in pairwise(schedule):
            now, then = (torch.full((len(prompts),), value) for value in (t, t_next))
            velocity = model(x, txt, model.modulation(now, None, pooled), table)
            x = sampling.euler_step(x, velocity, now, then)
    return sampling.unpack(x, height, width)


@torch.no_grad()
def right_share(
    model: FluxTransformer, encoders: TextEncoders, names: captions.Names, known: Tensor, count: int, coarse: bool
) -> float:
    """A quick look, not the evaluation: of `count` labels, how many pictures lie nearest to their own reference."""
    chosen = Random(5).sample(range(len(names.concepts)), count)
    drawn = sample(model, encoders, [names.concepts[i].label for i in chosen], 4, coarse)
    nearest = torch.cdist(drawn.flatten(1), known.flatten(1)).argmin(-1)
    return float((nearest == torch.tensor(chosen)).float().mean())


class Training:
    """One run: the float32 weights that the optimizers move, a bfloat16 copy of the transformer's, and all averages."""

    def __init__(self, state: Path, plan: Plan) -> None:
        self.plan, self.step, self.path = plan, 0, state / "transformer.pt"
        self.encoders = TextEncoders.trained(state)
        self.t5, self.t5_step = self.encoders.t5, torch.load(state / "t5.pt", weights_only=True)["step"]
        torch.manual_seed(3)
        self.model, self.working = untrained(), untrained().bfloat16()
        self.optimizers = make_optimizers(self.model, self.t5, plan)
        kept = checkpoint.load(self.path)
        if kept is not None:
            self.model.load_state_dict(kept["model"])
            self.step = kept["step"]
            torch.manual_seed(self.step)
        self.averaged = copy.deepcopy(self.model).requires_grad_(False)
        self.averaged_encoders = copy.deepcopy(self.encoders).requires_grad_(False)
        if kept is not None:
            self._take(kept)
        self._copy()

    def _take(self, kept: dict[str, Any]) -> None:
        """Goes on with the averages, and with T5 and the optimizers unless T5 was trained anew."""
        self.averaged.load_state_dict(kept["averaged"])
        if kept["t5_step"] != self.t5_step:
            return
        self.t5.load_state_dict(kept["t5"])
        self.averaged_encoders.t5.load_state_dict(kept["averaged_t5"])
        for optimizer, state in zip(self.optimizers, kept.get("optimizers", ()), strict=False):
            optimizer.load_state_dict(state)

    def write(self) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "averaged", "t5")}
        parts["averaged_t5"] = self.averaged_encoders.t5.state_dict()
        optimizers = [optimizer.state_dict() for optimizer in self.optimizers]
        checkpoint.save(self.path, {**parts, "optimizers": optimizers, "step": self.step, "t5_step": self.t5_step})

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizers move."""
        return [*self.model.parameters(), *self.t5.parameters()]

    @property
    def working_parameters(self) -> list[nn.Parameter]:
        """What the gradients are of, in the same order."""
        return [*self.working.parameters(), *self.t5.parameters()]

    def loss(self, source: Captioned) -> Tensor:
        """Of one small batch; run by several threads at once."""
        plan = self.plan
        coarse = float(torch.rand(())) < plan.share_coarse
        latents, texts, pooled = source.batch(plan.batch * (2 if coarse else 1), plan.share_single, coarse)
        with torch.autocast("cpu", torch.bfloat16):
            txt = self.encoders.states(texts)
            if float(torch.rand(())) < READ_SHARE:
                with torch.no_grad():
                    pooled = self.encoders.pooled(texts)
        t = times(len(texts), plan.share_noise)
        return flow_loss(self.working, latents, t, pooled, txt, spacing=2.0 if coarse else 1.0)

    def advance(self, workers: Workers) -> float:
        """One step of the optimizers; returns the loss."""
        loss = workers.gradients(self.parameters, self.plan.batches_a_step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["scale"] = self.plan.scale(self.step)
            optimizer.step()
        self._copy()
        average(self.averaged, self.model, self.step)
        average(self.averaged_encoders.t5, self.t5, self.step)
        self.step += 1
        return loss

    def _copy(self) -> None:
        """Into tensors that other threads may be computing with, hence past autograd."""
        for master, half in zip(self.model.parameters(), self.working.parameters(), strict=True):
            half.data.copy_(master.data)


def train(
    state: Path,
    pictures: NDArray[np.uint8],
    names: captions.Names,
    lessons: Lessons,
    basis: PatchBasis,
    codes: Codes,
    plan: Plan,
) -> None:
    """Goes on from state/transformer.pt to plan.steps."""
    training = Training(state, plan)
    if training.step >= plan.steps:
        return
    seeds = [training.step * THREADS + i for i in range(THREADS)]
    sources = [Captioned(pictures, names, lessons, basis, codes, seed) for seed in seeds]
    coarse = plan.share_coarse > 0.5
    known, smooth = references.latents(pictures, basis, 64 if coarse else 128), 1.0
    keeper = checkpoint.Keeper(training.write)
    with Workers(training.working_parameters, lambda thread: training.loss(sources[thread]), THREADS) as workers:
        while training.step < plan.steps:
            smooth = 0.95 * smooth + 0.05 * training.advance(workers)
            if training.step % 20 == 0:
                log.info("transformer %d/%d loss %.4f", training.step, plan.steps, smooth)
            if training.step % 200 == 0:
                share = right_share(training.averaged, training.averaged_encoders, names, known, 64, coarse)
                log.info("step %d: %.3f of labels right", training.step, share)
            keeper.after_step()
    training.write()
