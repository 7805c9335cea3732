"""Trains the text encoders before any picture: what is asked for, in words the captions hold and in words they do not.

Each encoder must let a linear reader tell from its output the things of a caption, their layout, count, size, place
and background; and, for dictionary texts too, the teacher's sentence vector and its opinion which concept is meant. So
the transformer starts with text it can use and has only to learn what things look like.
"""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.train_demo import autoencoder, captions, checkpoint, scenes, sizes
from scripts.train_demo.encoders import TextEncoders
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.teacher import WIDTH, Teacher
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

BATCH = 64
BATCHES_A_STEP = 2
SLOTS = 3
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


def train(state: Path, names: captions.Names, lessons: Lessons, teacher: Teacher, steps: int) -> None:
    """Writes state/text.pt: the encoders, the readers, the optimizer."""
    torch.manual_seed(2)
    encoders = TextEncoders.untrained(state)
    readers = nn.ModuleList(Reader(width, lessons.prototypes) for width in (sizes.POOLED_WIDTH, sizes.TEXT_WIDTH))
    matrices = hidden_matrices(encoders)
    chosen = {id(p) for p in matrices}
    others = [p for p in [*encoders.parameters(), *readers.parameters()] if id(p) not in chosen]
    optimizer = Muon(matrices, others, lr=0.02, adam_lr=2e-3, decay=0.0)
    step, path = 0, state / "text.pt"
    if (kept := checkpoint.load(path)) is not None:
        encoders.load_state_dict(kept["encoders"])
        if "optimizer" in kept:
            readers.load_state_dict(kept["readers"])
            optimizer.load_state_dict(kept["optimizer"])
        step = kept["step"]
    else:
        start_embeddings(encoders, teacher)

    def write() -> None:
        content = {"encoders": encoders.state_dict(), "readers": readers.state_dict(), "step": step}
        checkpoint.save(path, {**content, "optimizer": optimizer.state_dict()})

    draws, right = [Random(7 * step + i) for i in range(THREADS)], ["-"]

    def job(thread: int) -> Tensor:
        caption_loss, right[0] = _caption_step(encoders, readers, names, lessons, draws[thread])
        return caption_loss + _lesson_step(encoders, readers, lessons)

    parameters = [*matrices, *others]
    keeper = checkpoint.Keeper(write)
    with Workers(parameters, job, THREADS) as workers:
        while step < steps:
            loss = workers.gradients(parameters, BATCHES_A_STEP)
            for group in optimizer.param_groups:
                group["scale"] = autoencoder.schedule(step, steps)
            optimizer.step()
            step += 1
            if step % 20 == 0:
                log.info("text %d/%d loss %.3f first thing %s", step, steps, loss, right[0])
            keeper.after_step()
    write()


def _caption_step(
    encoders: TextEncoders, readers: nn.ModuleList, names: captions.Names, lessons: Lessons, rng: Random
) -> tuple[Tensor, str]:
    """The loss of one batch of captions, and the share whose first thing each encoder names."""
    batch = [scenes.random_scene(rng, len(names.concepts), 0.6) for _ in range(BATCH)]
    things, attributes = targets(batch)
    vectors = lessons.prototypes[things[:, 0]]
    loss, right = torch.zeros(()), []
    with torch.autocast("cpu", torch.bfloat16):
        pooled, states = encoders([captions.caption(scene, names, rng) for scene in batch])
    for reader, output in zip(readers, (pooled.float(), states.float().mean(1)), strict=True):
        loss = loss + reader.caption_loss(output, things, attributes, vectors)
        right.append(f"{(reader.slot(output, 0).argmax(-1) == things[:, 0]).float().mean():.2f}")
    return loss, "/".join(right)


def _lesson_step(encoders: TextEncoders, readers: nn.ModuleList, lessons: Lessons) -> Tensor:
    chosen = torch.randint(len(lessons.texts), (BATCH,))
    vectors, opinion = lessons.vectors[chosen].float(), lessons.opinion(chosen)
    loss = torch.zeros(())
    with torch.autocast("cpu", torch.bfloat16):
        pooled, states = encoders([lessons.texts[int(i)] for i in chosen], full_length=False)
    for reader, output in zip(readers, (pooled.float(), states.float().mean(1)), strict=True):
        loss = loss + reader.lesson_loss(output, vectors, opinion)
    return loss
