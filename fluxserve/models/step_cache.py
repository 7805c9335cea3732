"""Steps that run the first block alone: where it changes its input as at an earlier step, the others do as well.

The first-block cache of chengzeyi/ParaAttention (`first_block_cache`). Each sample decides for itself, whoever shares
its batch. Lossy: the larger the threshold, the more is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Rows = list[int] | slice
"""Of a batch."""


@dataclass(frozen=True)
class BlockChanges:
    """What one sample's image tokens gained at the last step that ran all blocks: in the first, in the others.

    first, others: (I, hidden). skipped: steps so far that ran the first block alone.
    """

    first: Tensor
    others: Tensor
    skipped: int = 0


class BlockCache:
    """Of one sample and prompt. threshold: how far the first block's change may be from the remembered one, relative.

    What a step finds counts once it is kept: a step that fails changes nothing.
    """

    def __init__(self, threshold: float) -> None:
        self.changes: BlockChanges | None = None
        self._threshold = threshold
        self._found: BlockChanges | None = None

    @property
    def skipped(self) -> int:
        """Steps so far that ran the first block alone."""
        return self.changes.skipped if self.changes else 0

    def reuse(self, first: Tensor) -> Tensor | None:
        """What the other blocks add; None: they must run. first: (I, hidden), what the first block adds."""
        known = self.changes
        if known is None or not _mean(first - known.first) < self._threshold * _mean(known.first):
            return None
        self._found = BlockChanges(known.first, known.others, known.skipped + 1)
        return known.others

    def remember(self, first: Tensor, others: Tensor) -> None:
        self._found = BlockChanges(first, others, self.skipped)

    def keep(self) -> None:
        """The step has worked as a whole."""
        self.changes = self._found


def _mean(change: Tensor) -> float:
    return float(change.float().abs().mean())


def run_others(
    before: Tensor, after: Tensor, others: Callable[[Rows], Tensor], caches: Sequence[BlockCache | None]
) -> Tensor:
    """The image tokens behind the last block, (B, I, hidden), running blocks only for samples that need them.

    before, after: around the first block. others: runs the other blocks for some rows of the batch. caches: None for a
    sample that runs all of them.
    """
    first = after - before
    known = [None if cache is None else cache.reuse(own) for cache, own in zip(caches, first, strict=True)]
    fresh = [row for row, added in enumerate(known) if added is None]
    behind = [after[row] if added is None else after[row] + added for row, added in enumerate(known)]
    if fresh:
        ran = others(fresh if len(fresh) < len(known) else slice(None))
        for row, own in zip(fresh, ran, strict=True):
            behind[row] = own
            cache = caches[row]
            if cache is not None:
                cache.remember(first[row], own - after[row])
    return torch.stack(behind)
