"""Weights that several workers on one CPU hold together, where they are not views of a file, which is shared anyway.

They lie in a file in memory that has no name: every worker has it open, and it ends with the last of them, however
that ends. Who needs a weight that is not there yet makes it; a worker that dies meanwhile leaves nothing behind that
another would take for one.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from fluxserve.placement.flat import FlatLayout, Weight
from fluxserve.tensors.packed import PackedWeight

_COUNT, _ENTRY = struct.Struct("=Q"), struct.Struct("=32sQQ")
_DIRECTORY_BYTES = 2**20
_MOST_ENTRIES = (_DIRECTORY_BYTES - _COUNT.size) // _ENTRY.size


class SharedMemory:
    """Byte buffers by name. The file begins with their number and an entry of each (SHA-256 of its name, first byte,
    bytes); the buffers follow, each from a page's begin on.

    descriptor: of the file, which grows and never shrinks.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = _DIRECTORY_BYTES

    @property
    def nbytes(self) -> int:
        """Of all buffers."""
        self._look()
        return self._end - _DIRECTORY_BYTES

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While no other process is here. One that dies here lets others in."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def find(self, name: str) -> Tensor | None:
        """(n,) uint8 of that name: what is written to it, this process alone sees."""
        self._look()
        place = self._places.get(_digest(name))
        return None if place is None else self._map(*place, mmap.MAP_PRIVATE)

    def add(self, name: str, nbytes: int, fill: Callable[[Tensor], None]) -> Tensor | None:
        """As `find`, of a buffer that is new and filled; None if there is no place for its entry. Be `alone` there."""
        self._look()
        number, begin = len(self._places), self._end
        if number == _MOST_ENTRIES:
            return None
        os.posix_fallocate(self._descriptor, begin, nbytes)
        fill(self._map(begin, nbytes, mmap.MAP_SHARED))
        os.pwrite(self._descriptor, _ENTRY.pack(_digest(name), begin, nbytes), _COUNT.size + number * _ENTRY.size)
        os.pwrite(self._descriptor, _COUNT.pack(number + 1), 0)
        return self.find(name)

    def _look(self) -> None:
        """Learns of what has been added."""
        count = int.from_bytes(os.pread(self._descriptor, _COUNT.size, 0), "little")
        for number in range(len(self._places), count):
            entry = os.pread(self._descriptor, _ENTRY.size, _COUNT.size + number * _ENTRY.size)
            digest, begin, nbytes = _ENTRY.unpack(entry)
            self._places[digest] = begin, nbytes
            self._end = -(-(begin + nbytes) // mmap.PAGESIZE) * mmap.PAGESIZE

    def _map(self, begin: int, nbytes: int, flags: int) -> Tensor:
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        return torch.frombuffer(
            mmap.mmap(self._descriptor, nbytes, flags=flags, prot=protection, offset=begin), dtype=torch.uint8
        )


class SharedWeights:
    """origin: tells all that the weights' values depend on, see `origin_of`: a worker that finds other files than the
    others found makes weights of its own.
    """

    def __init__(self, memory: SharedMemory, origin: str) -> None:
        self._memory = memory
        self._origin = origin

    @property
    def nbytes(self) -> int:
        """What is shared so far."""
        return self._memory.nbytes

    def hold(self, network: str, key: str, meta: Weight, make: Callable[[], Weight]) -> Weight:
        """What `make` gives, made once by whichever worker needs it first; a view of a file stays one.

        meta: the same on the meta device.
        """
        layout = FlatLayout.of([(key, meta)])
        name = f"{self._origin}\n{network}\n{layout}"
        with self._memory.alone():
            buffer = self._memory.find(name)
            if buffer is None:
                weight = make()
                if _lies_in_a_file(weight):
                    return weight
                buffer = self._memory.add(name, layout.nbytes, lambda new: layout.write(new, [(key, weight)]))
                if buffer is None:
                    return weight
        return layout.views(buffer)[key]


def origin_of(files: Iterable[Path], settings: object) -> str:
    """Of weights made of these files, as they are now, by these settings."""
    stats = [(path, path.stat()) for path in files]
    return "\n".join([f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats] + [repr(settings)])


def _lies_in_a_file(weight: Weight) -> bool:
    """A view of a map's bytes, of which a file has more than any one weight."""
    parts = weight.parts.values() if isinstance(weight, PackedWeight) else (weight,)
    return all(part.untyped_storage().nbytes() > part.nbytes for part in parts)


def _digest(name: str) -> bytes:
    return sha256(name.encode()).digest()
