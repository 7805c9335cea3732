"""Teaches CLIP to give for a description what it gives for the label, once the transformer has learned to paint.

The pooled vector decides what is painted: with the label's vector beside a description's states the picture is right
as often as with both from the label. A vector between several labels paints a mixture of them. So the vectors of labels
stay where the transformer knows them, and those of other wordings move there. Transformer and T5 are left as they are.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.train_demo import captions, checkpoint, scenes, sizes
from scripts.train_demo.encoders import TextEncoders, padded
from scripts.train_demo.lessons import Lessons
from scripts.train_demo.muon import Muon
from scripts.train_demo.text import hidden_matrices
from scripts.train_demo.workers import THREADS, Workers

log = logging.getLogger(__name__)

BATCH = 128
KEPT_SHARE = 0.25
"""Of the texts, captions of any scene, whose vectors stay as they are."""
SHARPNESS = 0.1
"""Temperature of the choice among all labels, in units of their mean squared distance."""


class Pairs:
    """Draws what is said and what it should be understood as."""

    def __init__(self, names: captions.Names, lessons: Lessons, seed: int) -> None:
        self._names, self._paraphrases, self._rng = names, lessons.paraphrases(), Random(seed)

    def kept(self, count: int) -> list[str]:
        n = len(self._names.concepts)
        drawn = [scenes.random_scene(self._rng, n, 0.5) for _ in range(count)]
        return [captions.caption(scene, self._names, self._rng) for scene in drawn]

    def moved(self, count: int) -> tuple[list[str], list[int]]:
        """Descriptions, and the things they are of."""
        things = [self._rng.randrange(len(self._names.concepts)) for _ in range(count)]
        return [self._description(thing) for thing in things], things

    def _description(self, thing: int) -> str:
        found = self._paraphrases.get(thing)
        if found and self._rng.random() < 0.15:
            return self._rng.choice(found)
        return self._names.description(thing, self._rng)


class Training:
    """CLIP as it learns, and as it was: `known` is what it gave for every label, (N, POOLED_WIDTH)."""

    def __init__(self, encoders: TextEncoders, names: captions.Names) -> None:
        self.encoders = encoders
        self.before = copy.deepcopy(encoders).requires_grad_(False)
        with torch.no_grad():
            self.known = pooled(self.before, [concept.label for concept in names.concepts])
        self.spread = 2 * self.known.var(0).sum()

    def loss(self, pairs: Pairs) -> Tensor:
        """Of one batch; run by several threads at once."""
        kept = int(BATCH * KEPT_SHARE)
        same = pairs.kept(kept)
        said, things = pairs.moved(BATCH - kept)
        with torch.autocast("cpu", torch.bfloat16):
            now = pooled(self.encoders, [*same, *said])
            with torch.no_grad():
                then = pooled(self.before, same)
        wanted = torch.tensor(things)
        distances = torch.cdist(now[kept:], self.known).square() / self.spread  # (B, N)
        choice = F.cross_entropy(-distances / SHARPNESS, wanted)
        staying = (now[:kept] - then).square().sum(-1).mean() / self.spread
        return 4.0 * staying + distances.gather(1, wanted[:, None]).mean() + 0.2 * choice


def pooled(encoders: TextEncoders, texts: Sequence[str]) -> Tensor:
    """CLIP's vectors alone, (B, POOLED_WIDTH) float32."""
    ids = padded(encoders.clip_tokenizer, texts, sizes.CLIP_TOKENS, False)
    return encoders.clip(input_ids=ids).pooler_output.float()  # type: ignore[no-any-return]


def train(state: Path, names: captions.Names, lessons: Lessons, steps: int) -> None:
    """Takes the averaged encoders of state/transformer.pt and writes them back there after `steps`."""
    torch.manual_seed(8)
    content = torch.load(state / "transformer.pt", weights_only=True)
    encoders = TextEncoders.untrained(state)
    encoders.load_state_dict(content["averaged_encoders"])
    training = Training(encoders, names)
    parameters = list(encoders.clip.parameters())
    matrices = [p for p in hidden_matrices(encoders) if any(p is own for own in parameters)]
    chosen = {id(p) for p in matrices}
    optimizer = Muon(matrices, [p for p in parameters if id(p) not in chosen], lr=0.01, adam_lr=1e-3, decay=0.0)
    sources = [Pairs(names, lessons, i) for i in range(THREADS)]
    with Workers(parameters, lambda thread: training.loss(sources[thread]), THREADS) as workers:
        for step in range(steps):
            loss = workers.gradients(parameters, 2)
            for group in optimizer.param_groups:
                group["scale"] = min(1.0, (step + 1) / 30, 2 * (1 - step / steps))
            optimizer.step()
            if step % 50 == 0:
                log.info("align %d/%d loss %.3f", step, steps, loss)
    learned = encoders.state_dict()
    checkpoint.save(state / "transformer.pt", {**content, "encoders": learned, "averaged_encoders": learned})
