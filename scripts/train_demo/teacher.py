"""The sentence encoder that teaches: all-MiniLM-L6-v2, mean of its states, normalised. Runs offline from a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from scripts.train_demo.precision import mixed

WIDTH = 384
BATCH = 128


class Teacher:
    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N, 384) unit vectors in the order of `texts`; sorted by length on the way, to waste no padding."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), WIDTH)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            out[chosen] = self._batch([texts[i] for i in chosen])
        return out

    def _batch(self, texts: list[str]) -> Tensor:
        tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=48, return_tensors="pt")
        with mixed(torch.device("cpu")):
            states = self._model(**tokens).last_hidden_state.float()  # (B, T, 384)
        mask = tokens["attention_mask"].unsqueeze(-1)
        return F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def meaning_loss(guessed: Tensor, vectors: Tensor) -> Tensor:
    """Of a student's guesses at the teacher's vectors, (B, 384) both, of unit length.

    Their cosine distance, and the distance of all similarities within the batch.
    """
    similarities = (guessed @ guessed.T - vectors @ vectors.T).square().mean()
    return 3.0 * (1 - (guessed * vectors).sum(-1)).mean() + 20.0 * similarities
