"""Teaches CLIP to give the code of what a text asks for (codes.py), however it is said, before any picture is drawn.

First what words mean: after MEANING_LAYER layers linear maps must name what is asked for, of two things both, tell the
arrangement, and give the teacher's sentence vector. Then the layers above become memories, in closed form (memory.py),
that turn the names into codes; and all layers learn together: of single things the code must be the nearest of all, of
captions that of the scene.
"""

from __future__ import annotations

import logging
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.train_demo import captions, checkpoint, memory, scenes, sizes
from scripts.train_demo.autoencoder import schedule
from scripts.train_demo.codes import ARRANGEMENT, COMPONENTS, Codes, arrangement, normalised
from scripts.train_demo.encoders import TextEncoders, hidden_matrices, padded, start_embeddings
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.precision import mixed
from scripts.train_demo.teacher import WIDTH, Teacher, meaning_loss
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

CALLS, CAPTIONS, DICTIONARY = 120, 48, 24
"""Texts of each kind in a batch."""
PART = 48
"""Texts read at once, of like length: most are short."""
ARRANGEMENT_WEIGHT = 4.0
"""How much more the few numbers of the arrangement count than those of the looks."""
CODES_RATE = 0.1
"""The learning rates once there is a memory, in units of those before."""
BATCHES_A_STEP = 2
SINGLE_SHARE = 0.45
MEANING_LAYER = 3
"""After which layer the teacher's vector must be found."""
IGNORED = -100
"""What cross_entropy ignores."""
TEMPERATURE = 0.1
"""Of the choice among all things, in units of the mean squared distance of their codes."""


class Calls:
    """Draws single things and ways to ask for each; with a description's own vector, else the prototype."""

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


class Source:
    """What the batches are drawn from.

    known: the codes of all things alone, (N, POOLED_WIDTH). spread: the mean squared distance of two of them.
    """

    def __init__(self, codes: Codes, calls: Calls) -> None:
        self.codes, self.calls = codes, calls
        self.known = codes.alone()
        self.spread = 2 * self.known.var(0).sum()

    def distances(self, vectors: Tensor) -> Tensor:
        """Squared, of (B, POOLED_WIDTH) to all things, in units of the spread, (B, N)."""
        return torch.cdist(vectors, self.known).square() / self.spread


class Reading(NamedTuple):
    """vector: guesses at the teacher's, (B, 384). first: logits over the things, (B, N).

    second: the same of the other one of two things, (B, N + 1), the last for none. arrangement: (B, ARRANGEMENT).
    """

    vector: Tensor
    first: Tensor
    second: Tensor
    arrangement: Tensor


