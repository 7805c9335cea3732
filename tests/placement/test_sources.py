"""Pinned memory is given back to CUDA before it is unmapped: seen with a CUDA runtime that keeps a list."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest
import torch

from fluxserve.errors import DeviceError
from fluxserve.placement import sources
from fluxserve.placement.sources import PinnedArena


class CudaError(Enum):
    success = 0
    memory_allocation = 2


class Runtime:
    """CUDA's calls for pinned memory. pinned: address -> bytes. refuses: pins nothing."""

    cudaError = CudaError  # noqa: N815  (CUDA's own name)

    def __init__(self) -> None:
        self.pinned: dict[int, int] = {}
        self.mapped_when_forgotten: list[bool] = []
        self.refuses = False

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> CudaError:  # noqa: N802
        if self.refuses:
            return CudaError.memory_allocation
        self.pinned[address] = nbytes
        return CudaError.success

    def cudaHostUnregister(self, address: int) -> CudaError:  # noqa: N802
        self.mapped_when_forgotten.append(is_mapped(address))
        del self.pinned[address]
        return CudaError.success


def is_mapped(address: int) -> bool:
    spans = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(begin, 16) <= address < int(end, 16) for begin, end in spans)


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    fake = Runtime()
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "cudart", lambda: fake)
        patched.setattr(torch.cuda, "synchronize", lambda: None)
        patched.setattr(sources, "_forget_last_error", lambda: None)
        yield fake
        gc.collect()


def test_memory_stays_pinned_as_long_as_a_buffer_of_it_lives(runtime: Runtime) -> None:
    arena = PinnedArena(1 << 20)
    buffer = arena.take(1000)
    del arena
    gc.collect()
    assert list(runtime.pinned.values()) == [1 << 20]
    buffer.fill_(7)
    view = buffer[10:20]
    del buffer
    gc.collect()
    assert runtime.pinned
    assert view.tolist() == [7] * 10


def test_memory_is_forgotten_before_it_is_unmapped(runtime: Runtime) -> None:
    """What is left registered makes a later allocation at the same address fail."""
    for _ in range(3):
        buffer = PinnedArena(1 << 22).take(1 << 22)
        del buffer
        gc.collect()
    assert not runtime.pinned
    assert runtime.mapped_when_forgotten == [True] * 3


def test_what_could_not_be_pinned_is_told_and_not_forgotten_twice(runtime: Runtime) -> None:
    runtime.refuses = True
    with pytest.raises(DeviceError, match=r"4,096 bytes of host memory could not be pinned"):
        PinnedArena(4096)
    gc.collect()
    assert not runtime.mapped_when_forgotten
