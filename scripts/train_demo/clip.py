"""Teaches CLIP to give the code of what a text asks for (codes.py), however it is said, before any picture is drawn.

First what words mean: after MEANING_LAYER layers linear maps must name what single things are called and described as,
and give the teacher's sentence vector. Then the next layer becomes a memory, in closed form: a unit for every thing
that fires where the thing is named and adds its code (the key-value view of feed-forward layers is that of arXiv
2012.14913). All layers then learn together: of single things the code must be the nearest of all, of captions that of
the scene, which the last layer can put together from what the memory added at every word.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.train_demo import captions, checkpoint, scenes, sizes
from scripts.train_demo.autoencoder import schedule
from scripts.train_demo.codes import Codes
from scripts.train_demo.encoders import TextEncoders, hidden_matrices, padded, start_embeddings
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.teacher import WIDTH, Teacher
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

CALLS, CAPTIONS, DICTIONARY = 120, 48, 24
"""Texts of each kind in a batch."""
PART = 48
"""Texts read at once, of like length: most are short."""
GAIN, THRESHOLD = 40.0, 0.425
"""A unit of the memory gets GAIN * (cosine - THRESHOLD) of the name read and the thing's own."""
STRENGTH = 0.6
"""What the memory adds for an input of 1, in units of the deviation of what it is added to."""
CODES_RATE = 0.25
"""The learning rates once there is a memory, in units of those before."""
BATCHES_A_STEP = 2
SINGLE_SHARE = 0.45
MEANING_LAYER = 3
"""After which layer the teacher's vector must be found."""
SHARPNESS = 0.1
"""Temperature of the choice among all things, in units of the mean squared distance of their codes."""


class Calls:
    """Draws single things and ways to ask for each, with the teacher's vector of what is said."""

    def __init__(self, names: captions.Names, lessons: Lessons) -> None:
        self.names, self.lessons = names, lessons
        self._paraphrases = lessons.paraphrases()
        self._starts = [0, *accumulate(map(len, names.described))]

    def draw(self, count: int, rng: Random) -> tuple[Tensor, list[str], Tensor]:
        """Things (count,), texts and vectors (count, 384)."""
        things = [rng.randrange(len(self.names.concepts)) for _ in range(count)]
        said = [self._call(thing, rng) for thing in things]
        return torch.tensor(things), [text for text, _ in said], torch.stack([vector.float() for _, vector in said])

    def _call(self, thing: int, rng: Random) -> tuple[str, Tensor]:
        choice, about = rng.random(), self.lessons.prototypes[thing]
        if choice < 0.15:
            return self.names.concepts[thing].label, about
        if choice < 0.75:
            phrases = self.names.described[thing]
            i = rng.randrange(len(phrases))
            return captions.loosely(phrases[i], rng), self.lessons.described[self._starts[thing] + i]
        if choice < 0.8 and (described := self._paraphrases.get(thing)):
            return rng.choice(described), about
        return captions.caption(scenes.Scene((thing,), "single"), self.names, rng), about


@dataclass(frozen=True)
class Source:
    """What the batches are drawn from."""

    codes: Codes
    calls: Calls

    @cached_property
    def known(self) -> Tensor:
        """The codes of all things alone, (N, POOLED_WIDTH)."""
        return self.codes.alone()

    @cached_property
    def spread(self) -> Tensor:
        """The mean squared distance of two of them."""
        return 2 * self.known.var(0).sum()

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared, of (B, POOLED_WIDTH) to all things, in units of the spread, (B, N)."""
        return torch.cdist(vectors, self.known).square() / self.spread


class Meaning(nn.Module):
    """Linear readings of CLIP's middle, for training alone. concepts: (N, 384), the teacher's prototypes."""

    def __init__(self, concepts: Tensor) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.POOLED_WIDTH)
        self.vector, self.name = (nn.Linear(sizes.POOLED_WIDTH, WIDTH) for _ in range(2))
        self.concepts = nn.Parameter(concepts.clone())

    def forward(self, middle: Tensor) -> tuple[Tensor, Tensor]:
        """(B, POOLED_WIDTH) to guesses at the teacher's vector, (B, 384), and logits over the things, (B, N)."""
        middle = self.norm(middle)
        named = 16.0 * F.normalize(self.name(middle), dim=-1) @ F.normalize(self.concepts, dim=-1).T
        return F.normalize(self.vector(middle), dim=-1), named