class Meaning(nn.Module):
    """Linear readings of CLIP's middle. concepts: (N, 384), the teacher's prototypes.

    directions: (COMPONENTS / 2, POOLED_WIDTH), in which the code tells the second thing; its name is read there alone.
    """

    directions: Tensor

    def __init__(self, concepts: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(sizes.POOLED_WIDTH)
        self.vector, self.name = (nn.Linear(sizes.POOLED_WIDTH, WIDTH) for _ in range(2))
        self.second = nn.Linear(len(directions), WIDTH)
        self.arrangement = nn.Linear(sizes.POOLED_WIDTH, ARRANGEMENT)
        self.concepts = nn.Parameter(concepts.clone())
        self.nothing = nn.Parameter(0.05 * torch.randn(1, WIDTH))
        self.register_buffer("directions", directions, persistent=False)

    def forward(self, middle: Tensor) -> Reading:
        """middle: (B, POOLED_WIDTH)."""
        normed, plain = self.norm(middle), normalised(middle)
        return Reading(
            F.normalize(self.vector(normed), dim=-1),
            _logits(self.name(normed), self.concepts),
            _logits(self.second(plain @ self.directions.T), torch.cat([self.concepts, self.nothing])),
            self.arrangement(normed),
        )


def _logits(names: Tensor, concepts: Tensor) -> Tensor:
    return 16.0 * F.normalize(names, dim=-1) @ F.normalize(concepts, dim=-1).T


class Training:
    """CLIP, and what reads its middle: in meaning.pt without a memory, in clip.pt with one."""

    def __init__(self, state: Path, source: Source, teacher: Teacher, steps: int, has_memory: bool) -> None:
        torch.manual_seed(2)
        self.path = state / ("clip.pt" if has_memory else "meaning.pt")
        self.source, self.steps, self.step, self.has_memory = source, steps, 0, has_memory
        encoders = TextEncoders.untrained(state)
        self.tokenizer, self.clip = encoders.clip_tokenizer, encoders.clip
        self.meaning = Meaning(source.calls.lessons.prototypes, source.codes.second)
        if not has_memory:
            self.clip.encoder.layers = self.clip.encoder.layers[:MEANING_LAYER]
        self.parameters, self.optimizer = self._optimizer()
        if (kept := checkpoint.load(self.path)) is not None:
            self._take(kept)
        elif has_memory:
            below = torch.load(state / "meaning.pt", weights_only=True)
            self.clip.load_state_dict(below["clip"], strict=False)
            self.meaning.load_state_dict(below["meaning"])
            self.build_memory()
        else:
            start_embeddings(self.tokenizer, self.clip.get_input_embeddings(), 0.04, teacher)

    def _optimizer(self) -> tuple[list[nn.Parameter], Muon]:
        """All parameters, and what moves them. Muon's steps are as large in all directions: too rough for a memory."""
        layers = self.clip.encoder.layers[MEANING_LAYER:]
        memories = {id(part.weight) for layer in layers for part in (layer.mlp.fc1, layer.mlp.fc2)}
        matrices = [p for p in hidden_matrices(self.clip) if id(p) not in memories]
        chosen = {id(p) for p in matrices}
        others = [p for module in (self.clip, self.meaning) for p in module.parameters() if id(p) not in chosen]
        rate = CODES_RATE if self.has_memory else 1.0
        return [*matrices, *others], Muon(matrices, others, lr=0.02 * rate, adam_lr=2e-3 * rate, decay=0.0)

    def _take(self, kept: dict[str, Any]) -> None:
        self.clip.load_state_dict(kept["clip"])
        if "meaning" in kept:
            self.meaning.load_state_dict(kept["meaning"])
        if kept.get("optimizer") is not None:
            self.optimizer.load_state_dict(kept["optimizer"])
        self.step = kept["step"]

    def build_memory(self) -> None:
        """Of the layers above the middle; CLIP's last norm begins anew."""
        source, rng = self.source, Random(11)
        things = len(source.known)
        drawn = [scenes.random_scene(rng, things, 0.3) for _ in range(3000)]
        drawn = [scene for scene in drawn if len(scene.concepts) < 3]
        names = [concept.label for concept in source.calls.names.concepts]
        labels = self._texts(names, [scenes.Scene((i,), "single") for i in range(things)])
        told = self._texts([captions.caption(scene, source.calls.names, rng) for scene in drawn], drawn)
        memory.build(self.clip.encoder.layers[MEANING_LAYER:], self.meaning, source.codes, labels, told)
        self.clip.final_layer_norm.reset_parameters()

    @torch.no_grad()
    def _texts(self, said: list[str], asked: list[scenes.Scene]) -> memory.Texts:
        """Of one thing or two."""
        first, second = zip(*((*scene.concepts, memory.NONE)[:2] for scene in asked), strict=True)
        told = torch.stack([arrangement(scene) - arrangement(memory.PLAIN) for scene in asked])
        return memory.Texts(self.read(said)[1], torch.tensor(first), torch.tensor(second), told)

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
        opinion, vectors = lessons.opinion(chosen), torch.cat([lessons.vectors[chosen].float(), about])
        drawn = [scenes.random_scene(rng, len(source.known), SINGLE_SHARE) for _ in range(CAPTIONS)]
        told = [captions.caption(scene, source.calls.names, rng) for scene in drawn]
        pooled, middle = self.read([*(lessons.texts[int(i)] for i in chosen), *said, *told])
        asked = [*(scenes.Scene((thing,), "single") for thing in things.tolist()), *drawn]
        loss = self._meaning_loss(self.meaning(middle), asked, opinion, vectors)
        if not self.has_memory:
            return loss
        pooled, captioned = pooled[:-CAPTIONS], pooled[-CAPTIONS:]
        return loss + self._choice_loss(pooled, things, opinion) + 3.0 * self._code_error(captioned, drawn)

    def _meaning_loss(self, read: Reading, asked: list[scenes.Scene], opinion: Tensor, vectors: Tensor) -> Tensor:
        """Of DICTIONARY texts with the teacher's opinion, then CALLS, then captions; vectors are of the former two."""
        first = torch.tensor([scene.concepts[0] for scene in asked])
        arrangements = torch.stack([arrangement(scene) for scene in asked])
        return (
            F.cross_entropy(read.first[DICTIONARY:], first, reduction="sum") / CALLS
            + 0.5 * F.cross_entropy(read.first[:DICTIONARY], opinion)
            + F.cross_entropy(read.second[DICTIONARY:], self._second(asked), reduction="sum") / CALLS
            + (read.arrangement[DICTIONARY:] - arrangements).square().sum() / CALLS
            + meaning_loss(read.vector[:DICTIONARY], vectors[:DICTIONARY])
            + meaning_loss(read.vector[DICTIONARY : DICTIONARY + CALLS], vectors[DICTIONARY:])
        )

    def _second(self, asked: list[scenes.Scene]) -> Tensor:
        """Of two things the other one, else none; of three nothing is asked."""
        none = {1: len(self.source.known), 3: IGNORED}
        return torch.tensor([s.concepts[1] if len(s.concepts) == 2 else none[len(s.concepts)] for s in asked])

    def _choice_loss(self, pooled: Tensor, things: Tensor, opinion: Tensor) -> Tensor:
        """To be near the thing's code, and nearer than to any other."""
        distances = self.source.distances(pooled)
        near, logits = distances[-CALLS:].gather(1, things[:, None]).mean(), -distances / TEMPERATURE
        named = F.cross_entropy(logits[-CALLS:], things)
        return near + 0.3 * named + 0.15 * F.cross_entropy(logits[:-CALLS], opinion)

    def _code_error(self, pooled: Tensor, drawn: list[scenes.Scene]) -> Tensor:
        """Squared distance to the scenes' codes, in units of the spread."""
        codes = self.source.codes
        squares = ((pooled - codes(drawn)) @ codes.rotation.T).square()
        weighted = squares[:, :COMPONENTS].sum(-1) + ARRANGEMENT_WEIGHT * squares[:, COMPONENTS:].sum(-1)
        return weighted.mean() / self.source.spread

    def read(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Pooled vectors and the middle's at the end token, both (B, POOLED_WIDTH) float32."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        parts = [self._read_part([texts[i] for i in order[k : k + PART]]) for k in range(0, len(order), PART)]
        back = torch.tensor(order).argsort()
        pooled, middle = (torch.cat(outputs)[back] for outputs in zip(*parts, strict=True))
        return pooled, middle

    def _read_part(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        ids = padded(self.tokenizer, texts, sizes.CLIP_TOKENS, False)
        with mixed(torch.device("cpu"), cached=torch.is_grad_enabled()):  # the cache is all threads'
            read = self.clip(input_ids=ids, output_hidden_states=True)
        end = (ids == self.tokenizer.eos_token_id).int().argmax(-1)
        middle = read.hidden_states[MEANING_LAYER][torch.arange(len(ids)), end]
        return read.pooler_output.float(), middle.float()


@torch.no_grad()
def right_share(training: Training) -> float:
    """Of all labels, how many are named rightly; with a memory, how many give a code nearest to their own thing's."""
    labels = [concept.label for concept in training.source.calls.names.concepts]
    pooled, middle = training.read(labels)
    logits = -training.source.distances(pooled) if training.has_memory else training.meaning(middle).first
    return float((logits.argmax(-1) == torch.arange(len(labels))).float().mean())


def train(state: Path, source: Source, teacher: Teacher, steps: int, has_memory: bool) -> None:
    """Goes on from state/meaning.pt, or with a memory from state/clip.pt, which begins as meaning.pt, to `steps`."""
    training = Training(state, source, teacher, steps, has_memory)
    if training.step >= steps:
        return
    draws, what = [Random(7 * training.step + i) for i in range(THREADS)], training.path.stem
    keeper = checkpoint.Keeper(training.write)
    with Workers(training.parameters, lambda thread: training.loss(draws[thread]), THREADS) as workers:
        while training.step < steps:
            loss = training.advance(workers)
            if training.step % 20 == 0:
                log.info("%s %d/%d loss %.3f", what, training.step, steps, loss)
            if training.step % 200 == 0:
                log.info("%s: %.3f of labels right", what, right_share(training))
            keeper.after_step()
    training.write()
