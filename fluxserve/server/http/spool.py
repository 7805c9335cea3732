"""A request's body as it comes: a little of it in memory, the rest in a file without a name."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from fluxserve.errors import StorageFull

IN_MEMORY_BYTES = 64 * 1024


class Spool:
    """make_file: an empty file that nobody else sees. size: bytes that have come. To be closed."""

    def __init__(self, make_file: Callable[[], BinaryIO]) -> None:
        self.size = 0
        self._make_file = make_file
        self._file: BinaryIO | None = None
        self._latest = bytearray()
        self._writing = threading.Lock()

    async def add(self, chunk: bytes) -> None:
        """The next bytes. Raises StorageFull if they find no room."""
        self._latest += chunk
        self.size += len(chunk)
        if len(self._latest) >= IN_MEMORY_BYTES:
            try:
                await asyncio.to_thread(self._flush)
            except OSError as error:
                raise StorageFull("the server has no room for large uploads at the moment") from error

    def chunks(self) -> Iterator[bytes]:
        """All of it, from the beginning."""
        if self._file is not None:
            self._file.seek(0)
            while chunk := self._file.read(IN_MEMORY_BYTES):
                yield chunk
        yield bytes(self._latest)

    def read(self) -> bytes:
        """All of it at once."""
        whole = io.BytesIO()
        for chunk in self.chunks():
            whole.write(chunk)
        return whole.getvalue()

    def close(self) -> None:
        with self._writing:
            if self._file is not None:
                with suppress(OSError):  # what found no room is written once more
                    self._file.close()

    def _flush(self) -> None:
        with self._writing:
            if self._file is None:
                self._file = self._make_file()
            self._file.write(self._latest)
            self._file.flush()
            self._latest = bytearray()
