"""Pictures behind URLs that expire: a flat folder with a time limit and a quota."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fluxserve.errors import ConfigError, InUse, InvalidRequest, StorageFull
from fluxserve.request import GeneratedImage

PICTURE_NAME = re.compile(r"[A-Za-z0-9_-]{22,64}\.(png|jpg|webp)")
_SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_TEMPORARY = ".tmp-"
_PROTECTED_S = 60.0
"""The quota drops no picture younger than this: its client may not have fetched it yet."""
_REMEMBERED = 10_000
CANNOT_STORE = "the server cannot store pictures at the moment; ask for response_format b64_json"


@dataclass(frozen=True)
class _Entry:
    size: int
    stored_at: float


@dataclass(frozen=True)
class StoredPicture:
    """data: the file. expires_in_s: seconds its URL still lives."""

    data: bytes
    expires_in_s: float


class ImageStore:
    """The folder, held by one process. Times are of the monotonic clock.

    folder: made if missing, readable by its owner alone. ttl_s: life of a picture. quota_bytes: the oldest go first.

    Raises:
        InUse: another process holds the folder.
        ConfigError: it cannot be made or written.
    """

    def __init__(
        self, folder: Path, ttl_s: float, quota_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._quota_bytes = quota_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._expired: OrderedDict[str, None] = OrderedDict()
        self.writable = True
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = open(folder / ".lock", "ab")  # noqa: SIM115 - held until close()
        except OSError as error:
            raise ConfigError(f"the picture folder cannot be used ({error.strerror}); see --output-dir") from error
        self._hold()
        self._take_over()

    async def put(self, images: Sequence[GeneratedImage]) -> list[str]:
        """Stores pictures, all or none; returns their file names.

        Raises:
            StorageFull: they could not be written whole.
        """
        names = [f"{secrets.token_urlsafe(16)}.{_SUFFIXES[image.output_format]}" for image in images]
        try:
            self._make_room(sum(len(image.data) for image in images))
            for name, image in zip(names, images, strict=True):
                self._entries[name] = _Entry(len(image.data), self._clock())
            await asyncio.to_thread(self._write_all, names, images)
        except OSError as error:
            self.writable = False
            for name in names:
                self._drop(name)
            raise StorageFull(CANNOT_STORE) from error
        return names

    async def get(self, name: str) -> StoredPicture:
        """The picture of that file name.

        Raises:
            InvalidRequest: `image_not_found`, or `image_expired` for one that was here.
        """
        self._expire()
        entry = self._entries.get(name)
        if entry is None:
            raise self._missing(name)
        try:
            data = await asyncio.to_thread((self._folder / name).read_bytes)
        except OSError:
            raise self._missing(name) from None
        return StoredPicture(data, entry.stored_at + self._ttl_s - self._clock())

    def has(self, name: str) -> bool:
        """Whether the picture can still be fetched."""
        self._expire()
        return name in self._entries

    async def probe(self) -> bool:
        """Whether the folder takes writes; tries again after it once did not."""
        if not self.writable:
            self.writable = await asyncio.to_thread(self._probe)
        return self.writable

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self._entries.values())

    def close(self) -> None:
        self._lock.close()

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InUse("another fluxserve uses the same picture folder; give each its own --output-dir") from None

    def _take_over(self) -> None:
        """Sweeps half-written files of an earlier process and goes on with its pictures."""
        now, wall = self._clock(), time.time()
        found = []
        for path in self._folder.iterdir():
            if path.name.startswith(_TEMPORARY):
                path.unlink()
            elif PICTURE_NAME.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                status = path.stat()
                found.append((now - max(0.0, wall - status.st_mtime), path.name, status.st_size))
        for stored_at, name, size in sorted(found):
            self._entries[name] = _Entry(size, stored_at)
        if not self._probe():
            raise ConfigError("the picture folder cannot be written; see --output-dir")

    def _write_all(self, names: Sequence[str], images: Sequence[GeneratedImage]) -> None:
        """Runs in a thread; touches files only. A picture appears under its name whole or not at all."""
        for name, image in zip(names, images, strict=True):
            temporary = self._folder / (_TEMPORARY + name)
            try:
                with open(temporary, "xb") as file:
                    file.write(image.data)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self._folder / name)
            finally:
                temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Drops the oldest pictures until `size` more bytes fit; OSError where only young ones are left."""
        self._expire()
        youngest = self._clock() - _PROTECTED_S
        total = self.size_bytes
        while total + size > self._quota_bytes:
            name = next(iter(self._entries), None)
            if name is None or self._entries[name].stored_at > youngest:
                raise OSError("the quota is full")
            total -= self._entries[name].size
            self._forget(name)

    def _expire(self) -> None:
        born = self._clock() - self._ttl_s
        while self._entries and (name := next(iter(self._entries))) and self._entries[name].stored_at <= born:
            self._forget(name)

    def _forget(self, name: str) -> None:
        """Drops a picture whose URL was given out; the name stays known as expired."""
        self._drop(name)
        self._expired[name] = None
        if len(self._expired) > _REMEMBERED:
            self._expired.popitem(last=False)

    def _drop(self, name: str) -> None:
        self._entries.pop(name, None)
        with suppress(OSError):
            (self._folder / name).unlink(missing_ok=True)

    def _missing(self, name: str) -> InvalidRequest:
        if name in self._expired:
            return InvalidRequest("this image has expired; generate it again", code="image_expired")
        return InvalidRequest("no such image", code="image_not_found")

    def _probe(self) -> bool:
        probe = self._folder / f"{_TEMPORARY}probe"
        try:
            probe.write_bytes(bytes(4096))
        except OSError:
            return False
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        return True
