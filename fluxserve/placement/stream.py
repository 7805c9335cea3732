"""Weights that pass through the device: two slots, copies one block ahead, nothing ever copied back.

Blocks run in a fixed order, again and again. Block i lies in slot i mod 2; as soon as it has run, block i + 2 is copied
into its slot while block i + 1 runs. The last blocks of a pass fetch the first ones of the next, so that a step begins
with its weights there. Knows nothing of what a block computes, and nothing of CUDA or files: see `Copier`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from fluxserve.placement.bind import bind
from fluxserve.placement.flat import FlatLayout
from fluxserve.placement.plan import SLOTS


class BlockSource(Protocol):
    """A block's weights on the host: pinned memory, or a file."""

    @property
    def layout(self) -> FlatLayout: ...

    def fill(self, buffer: Tensor) -> None:
        """Writes the weights, laid out, into a buffer of `layout.nbytes` uint8; may return before that is done on a
        device that orders it by stream."""
        ...


class Copier(Protocol):
    """The one way by which weights reach the device; it keeps copying and computing apart, and counts.

    copied_bytes: all that `copy` has moved so far.
    """

    copied_bytes: int

    def copy(self, source: BlockSource, slot: int, buffer: Tensor) -> None:
        """Begins to fill a slot; waits for `release` of it first."""
        ...

    def wait(self, slot: int) -> None:
        """Makes what is computed from now on wait until the slot is filled."""
        ...

    def release(self, slot: int) -> None:
        """What has been asked of the device so far is the last to use the slot's present content."""
        ...


class Slots:
    """Two buffers on the device and what each holds. nbytes: of the largest block that will pass through."""

    def __init__(self, copier: Copier, nbytes: int, device: torch.device) -> None:
        self.copier = copier
        self.buffers = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(SLOTS)]
        self._holds: list[BlockSource | None] = [None] * SLOTS

    def fetch(self, source: BlockSource, slot: int) -> None:
        """Begins to copy, unless it is there or on its way."""
        if self._holds[slot] is not source:
            self._holds[slot] = source
            self.copier.copy(source, slot, self.buffers[slot])


class StreamedPass:
    """Blocks that run one after the other, each from its slot. following: the pass after this one; itself if None."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        sources: Sequence[BlockSource],
        slots: Slots,
        following: StreamedPass | None = None,
    ) -> None:
        self.sources = sources
        self._slots = slots
        self._following = following or self
        for i, (block, source) in enumerate(zip(blocks, sources, strict=True)):
            bind(block, source.layout.views(slots.buffers[i % SLOTS]))
            block.register_forward_pre_hook(lambda *_, i=i: self._before(i))
            block.register_forward_hook(lambda *_, i=i: self._after(i))

    def _before(self, i: int) -> None:
        """Copies only where no earlier block has asked for it: at the first block of the first pass."""
        for ahead in range(i, min(i + SLOTS, len(self.sources))):
            self._slots.fetch(self.sources[ahead], ahead % SLOTS)
        self._slots.copier.wait(i % SLOTS)

    def _after(self, i: int) -> None:
        slot = i % SLOTS
        self._slots.copier.release(slot)
        following = self.sources[i + SLOTS :] or self._following.sources[slot:]
        if following:
            self._slots.fetch(following[0], slot)
