"""Where streamed blocks wait on the host: in pinned memory for a GPU, or in their file for a CPU."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from contextlib import suppress

import torch
from torch import Tensor

from fluxserve.errors import DeviceError
from fluxserve.placement.flat import FlatLayout, Weight
from fluxserve.placement.weight_format import WeightFormat
from fluxserve.tensors.reader import TensorReader


class FileSource:
    """Read from the file at every use, giving its pages back at once. names: the module's name -> the reader's key."""

    def __init__(self, reader: TensorReader, names: Mapping[str, str], fmt: WeightFormat) -> None:
        self._reader = reader
        self._names = names
        self._format = fmt
        self.layout = FlatLayout.of((name, fmt.meta(reader, key)) for name, key in names.items())

    def fill(self, buffer: Tensor) -> None:
        self.layout.write(buffer, self._weights())

    def _weights(self) -> Iterator[tuple[str, Weight]]:
        """Not converted where no packing is asked for: the copy into the buffer does that."""
        for name, key in self._names.items():
            if not self._format.packs and self._reader.packed_meta(key) is None:
                yield name, self._reader.read(key)
            else:
                yield name, self._format.read(self._reader, key, torch.device("cpu"))
            self._reader.release(key)


class PinnedSource:
    """In pinned memory, from where a GPU copies by itself. buffer: (layout.nbytes,) uint8, filled."""

    def __init__(self, layout: FlatLayout, buffer: Tensor) -> None:
        self.layout = layout
        self._buffer = buffer

    def fill(self, buffer: Tensor) -> None:
        buffer[: self.layout.nbytes].copy_(self._buffer, non_blocking=True)


class PinnedArena:
    """One pinned mapping of exactly `nbytes`, cut into buffers: torch's own pinned memory rounds up to powers of two.

    It stays as long as a buffer of it does.

    Raises:
        DeviceError: the system does not let so much memory be pinned.
    """

    def __init__(self, nbytes: int) -> None:
        pages = _PinnedPages(-1, max(nbytes, 1))
        self._bytes = torch.frombuffer(pages, dtype=torch.uint8)
        self._taken = 0
        pages.pin(self._bytes.data_ptr())

    def take(self, nbytes: int) -> Tensor:
        """The next (nbytes,) uint8 of it."""
        begin, self._taken = self._taken, self._taken + nbytes
        return self._bytes[begin : self._taken]


class _PinnedPages(mmap.mmap):
    """Pages that CUDA forgets before they are unmapped: else it takes whatever comes to lie there next for them."""

    _address: int | None = None

    def pin(self, address: int) -> None:
        """Raises: as `PinnedArena`."""
        runtime = torch.cuda.cudart()
        status = runtime.cudaHostRegister(address, len(self), 0)
        if status != runtime.cudaError.success:
            _forget_last_error()
            raise DeviceError(f"{len(self):,} bytes of host memory could not be pinned: {status}")
        self._address = address

    def __del__(self) -> None:
        """After all copies from it have ended."""
        if self._address is not None:
            with suppress(RuntimeError):
                torch.cuda.synchronize()
            torch.cuda.cudart().cudaHostUnregister(self._address)


def _forget_last_error() -> None:
    """CUDA keeps an error until somebody asks for it, as the next kernel would."""
    with suppress(RuntimeError):
        torch.zeros(1, device="cuda")
