"""The order of copies, counted in the interface that real runs use."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from fluxserve.placement.copiers import ThreadCopier
from fluxserve.placement.flat import FlatLayout
from fluxserve.placement.stream import BlockSource, Slots, StreamedPass


class HostSource:
    """A Linear's weights in host memory."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weights = {name: value.detach().clone() for name, value in linear.state_dict().items()}
        self.layout = FlatLayout.of(self.weights.items())

    def fill(self, buffer: Tensor) -> None:
        self.layout.write(buffer, self.weights.items())


@dataclass
class LateCopier:
    """A device whose copies only land when they are waited for, and which notes what is asked of it in order.

    A slot that is overwritten before its release, or used before its copy, computes the wrong thing.
    """

    copied_bytes: int = 0
    events: list[tuple[str, int]] = field(default_factory=list)
    _pending: dict[int, tuple[BlockSource, Tensor]] = field(default_factory=dict)
    _in_use: set[int] = field(default_factory=set)

    def copy(self, source: BlockSource, slot: int, buffer: Tensor) -> None:
        assert slot not in self._in_use, "a slot in use was given away"
        self._pending[slot] = (source, buffer)
        buffer.fill_(255)
        self.copied_bytes += source.layout.nbytes
        self.events.append(("copy", slot))

    def wait(self, slot: int) -> None:
        if slot in self._pending:
            source, buffer = self._pending.pop(slot)
            source.fill(buffer)
        self._in_use.add(slot)
        self.events.append(("wait", slot))

    def release(self, slot: int) -> None:
        self._in_use.discard(slot)


def build(blocks: int, seed: int = 0) -> tuple[list[nn.Linear], list[HostSource], list[nn.Linear]]:
    torch.manual_seed(seed)
    resident = [nn.Linear(8, 8) for _ in range(blocks)]
    with torch.device("meta"):
        streamed = [nn.Linear(8, 8) for _ in range(blocks)]
    return streamed, [HostSource(linear) for linear in resident], resident


def run(blocks: list[nn.Linear], x: Tensor) -> Tensor:
    for block in blocks:
        x = torch.tanh(block(x))
    return x


@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 7, 8])
def test_streamed_equals_resident_and_moves_each_byte_once_a_step(blocks: int) -> None:
    streamed, sources, resident = build(blocks)
    copier = LateCopier()
    StreamedPass(streamed, sources, Slots(copier, sources[0].layout.nbytes, torch.device("cpu")))
    x = torch.randn(3, 8)
    shared = [slot for slot in range(2) if len(sources[slot::2]) > 1]  # a block alone in its slot stays there
    weights = sum(source.layout.nbytes for slot in shared for source in sources[slot::2])
    run(streamed, x)
    for _ in range(4):
        before = copier.copied_bytes
        assert torch.equal(run(streamed, x), run(resident, x))
        assert copier.copied_bytes - before == weights


def test_each_copy_is_asked_for_one_block_ahead() -> None:
    streamed, sources, _ = build(4)
    copier = LateCopier()
    StreamedPass(streamed, sources, Slots(copier, sources[0].layout.nbytes, torch.device("cpu")))
    run(streamed, torch.randn(1, 8))
    slots = [("copy", 0), ("copy", 1), ("wait", 0), ("copy", 0), ("wait", 1), ("copy", 1)]
    assert copier.events[:6] == slots


def test_two_passes_share_the_slots_and_hand_over() -> None:
    """The text encoder's last blocks fetch the transformer's first ones."""
    texts, text_sources, text_resident = build(4, seed=1)
    images, image_sources, image_resident = build(6, seed=2)
    copier = LateCopier()
    slots = Slots(copier, text_sources[0].layout.nbytes, torch.device("cpu"))
    image_pass = StreamedPass(images, image_sources, slots)
    StreamedPass(texts, text_sources, slots, following=image_pass)
    x = torch.randn(2, 8)
    for _ in range(2):
        assert torch.equal(run(texts, x), run(text_resident, x))
        before = copier.copied_bytes
        for _ in range(3):
            assert torch.equal(run(images, x), run(image_resident, x))
        assert copier.copied_bytes - before == 3 * sum(source.layout.nbytes for source in image_sources)


def test_a_thread_reads_ahead_on_a_cpu() -> None:
    streamed, sources, resident = build(6)
    copier = ThreadCopier()
    StreamedPass(streamed, sources, Slots(copier, sources[0].layout.nbytes, torch.device("cpu")))
    x = torch.randn(3, 8)
    for _ in range(20):
        assert torch.equal(run(streamed, x), run(resident, x))
