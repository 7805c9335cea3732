"""A file as a tensor of bytes that reads itself from disk where it is touched.

safetensors' own reader maps with `torch.UntypedStorage.from_file`, which reserves memory for the whole file: on a
machine with 23 GB it refuses a file of 30 GB. This map reserves nothing, so a model larger than the memory opens.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import torch
from torch import Tensor

from fluxserve.errors import CheckpointError

_LINUX_MAP_NORESERVE = 0x4000  # Python names it from 3.13 on


class FileMap:
    """`view` gives parts of the file without reading them; `release` forgets the pages of a part.

    Raises:
        CheckpointError: the file cannot be opened, or is empty.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                self._map = _map(file.fileno())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        self.bytes: Tensor = torch.frombuffer(self._map, dtype=torch.uint8)

    def view(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """(n,) of dtype from file bytes begin .. end: a view, or a copy where the file does not align it."""
        return _view(self.bytes, begin, end, dtype)

    def release(self, begin: int, end: int) -> None:
        """Forgets the whole pages within begin .. end; what else reads them finds them in the page cache or on disk."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        last = end // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)


class FileCopy:
    """A small file, read whole into memory: as `FileMap`, but what becomes of the file afterwards does not show.

    Raises:
        CheckpointError: the file cannot be read, is empty, or was written to meanwhile.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                before = os.fstat(file.fileno())
                content = bytearray(before.st_size)
                read = file.readinto(content)
                after = path.stat()
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}") from error
        if read != after.st_size or before.st_mtime_ns != after.st_mtime_ns:
            raise CheckpointError(f"{path}: was written to while it was read; try again when it is complete")
        if not content:
            raise CheckpointError(f"{path}: cannot be read: it is empty")
        self.bytes: Tensor = torch.frombuffer(content, dtype=torch.uint8)

    def view(self, begin: int, end: int, dtype: torch.dtype) -> Tensor:
        """(n,) of dtype from file bytes begin .. end."""
        return _view(self.bytes, begin, end, dtype)

    def release(self, begin: int, end: int) -> None:
        """Keeps everything: there is nowhere else to read it from."""


def _view(content: Tensor, begin: int, end: int, dtype: torch.dtype) -> Tensor:
    raw = content[begin:end]
    aligned = (content.data_ptr() + begin) % dtype.itemsize == 0
    return raw.view(dtype) if aligned else raw.clone().view(dtype)


def _map(descriptor: int) -> mmap.mmap:
    """Private and writable, so that a stray in-place operation changes this process's copy and never the file."""
    flags = mmap.MAP_PRIVATE | (_LINUX_MAP_NORESERVE if sys.platform == "linux" else 0)
    return mmap.mmap(descriptor, 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
