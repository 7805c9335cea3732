"""Trains the transformer of fluxserve/models/flux1 on painted scenes and their captions, and T5 along with it.

The pooled vector is the scene's code (codes.py), for most of the pictures what CLIP takes for it. CLIP (clip.py) comes
trained and stays; T5 (t5.py) comes trained and learns along at a lower rate: its states come to hold what is needed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel

from fluxserve.models.flux1.transformer import FluxTransformer
from scripts.train_demo import checkpoint
from scripts.train_demo.autoencoder import scaled
from scripts.train_demo.batches import Batch, Captioned, Material, Mix, from_processes
from scripts.train_demo.encoders import TextEncoders, hidden_matrices
from scripts.train_demo.flow import flow_loss, untrained
from scripts.train_demo.latents import PatchBasis
from scripts.train_demo.muon import Muon
from scripts.train_demo.precision import mixed, working_dtype
from scripts.train_demo.progress import Examiner
from scripts.train_demo.workers import THREADS, Inline, Workers

log = logging.getLogger(__name__)

T5_RATE = 0.5
"""T5's learning rates in units of the transformer's."""

READ_SHARE = 0.9
"""Of the pictures, those that take CLIP's vectors and not the codes."""

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
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


class Training:
    """One run: the float32 weights that the optimizers move, a copy of the transformer's to work with, all averages."""

    def __init__(self, state: Path, basis: PatchBasis, plan: Plan, device: torch.device) -> None:
        self.basis = basis.to(device)
        self.plan, self.step, self.path, self.device = plan, 0, state / "transformer.pt", device
        self.encoders = TextEncoders.trained(state).to(device)
        self.t5, self.t5_step = self.encoders.t5, torch.load(state / "t5.pt", weights_only=True)["step"]
        torch.manual_seed(3)
        self.model, self.working = untrained().to(device), untrained().to(device, working_dtype(device))
        if device.type == "cuda":
            for block in (*self.working.double_blocks, *self.working.single_blocks):
                block.compile(dynamic=False)
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

    def loss(self, batch: Batch) -> Tensor:
        """Of one batch; on CPUs run by several threads at once."""
        read = (torch.rand(len(batch.codes)) < READ_SHARE).nonzero()[:, 0].to(self.device)
        pooled = batch.codes.clone()
        with mixed(self.device):
            txt = self.encoders.states(batch.t5_ids)
            with torch.no_grad():
                pooled[read] = self.encoders.pooled(batch.clip_ids[read]).float()
        latents = self.basis.encode(scaled(batch.pictures))
        with torch.compiler.set_stance("default" if batch.square else "force_eager"):  # else compiled for each shape
            return flow_loss(self.working, latents, pooled, txt, self.plan.share_noise, batch.spacing)

    def advance(self, workers: Workers | Inline) -> float | Tensor:
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
        halves = [p.data for p in self.working.parameters()]
        torch._foreach_copy_(halves, [p.data for p in self.model.parameters()])


def train(state: Path, material: Material, plan: Plan, device: torch.device) -> None:
    """Goes on from state/transformer.pt to plan.steps."""
    training = Training(state, material.basis, plan, device)
    if training.step >= plan.steps:
        return
    examiner = Examiner(material, coarse=plan.share_coarse > 0.5)
    keeper, smooth = checkpoint.Keeper(training.write), 1.0
    with gradients_from(training, material) as workers:
        while training.step < plan.steps:
            smooth = 0.95 * smooth + 0.05 * training.advance(workers)
            if training.step % 20 == 0:
                log.info("transformer %d/%d loss %.4f", training.step, plan.steps, smooth)
            if training.step % 200 == 0:
                log.info("step %d: %s", training.step, examiner.look(training.averaged, training.averaged_encoders))
            keeper.after_step()
    training.write()


def gradients_from(training: Training, material: Material) -> Workers | Inline:
    """A GPU gets its batches from processes; on CPUs every thread draws its own."""
    plan, first = training.plan, training.step * THREADS
    mix = Mix(plan.batch, plan.share_single, plan.share_coarse)

    def source(number: int) -> Captioned:
        return Captioned(material, training.encoders, mix, first + number)

    if training.device.type == "cuda":
        batches = from_processes(source)
        return Inline(training.working_parameters, lambda _: training.loss(next(batches).to(training.device)))
    sources = [source(number) for number in range(THREADS)]
    return Workers(training.working_parameters, lambda number: training.loss(sources[number].draw()), THREADS)