class Training:
    """CLIP, and what reads its middle; from names.pt, or once it has a memory from clip.pt."""

    def __init__(self, path: Path, source: Source, teacher: Teacher, steps: int) -> None:
        torch.manual_seed(2)
        self.path, self.source, self.steps, self.step = path, source, steps, 0
        encoders = TextEncoders.untrained(path.parent)
        self.tokenizer, self.clip = encoders.clip_tokenizer, encoders.clip
        self.meaning = Meaning(source.calls.lessons.prototypes)
        self.remembers = path.name == "clip.pt"
        self.optimizer = self._optimizer()
        if (kept := checkpoint.load(path)) is not None:
            self._take(kept)
        elif self.remembers:
            self._take(torch.load(path.with_name("names.pt"), weights_only=True), weights_alone=True)
            self.remember()
        else:
            start_embeddings(self.tokenizer, self.clip.get_input_embeddings(), 0.04, teacher)

    def _optimizer(self) -> Muon:
        memory = self.memory.mlp.fc1.weight, self.memory.mlp.fc2.weight
        matrices = [p for p in hidden_matrices(self.clip) if not any(p is weight for weight in memory)]
        chosen = {id(p) for p in matrices}
        others = [p for module in (self.clip, self.meaning) for p in module.parameters() if id(p) not in chosen]
        self.parameters = [*matrices, *others]
        rate = CODES_RATE if self.remembers else 1.0
        return Muon(matrices, others, lr=0.02 * rate, adam_lr=2e-3 * rate, decay=0.0)

    def _take(self, kept: dict[str, Any], weights_alone: bool = False) -> None:
        self.clip.load_state_dict(kept["clip"])
        if "meaning" in kept:
            self.meaning.load_state_dict(kept["meaning"])
        if weights_alone or "optimizer" not in kept:
            return
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]

    @property
    def memory(self) -> nn.Module:
        """The layer above the middle."""
        return self.clip.encoder.layers[MEANING_LAYER]

    @torch.no_grad()
    def remember(self) -> None:
        """Makes a memory of the layer above the middle; what comes after it begins as the identity."""
        labels = [concept.label for concept in self.source.calls.names.concepts]
        middle = torch.cat([self._read_part(labels[i : i + PART])[1] for i in range(0, len(labels), PART)])
        length = self.meaning.name(self.meaning.norm(middle)).norm(dim=-1).mean()
        own = F.normalize(self.meaning.concepts, dim=-1)
        self.memory.layer_norm2.load_state_dict(self.meaning.norm.state_dict())
        keys, values, things = self.memory.mlp.fc1, self.memory.mlp.fc2, len(own)
        keys.weight[:things] = GAIN * own @ self.meaning.name.weight / length
        keys.bias[:things] = GAIN * (own @ self.meaning.name.bias / length - THRESHOLD)
        for tensor in (values.weight, values.bias):
            tensor.zero_()
        values.weight[:, :things] = STRENGTH * middle.std() * self.source.known.T
        for layer in self.clip.encoder.layers[MEANING_LAYER:]:
            layer.self_attn.out_proj.weight.zero_()
            layer.self_attn.out_proj.bias.zero_()
        for layer in self.clip.encoder.layers[MEANING_LAYER + 1 :]:
            layer.mlp.fc2.weight.zero_()
            layer.mlp.fc2.bias.zero_()
        self.clip.final_layer_norm.reset_parameters()

    def write(self) -> None:
        parts = {name: getattr(self, name).state_dict() for name in ("clip", "meaning", "optimizer")}
        checkpoint.save(self.path, {**parts, "step": self.step})

    def advance(self, workers: Workers) -> float:
        """One step of the optimizer; returns the loss."""
        loss = workers.gradients(self.parameters, BATCHES_A_STEP)
        for group in self.optimizer.param_groups:
            group["scale"] = schedule(self.step, self.steps)
        self.optimizer.step()
        self.step += 1
        return loss

    def loss(self, rng: Random) -> Tensor:
        """Of one batch; run by several threads at once."""
        source, lessons = self.source, self.source.calls.lessons
        things, said, about = source.calls.draw(CALLS, rng)
        chosen = torch.tensor([rng.randrange(len(lessons.texts)) for _ in range(DICTIONARY)])
        drawn = [scenes.random_scene(rng, len(source.known), SINGLE_SHARE) for _ in range(CAPTIONS)]
        asked = [captions.caption(scene, source.calls.names, rng) for scene in drawn] if self.remembers else []
        pooled, middle = self.read([*said, *(lessons.texts[int(i)] for i in chosen), *asked])
        meant, named = self.meaning(middle)
        opinion, dictionary = lessons.opinion(chosen), slice(CALLS, CALLS + DICTIONARY)
        loss = (
            F.cross_entropy(named[:CALLS], things)
            + 0.5 * F.cross_entropy(named[dictionary], opinion)
            + meaning_loss(meant[:CALLS], about)
            + meaning_loss(meant[dictionary], lessons.vectors[chosen].float())
        )
        if not self.remembers:
            return loss
        near = -source.distances(pooled[dictionary]) / SHARPNESS
        scattered = (pooled[-CAPTIONS:] - source.codes(drawn)).square().sum(-1).mean() / source.spread
        return loss + self._calls_loss(pooled[:CALLS], things) + 0.15 * F.cross_entropy(near, opinion) + 3 * scattered

    def _calls_loss(self, pooled: Tensor, things: Tensor) -> Tensor:
        """To be near the thing's code, and nearer than to any other."""
        distances = self.source.distances(pooled)
        return distances.gather(1, things[:, None]).mean() + 0.3 * F.cross_entropy(-distances / SHARPNESS, things)

    def read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Pooled vectors and the middle's at the end token, both (B, POOLED_WIDTH) float32."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [self._read_part([texts[i] for i in order[k : k + PART]]) for k in range(0, len(order), PART)]
        back = torch.tensor(order).argsort()
        pooled, middle = (torch.cat(outputs)[back] for outputs in zip(*parts, strict=True))
        return pooled, middle

    def _read_part(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = padded(self.tokenizer, texts, sizes.CLIP_TOKENS, False)
        with torch.autocast("cpu", torch.bfloat16):
            read = self.clip(input_ids=ids, output_hidden_states=True)
        end = (ids == self.tokenizer.eos_token_id).int().argmax(-1)
        middle = read.hidden_states[MEANING_LAYER][torch.arange(len(ids)), end]
        return read.pooler_output.float(), middle.float()


def meaning_loss(guessed: Tensor, wanted: Tensor) -> Tensor:
    """Cosine distance, and the distance of all similarities within the batch; (B, 384) both, of unit length."""
    similarities = (guessed @ guessed.T - wanted @ wanted.T).square().mean()
    return 3.0 * (1 - (guessed * wanted).sum(-1)).mean() + 20.0 * similarities


@torch.no_grad()
def right_share(training: Training) -> float:
    """Of all labels, how many are named rightly; with a memory, how many give a code nearest to their own thing's."""
    labels = [concept.label for concept in training.source.calls.names.concepts]
    pooled, middle = training.read(labels)
    _, named = training.meaning(middle)
    logits = -training.source.distances(pooled) if training.remembers else named
    return float((logits.argmax(-1) == torch.arange(len(labels))).float().mean())


def train(path: Path, source: Source, teacher: Teacher, steps: int) -> None:
    """Goes on from `path` to `steps`: names.pt, or clip.pt, which begins as names.pt with a memory."""
    training = Training(path, source, teacher, steps)
    draws = [Random(7 * training.step + i) for i in range(THREADS)]
    keeper = checkpoint.Keeper(training.write)
    with Workers(training.parameters, lambda thread: training.loss(draws[thread]), THREADS) as workers:
        while training.step < steps:
            loss = training.advance(workers)
            if training.step % 20 == 0:
                log.info("%s %d/%d loss %.3f", path.stem, training.step, steps, loss)
            if training.step % 200 == 0:
                log.info("%s: %.3f of labels right", path.stem, right_share(training))
            keeper.after_step()
    training.write()
