"""What the text encoders learn from beside captions: descriptions and dictionary texts with the teacher's vectors.

Also finds, among the dictionary texts, those that plainly describe one of the concepts ("paraphrases").
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.train_demo import checkpoint, sources, wordnet
from scripts.train_demo.captions import Names
from scripts.train_demo.teacher import Teacher

TEMPERATURE = 0.06
"""Temperature of the teacher's opinion which concept a text means."""

NOUNS = 20_000
"""How many senses are taught: the teacher takes some minutes for these."""

PLAIN, CLEAR = 0.55, 0.04
"""A paraphrase is at least this near its concept, and this much nearer than the next one."""


@dataclass(frozen=True)
class Lessons:
    """texts with vectors (N, 384); prototypes (concepts, 384): the mean of all a concept is called.

    described: (M, 384), of all descriptions in the order of Names.described. All unit length.
    """

    texts: list[str]
    vectors: Tensor
    prototypes: Tensor
    described: Tensor

    def opinion(self, chosen: Tensor) -> Tensor:
        """The teacher's distribution over the concepts for some texts, (B, concepts)."""
        return torch.softmax(self.vectors[chosen].float() @ self.prototypes.T / TEMPERATURE, dim=-1)

    def paraphrases(self) -> dict[int, list[str]]:
        """Texts by the concept they describe."""
        found: dict[int, list[str]] = {}
        for start in range(0, len(self.texts), 4096):
            near = (self.vectors[start : start + 4096].float() @ self.prototypes.T).topk(2)
            plain = (near.values[:, 0] > PLAIN) & (near.values[:, 0] - near.values[:, 1] > CLEAR)
            for i in plain.nonzero()[:, 0].tolist():
                found.setdefault(int(near.indices[i, 0]), []).append(self.texts[start + i])
        return found


def make(fetched: Path, path: Path, names: Names) -> Lessons:
    """Asks the teacher once, and again when there are more descriptions; kept in `path`."""
    phrases = [phrase for described in names.described for phrase in described]
    kept = checkpoint.load(path)
    if kept is None or len(kept["described"]) != len(phrases):
        teacher, nouns = Teacher(sources.teacher_folder(fetched)), wordnet.nouns(sources.wordnet_folder(fetched))
        kept = _ask(teacher, nouns, names, phrases)
        checkpoint.save(path, kept)
    return Lessons(**kept)


def _ask(teacher: Teacher, nouns: list[wordnet.Noun], names: Names, phrases: list[str]) -> dict[str, Any]:
    nouns = Random(3).sample(nouns, min(NOUNS, len(nouns)))
    texts = [", ".join(noun.words) for noun in nouns] + [noun.meaning for noun in nouns]
    described = teacher.embed(phrases)
    return {
        "texts": texts,
        "vectors": teacher.embed(texts).half(),
        "prototypes": prototypes(teacher, names, described),
        "described": described.half(),
    }


def prototypes(teacher: Teacher, names: Names, described: Tensor) -> Tensor:
    """(concepts, 384): label three times, every other name and description once, all tags together once."""
    texts, owners = [], []
    for i, concept in enumerate(names.concepts):
        called = [concept.label] * 3 + [*names.other[i]] + [" ".join(concept.tags) or concept.label]
        texts += called
        owners += [i] * len(called)
    owners += [i for i, phrases in enumerate(names.described) for _ in phrases]
    total = torch.zeros(len(names.concepts), 384)
    return F.normalize(total.index_add_(0, torch.tensor(owners), torch.cat([teacher.embed(texts), described])), dim=-1)
