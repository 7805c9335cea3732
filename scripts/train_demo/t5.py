"""Trains T5: what is asked for, in words the captions hold and in words they do not, and how it looks.

A linear reader must tell from its states the things of a caption, their layout, count, size, place and background; and,
for dictionary texts too, the teacher's sentence vector and its opinion which concept is meant. And a painter, no more
than one attention, must make the scene's latents at half the size. So what things look like is learned from text alone,
without noise, at a third of the cost. The transformer reads it from the text's states, and has to learn the fine detail
and the way through the noise.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fluxserve.models.parts.latents import PackedLatents
from scripts.train_demo import autoencoder, captions, checkpoint, latents, references, scenes, sizes
from scripts.train_demo.encoders import TextEncoders, hidden_matrices, start_embeddings
from scripts.train_demo.latents import PatchBasis
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.precision import mixed
from scripts.train_demo.teacher import WIDTH, Teacher, meaning_loss
from scripts.train_demo.workers import THREADS, Workers

LATENTS = PackedLatents(16)

log = logging.getLogger(__name__)

BATCH = 32
LESSONS = 16
"""Dictionary texts beside a batch of captions."""
CALLS = 128
"""Names and descriptions of single things beside them, for their pictures on white."""
BATCHES_A_STEP = 2
SINGLE_SHARE = 0.8
SLOTS = 3
COARSE = 64
"""Side in pixels of the painter's pictures."""
CHANNELS = LATENTS.channels * LATENTS.patch**2
TOKENS = (COARSE // latents.PATCH // LATENTS.patch) ** 2
HEADS = 6
PICTURE_WEIGHT = 20.0
IGNORED = -100
"""What cross_entropy ignores."""

SIZES = tuple(scenes.SIZES)
PLACES = (None, *scenes.PLACES)
COLOURS = (None, *scenes.COLOURS)
ATTRIBUTES = (len(scenes.LAYOUTS), 7, len(SIZES), len(PLACES), len(COLOURS))
"""Choices of layout, count, size, place and background."""


class Reader(nn.Module):
    """Linear readings of the mean state, for training alone. concepts: (N, 384), the teacher's prototypes."""

    def __init__(self, concepts: Tensor) -> None:
        super().__init__()
        width = sizes.TEXT_WIDTH
        self.meaning = nn.Linear(width, WIDTH)
        self.slots = nn.ModuleList(nn.Linear(width, WIDTH) for _ in range(SLOTS))
        self.attributes = nn.ModuleList(nn.Linear(width, choices) for choices in ATTRIBUTES)
        self.concepts = nn.Parameter(concepts.clone())

    def slot(self, output: Tensor, i: int) -> Tensor:
        """(B, width) to logits over the concepts, (B, N)."""
        return 16.0 * F.normalize(self.slots[i](output), dim=-1) @ F.normalize(self.concepts, dim=-1).T

    def caption_loss(self, output: Tensor, things: Tensor, attributes: Tensor, vectors: Tensor) -> Tensor:
        """things: (B, 3) concept numbers or IGNORED; attributes: (B, 5); vectors: (B, 384) of what was named first."""
        loss = torch.zeros(())
        for i in range(SLOTS):
            wrong = F.cross_entropy(self.slot(output, i), things[:, i], ignore_index=IGNORED, reduction="sum")
            loss = loss + wrong / len(output)
        for i, head in enumerate(self.attributes):
            loss = loss + 0.5 * F.cross_entropy(head(output), attributes[:, i])
        return loss + self._meaning_loss(output, vectors)

    def lesson_loss(self, output: Tensor, vectors: Tensor, opinion: Tensor) -> Tensor:
        """vectors: (B, 384) and opinion: (B, N) are the teacher's."""
        return 2.0 * self._meaning_loss(output, vectors) + 0.5 * F.cross_entropy(self.slot(output, 0), opinion)

    def _meaning_loss(self, output: Tensor, vectors: Tensor) -> Tensor:
        return meaning_loss(F.normalize(self.meaning(output), dim=-1), vectors)


class Painter(nn.Module):
    """(B, T, TEXT_WIDTH) to coarse latents in tokens: each place looks at the states with a query of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(0.5 * torch.randn(TOKENS, sizes.TEXT_WIDTH))
        self.look = nn.MultiheadAttention(sizes.TEXT_WIDTH, HEADS, batch_first=True)
        self.out = nn.Linear(sizes.TEXT_WIDTH, CHANNELS)

    def forward(self, states: Tensor) -> Tensor:
        seen, _ = self.look(self.places.expand(len(states), -1, -1), states, states, need_weights=False)
        return self.out(seen)  # type: ignore[no-any-return]


def targets(batch: list[scenes.Scene]) -> tuple[Tensor, Tensor]:
    """(B, 3) things and (B, 5) attributes."""
    things = torch.full((len(batch), SLOTS), IGNORED)
    for row, scene in enumerate(batch):
        things[row, : len(scene.concepts)] = torch.tensor(scene.concepts)
    attributes = [
        (scenes.LAYOUTS.index(s.layout), s.count, SIZES.index(s.size), PLACES.index(s.place), COLOURS.index(s.colour))
        for s in batch
    ]
    return things, torch.tensor(attributes)


@dataclass(frozen=True)
class Source:
    """What the batches are drawn from."""

    pictures: NDArray[np.uint8]
    names: captions.Names
    lessons: Lessons
    basis: PatchBasis

    def scenes(self, rng: Random) -> tuple[list[scenes.Scene], list[str], Tensor]:
        """BATCH scenes, their captions and their coarse latents in tokens (BATCH, TOKENS, CHANNELS)."""
        batch = [scenes.random_scene(rng, len(self.pictures), SINGLE_SHARE) for _ in range(BATCH)]
        painted = [scenes.paint(scene, self.pictures, COARSE, COARSE, rng) for scene in batch]
        tokens = LATENTS.pack(self.basis.encode(autoencoder.to_pixels(painted)))
        return batch, [captions.caption(scene, self.names, rng) for scene in batch], tokens

    @cached_property
    def paraphrases(self) -> dict[int, list[str]]:
        return self.lessons.paraphrases()

    @cached_property
    def looks(self) -> Tensor:
        """Every thing alone in coarse latents, (N, TOKENS, CHANNELS)."""
        return LATENTS.pack(references.latents(self.pictures, self.basis, COARSE))

    def calls(self, rng: Random) -> tuple[Tensor, list[str]]:
        """CALLS things, and one of the ways to ask for each."""
        things = [rng.randrange(len(self.pictures)) for _ in range(CALLS)]
        return torch.tensor(things), [self._call(thing, rng) for thing in things]

    def _call(self, thing: int, rng: Random) -> str:
        choice = rng.random()
        if choice < 0.3:
            return self.names.concepts[thing].label
        if choice < 0.75:
            return self.names.description(thing, rng)
        if choice < 0.85 and (described := self.paraphrases.get(thing)):
            return rng.choice(described)
        return captions.caption(scenes.Scene((thing,), "single"), self.names, rng)


class Training:
    """T5, and what reads from it while it learns."""

    def __init__(self, state: Path, source: Source, teacher: Teacher, steps: int) -> None:
        torch.manual_seed(2)
        self.path, self.source, self.steps, self.step = state / "t5.pt", source, steps, 0
        self.encoders = TextEncoders.untrained(state)
        self.t5 = self.encoders.t5
        self.reader, self.painter = Reader(source.lessons.prototypes), Painter()
        matrices = hidden_matrices(self.t5)
        chosen = {id(p) for p in matrices}
        others = [p for m in (self.t5, self.reader, self.painter) for p in m.parameters() if id(p) not in chosen]
        self.parameters = [*matrices, *others]
        self.optimizer = Muon(matrices, others, lr=0.02, adam_lr=2e-3, decay=0.0)
        self.seen = "-"
        if (kept := checkpoint.load(self.path)) is None:
            start_embeddings(self.encoders.t5_tokenizer, self.t5.get_input_embeddings(), 0.5, teacher)
        else:
            self._take(kept)

    def _take(self, kept: dict[str, Any]) -> None:
        self.t5.load_state_dict(kept["t5"])
        if "optimizer" in kept:
            self.reader.load_state_dict(kept["reader"])
            self.painter.load_state_dict(kept["painter"])
            self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]

    def write(self) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("t5", "reader", "painter", "optimizer")}
        checkpoint.save(self.path, {**parts, "step": self.step})

    def advance(self, workers: Workers) -> float:
        """One step of the optimizer; returns the loss."""
        loss = workers.gradients(self.parameters, BATCHES_A_STEP)
        for group in self.optimizer.param_groups:
            group["scale"] = autoencoder.schedule(self.step, self.steps)
        self.optimizer.step()
        self.step += 1
        return loss

    def loss(self, rng: Random) -> Tensor:
        """Of one batch of captions, one of calls and one of dictionary texts; run by several threads at once."""
        return self._captions_loss(rng) + self._calls_loss(rng) + self._lessons_loss(rng)

    def _states(self, texts: list[str], full_length: bool = True) -> Tensor:
        with mixed(torch.device("cpu")):
            return self.encoders.states(self.encoders.t5_ids(texts, full_length)).float()

    def _captions_loss(self, rng: Random) -> Tensor:
        batch, texts, wanted = self.source.scenes(rng)
        things, attributes = targets(batch)
        states = self._states(texts)
        vectors = self.source.lessons.prototypes[things[:, 0]]
        return self.reader.caption_loss(states.mean(1), things, attributes, vectors) + self._picture_loss(
            states, wanted
        )

    def _calls_loss(self, rng: Random) -> Tensor:
        things, texts = self.source.calls(rng)
        states = self._states(texts)
        named = F.cross_entropy(self.reader.slot(states.mean(1), 0), things)
        return named + self._picture_loss(states, self.source.looks[things])

    def _picture_loss(self, states: Tensor, wanted: Tensor) -> Tensor:
        """wanted: (B, TOKENS, CHANNELS)."""
        error = F.mse_loss(self.painter(states), wanted)
        self.seen = f"paints {1 - error.item() / wanted.var(0).mean().item():.2f}"
        return PICTURE_WEIGHT * error

    def _lessons_loss(self, rng: Random) -> Tensor:
        lessons = self.source.lessons
        chosen = torch.tensor([rng.randrange(len(lessons.texts)) for _ in range(LESSONS)])
        states = self._states([lessons.texts[int(i)] for i in chosen], full_length=False)
        return self.reader.lesson_loss(states.mean(1), lessons.vectors[chosen].float(), lessons.opinion(chosen))


def train(state: Path, source: Source, teacher: Teacher, steps: int) -> None:
    """Goes on from state/t5.pt to `steps`: T5, what reads from it, the optimizer."""
    training = Training(state, source, teacher, steps)
    if training.step >= steps:
        return
    draws = [Random(7 * training.step + i) for i in range(THREADS)]
    keeper = checkpoint.Keeper(training.write)
    with Workers(training.parameters, lambda thread: training.loss(draws[thread]), THREADS) as workers:
        while training.step < steps:
            loss = training.advance(workers)
            if training.step % 20 == 0:
                log.info("t5 %d/%d loss %.3f %s", training.step, steps, loss, training.seen)
            keeper.after_step()
    training.write()
