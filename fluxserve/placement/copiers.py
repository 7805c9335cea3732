"""How weights reach the device: a CUDA stream of its own, or on a CPU a thread that reads ahead. Both count bytes.

Knows no blocks and no order of them: see stream.py.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from fluxserve.placement.plan import SLOTS
from fluxserve.placement.stream import BlockSource


class CudaCopier:
    """Copies on a stream beside the one that computes; events order the two, and the host never waits."""

    def __init__(self, device: torch.device) -> None:
        self.copied_bytes = 0
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._filled = [torch.cuda.Event() for _ in range(SLOTS)]
        self._released = [torch.cuda.Event() for _ in range(SLOTS)]

    def copy(self, source: BlockSource, slot: int, buffer: Tensor) -> None:
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._released[slot])
            source.fill(buffer)
            self._filled[slot].record(self._stream)
        self.copied_bytes += source.layout.nbytes

    def wait(self, slot: int) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._filled[slot])

    def release(self, slot: int) -> None:
        self._released[slot].record(torch.cuda.current_stream(self._device))


class ThreadCopier:
    """Fills slots in a thread, in the order asked, while the CPU computes on the other slot."""

    def __init__(self) -> None:
        self.copied_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._filling: list[Future[None] | None] = [None] * SLOTS

    def copy(self, source: BlockSource, slot: int, buffer: Tensor) -> None:
        self._filling[slot] = self._thread.submit(source.fill, buffer)
        self.copied_bytes += source.layout.nbytes

    def wait(self, slot: int) -> None:
        filling = self._filling[slot]
        if filling is not None:
            filling.result()

    def release(self, slot: int) -> None:
        """A CPU has finished with a slot when the call that used it returns."""
