"""Teaches CLIP to give the code of what a text asks for (codes.py), however it is said, before any picture is drawn.

First what words mean: after MEANING_LAYER layers linear maps must name what single things are called and described as,
and give the teacher's sentence vector. Then the next layer becomes a memory, in closed form: a unit for every thing
that fires where the thing is named and adds its code (the key-value view of feed-forward layers is that of arXiv
2012.14913). All layers then learn together: of single things the code must be the nearest of all, of captions that of
the scene, which the last layer can put together from what the memory added at every word.
"""

from __future__ import annotations

import logging
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.train_demo import captions, checkpoint, scenes, sizes
from scripts.train_demo.autoencoder import schedule
from scripts.train_demo.codes import COMPONENTS, Codes
from scripts.train_demo.encoders import TextEncoders, hidden_matrices, padded, start_embeddings
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.teacher import WIDTH, Teacher, meaning_loss
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

CALLS, CAPTIONS, DICTIONARY = 120, 48, 24
"""Texts of each kind in a batch."""
PART = 48
"""Texts read at once, of like length: most are short."""
GAIN, THRESHOLD = 40.0, 0.475
"""A unit of the memory gets about GAIN * (cosine - THRESHOLD) of the name read and the thing's own."""
STRENGTH = 0.9
"""What the memory adds for an input of 1, in units of the deviation of what it is added to."""
ARRANGEMENT_WEIGHT = 10.0
"""How much more the few numbers of the arrangement count than those of the looks."""
CODES_RATE = 0.25
"""The learning rates once there is a memory, in units of those before."""
BATCHES_A_STEP = 2
SINGLE_SHARE = 0.45
MEANING_LAYER = 3
"""After which layer the teacher's vector must be found."""
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
    """CLIP, and what reads its middle: in meaning.pt without a memory, in clip.pt with one."""

    def __init__(self, state: Path, source: Source, teacher: Teacher, steps: int, has_memory: bool) -> None:
        torch.manual_seed(2)
        self.path = state / ("clip.pt" if has_memory else "meaning.pt")
        self.source, self.steps, self.step, self.has_memory = source, steps, 0, has_memory
        encoders = TextEncoders.untrained(state)
        self.tokenizer, self.clip = encoders.clip_tokenizer, encoders.clip
        self.meaning = Meaning(source.calls.lessons.prototypes)
        self.parameters, self.optimizer = self._optimizer()
        if (kept := checkpoint.load(self.path)) is not None:
            self._take(kept)
        elif has_memory:
            self._take(torch.load(state / "meaning.pt", weights_only=True) | {"optimizer": None, "step": 0})
            self.build_memory()
        else:
            start_embeddings(self.tokenizer, self.clip.get_input_embeddings(), 0.04, teacher)

    def _optimizer(self) -> tuple[list[nn.Parameter], Muon]:
        """All parameters, and what moves them. Muon's steps are as large in all directions: too rough for a memory."""
        memory = self.memory.mlp.fc1.weight, self.memory.mlp.fc2.weight
        matrices = [p for p in hidden_matrices(self.clip) if not any(p is weight for weight in memory)]
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

    @property
    def memory(self) -> Any:
        """The layer above the middle."""
        return self.clip.encoder.layers[MEANING_LAYER]

    @torch.no_grad()
    def build_memory(self) -> None:
        """Of the layer above the middle, in closed form; what comes after it begins as the identity."""
        labels = [concept.label for concept in self.source.calls.names.concepts]
        _, middle = self.read(labels)
        length = self.meaning.name(self.meaning.norm(middle)).norm(dim=-1).mean()
        own = F.normalize(self.meaning.concepts, dim=-1)
        upper = self.clip.encoder.layers[MEANING_LAYER:]
        silenced = [layer.self_attn.out_proj for layer in upper] + [layer.mlp.fc2 for layer in upper]
        for tensor in (tensor for linear in silenced for tensor in (linear.weight, linear.bias)):
            tensor.zero_()
        self.memory.layer_norm2.load_state_dict(self.meaning.norm.state_dict())
        keys, values, things = self.memory.mlp.fc1, self.memory.mlp.fc2, len(own)
        keys.weight[:things] = GAIN * own @ self.meaning.name.weight / length
        keys.bias[:things] = GAIN * (own @ self.meaning.name.bias / length - THRESHOLD)
        values.weight[:, :things] = STRENGTH * middle.std() * self.source.known.T
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
        opinion, vectors = lessons.opinion(chosen), torch.cat([about, lessons.vectors[chosen].float()])
        texts = [*said, *(lessons.texts[int(i)] for i in chosen)]
        if not self.has_memory:
            return self._meaning_loss(self.read(texts)[1], things, opinion, vectors)
        drawn = [scenes.random_scene(rng, len(source.known), SINGLE_SHARE) for _ in range(CAPTIONS)]
        pooled, middle = self.read([*texts, *(captions.caption(scene, source.calls.names, rng) for scene in drawn)])
        return (
            self._meaning_loss(middle[:-CAPTIONS], things, opinion, vectors)
            + self._choice_loss(pooled[:-CAPTIONS], things, opinion)
            + 3.0 * self._code_error(pooled[-CAPTIONS:], drawn)
        )

    def _meaning_loss(self, middle: Tensor, things: Tensor, opinion: Tensor, vectors: Tensor) -> Tensor:
        """middle: (CALLS + DICTIONARY, POOLED_WIDTH); of the former the things, of the latter the teacher's opinion."""
        meant, named = self.meaning(middle)
        return (
            F.cross_entropy(named[:CALLS], things)
            + 0.5 * F.cross_entropy(named[CALLS:], opinion)
            + meaning_loss(meant[:CALLS], vectors[:CALLS])
            + meaning_loss(meant[CALLS:], vectors[CALLS:])
        )

    def _choice_loss(self, pooled: Tensor, things: Tensor, opinion: Tensor) -> Tensor:
        """To be near the thing's code, and nearer than to any other."""
        distances = self.source.distances(pooled)
        near, logits = distances[:CALLS].gather(1, things[:, None]).mean(), -distances / TEMPERATURE
        named = F.cross_entropy(logits[:CALLS], things)
        return near + 0.3 * named + 0.15 * F.cross_entropy(logits[CALLS:], opinion)

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
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=torch.is_grad_enabled()):  # the cache is all threads'
            read = self.clip(input_ids=ids, output_hidden_states=True)
        end = (ids == self.tokenizer.eos_token_id).int().argmax(-1)
        middle = read.hidden_states[MEANING_LAYER][torch.arange(len(ids)), end]
        return read.pooler_output.float(), middle.float()


@torch.no_grad()
def right_share(training: Training) -> float:
    """Of all labels, how many are named rightly; with a memory, how many give a code nearest to their own thing's."""
    labels = [concept.label for concept in training.source.calls.names.concepts]
    pooled, middle = training.read(labels)
    logits = -training.source.distances(pooled) if training.has_memory else training.meaning(middle)[1]
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
