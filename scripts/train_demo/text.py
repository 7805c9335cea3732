"""Trains the text encoders: what is asked for, in words the captions hold and in words they do not, and how it looks.

Each encoder must let a linear reader tell from its output the things of a caption, their layout, count, size, place
and background; and, for dictionary texts too, the teacher's sentence vector and its opinion which concept is meant. And
it must let a painter, no more than a linear map or one attention, make the scene's latents at half the size. So what
things look like is learned from text alone, without noise, at a third of the cost: what a thing is called, for its
picture on white, makes up most of a batch. The transformer reads it from the text's states, and has to learn the fine
detail and the way through the noise.
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

from fluxserve.flux import sampling
from scripts.train_demo import autoencoder, captions, checkpoint, latents, references, scenes, sizes
from scripts.train_demo.encoders import TextEncoders
from scripts.train_demo.latents import PatchBasis
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.teacher import WIDTH, Teacher
from scripts.train_demo.workers import THREADS, Workers

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
"""Side in pixels of the painters' pictures."""
CHANNELS = 16 * sampling.PATCH**2
TOKENS = (COARSE // latents.PATCH // sampling.PATCH) ** 2
HEADS = 6
PICTURE_WEIGHT = 20.0
NOTHING = -100
"""What cross_entropy ignores."""

LAYOUTS = ("single", "row", "column", "count")
SIZES = tuple(scenes.SIZES)
PLACES = (None, *scenes.PLACES)
COLOURS = (None, *scenes.COLOURS)
ATTRIBUTES = (len(LAYOUTS), 7, len(SIZES), len(PLACES), len(COLOURS))
"""Choices of layout, count, size, place and background."""


class Reader(nn.Module):
    """Linear readings of one encoder's output, for training alone. concepts: (N, 384), the teacher's prototypes."""

    def __init__(self, width: int, concepts: Tensor) -> None:
        super().__init__()
        self.meaning = nn.Linear(width, WIDTH)
        self.slots = nn.ModuleList(nn.Linear(width, WIDTH) for _ in range(SLOTS))
        self.attributes = nn.ModuleList(nn.Linear(width, choices) for choices in ATTRIBUTES)
        self.concepts = nn.Parameter(concepts.clone())

    def slot(self, output: Tensor, i: int) -> Tensor:
        """(B, width) to logits over the concepts, (B, N)."""
        return 16.0 * F.normalize(self.slots[i](output), dim=-1) @ F.normalize(self.concepts, dim=-1).T

    def caption_loss(self, output: Tensor, things: Tensor, attributes: Tensor, vectors: Tensor) -> Tensor:
        """things: (B, 3) concept numbers or NOTHING; attributes: (B, 5); vectors: (B, 384) of what was named first."""
        loss = torch.zeros(())
        for i in range(SLOTS):
            wrong = F.cross_entropy(self.slot(output, i), things[:, i], ignore_index=NOTHING, reduction="sum")
            loss = loss + wrong / len(output)
        for i, head in enumerate(self.attributes):
            loss = loss + 0.5 * F.cross_entropy(head(output), attributes[:, i])
        return loss + self._meaning_loss(output, vectors)

    def lesson_loss(self, output: Tensor, vectors: Tensor, opinion: Tensor) -> Tensor:
        """vectors: (B, 384) and opinion: (B, N) are the teacher's."""
        return 2.0 * self._meaning_loss(output, vectors) + 0.5 * F.cross_entropy(self.slot(output, 0), opinion)

    def _meaning_loss(self, output: Tensor, vectors: Tensor) -> Tensor:
        """Cosine distance, and the distance of all similarities within the batch."""
        guess = F.normalize(self.meaning(output), dim=-1)
        similarities = (guess @ guess.T - vectors @ vectors.T).square().mean()
        return 3.0 * (1 - (guess * vectors).sum(-1)).mean() + 20.0 * similarities


class PooledPainter(nn.Module):
    """(B, POOLED_WIDTH) to coarse latents in tokens, (B, TOKENS, CHANNELS), linearly."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(sizes.POOLED_WIDTH, TOKENS * CHANNELS)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.out(pooled).unflatten(-1, (TOKENS, CHANNELS))  # type: ignore[no-any-return]


class StatesPainter(nn.Module):
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
    things = torch.full((len(batch), SLOTS), NOTHING)
    for row, scene in enumerate(batch):
        things[row, : len(scene.concepts)] = torch.tensor(scene.concepts)
    attributes = [
        (LAYOUTS.index(s.layout), s.count, SIZES.index(s.size), PLACES.index(s.place), COLOURS.index(s.colour))
        for s in batch
    ]
    return things, torch.tensor(attributes)


def start_embeddings(encoders: TextEncoders, teacher: Teacher) -> None:
    """Every token begins as the principal components of the teacher's vector for it."""
    for tokenizer, table, size in (
        (encoders.clip_tokenizer, encoders.clip.get_input_embeddings(), 0.04),
        (encoders.t5_tokenizer, encoders.t5.get_input_embeddings(), 0.5),
    ):
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        vectors = teacher.embed([piece.replace("</w>", "").replace("▁", " ").strip() or "." for piece in pieces])
        centred = vectors - vectors.mean(0)
        _, _, components = torch.linalg.svd(centred, full_matrices=False)
        reduced = centred @ components[: table.weight.shape[1]].T
        table.weight.data.copy_(size * reduced / reduced.std())


def hidden_matrices(encoders: TextEncoders) -> list[nn.Parameter]:
    """What Muon takes: the weights inside the layers."""
    tables = ("embed", "shared", "bias")
    return [p for n, p in encoders.named_parameters() if p.ndim == 2 and not any(table in n for table in tables)]


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
        tokens = sampling.pack(self.basis.encode(autoencoder.to_pixels(painted)))
        return batch, [captions.caption(scene, self.names, rng) for scene in batch], tokens

    @cached_property
    def paraphrases(self) -> dict[int, list[str]]:
        return self.lessons.paraphrases()

    @cached_property
    def looks(self) -> Tensor:
        """Every thing alone in coarse latents, (N, TOKENS, CHANNELS)."""
        return sampling.pack(references.latents(self.pictures, self.basis, COARSE))

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
    """The encoders, and what reads from them while they learn: readers and painters, pooled first, then states."""

    def __init__(self, state: Path, source: Source, teacher: Teacher, steps: int) -> None:
        torch.manual_seed(2)
        self.path, self.source, self.steps, self.step = state / "text.pt", source, steps, 0
        self.encoders = TextEncoders.untrained(state)
        widths = (sizes.POOLED_WIDTH, sizes.TEXT_WIDTH)
        self.readers = nn.ModuleList(Reader(width, source.lessons.prototypes) for width in widths)
        self.painters = nn.ModuleList([PooledPainter(), StatesPainter()])
        matrices = hidden_matrices(self.encoders)
        chosen = {id(p) for p in matrices}
        modules = (self.encoders, self.readers, self.painters)
        others = [p for module in modules for p in module.parameters() if id(p) not in chosen]
        self.parameters = [*matrices, *others]
        self.optimizer = Muon(matrices, others, lr=0.02, adam_lr=2e-3, decay=0.0)
        self.seen = "-"
        if (kept := checkpoint.load(self.path)) is None:
            start_embeddings(self.encoders, teacher)
        else:
            self._take(kept)

    def _take(self, kept: dict[str, Any]) -> None:
        self.encoders.load_state_dict(kept["encoders"])
        if "optimizer" in kept:
            self.readers.load_state_dict(kept["readers"])
            self.painters.load_state_dict(kept["painters"])
            self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]

    def write(self) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("encoders", "readers", "painters", "optimizer")}
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
        return self._captions_loss(rng) + self._calls_loss(rng) + self._lessons_loss()

    def _captions_loss(self, rng: Random) -> Tensor:
        batch, texts, wanted = self.source.scenes(rng)
        things, attributes = targets(batch)
        vectors = self.source.lessons.prototypes[things[:, 0]]
        with torch.autocast("cpu", torch.bfloat16):
            pooled, states = (output.float() for output in self.encoders(texts))
        loss = torch.zeros(())
        for reader, output in zip(self.readers, (pooled, states.mean(1)), strict=True):
            loss = loss + reader.caption_loss(output, things, attributes, vectors)
        return loss + self._picture_loss(pooled, states, wanted)

    def _calls_loss(self, rng: Random) -> Tensor:
        things, texts = self.source.calls(rng)
        with torch.autocast("cpu", torch.bfloat16):
            pooled, states = (output.float() for output in self.encoders(texts))
        loss = torch.zeros(())
        for reader, output in zip(self.readers, (pooled, states.mean(1)), strict=True):
            loss = loss + F.cross_entropy(reader.slot(output, 0), things)
        return loss + self._picture_loss(pooled, states, self.source.looks[things])

    def _picture_loss(self, pooled: Tensor, states: Tensor, wanted: Tensor) -> Tensor:
        """Of both painters. wanted: (B, TOKENS, CHANNELS)."""
        errors = [
            F.mse_loss(painter(output), wanted) for painter, output in zip(self.painters, (pooled, states), strict=True)
        ]
        self.seen = " ".join(f"paints {1 - error.item() / wanted.var(0).mean().item():.2f}" for error in errors)
        return PICTURE_WEIGHT * (errors[0] + errors[1])

    def _lessons_loss(self) -> Tensor:
        lessons = self.source.lessons
        chosen = torch.randint(len(lessons.texts), (LESSONS,))
        vectors, opinion = lessons.vectors[chosen].float(), lessons.opinion(chosen)
        loss = torch.zeros(())
        with torch.autocast("cpu", torch.bfloat16):
            pooled, states = self.encoders([lessons.texts[int(i)] for i in chosen], full_length=False)
        for reader, output in zip(self.readers, (pooled.float(), states.float().mean(1)), strict=True):
            loss = loss + reader.lesson_loss(output, vectors, opinion)
        return loss


def train(state: Path, source: Source, teacher: Teacher, steps: int) -> None:
    """Goes on from state/text.pt to `steps`: the encoders, what reads from them, the optimizer."""
    training = Training(state, source, teacher, steps)
    draws = [Random(7 * training.step + i) for i in range(THREADS)]
    keeper = checkpoint.Keeper(training.write)
    with Workers(training.parameters, lambda thread: training.loss(draws[thread]), THREADS) as workers:
        while training.step < steps:
            loss = training.advance(workers)
            if training.step % 20 == 0:
                log.info("text %d/%d loss %.3f %s", training.step, steps, loss, training.seen)
            keeper.after_step()
    training.write()
