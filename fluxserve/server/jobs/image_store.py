"""Pictures behind URLs that expire: files with a time limit and a quota.

A picture's name is 128 random bits, the start of its SHA-256 and the folder's tag: what is served is what was written.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from fluxserve.errors import InvalidRequest, StorageFull
from fluxserve.request import GeneratedImage
from fluxserve.server.jobs.store_folder import StoreFolder, short

PICTURE_NAME = re.compile(r"[A-Za-z0-9_-]{22,64}\.(png|jpg|webp)")
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
_RANDOM_BYTES, _RANDOM_CHARACTERS = 16, 22
PROTECTED_S = 60.0
"""The quota drops no picture younger than this: its client may not have fetched it yet."""
_REMEMBERED = 10_000
CANNOT_STORE = "the server cannot store pictures at the moment; ask for response_format b64_json"


@dataclass(frozen=True)
class _Entry:
    size: int
    stored_at: float


@dataclass(frozen=True)
class StoredPicture:
    """data: the file. expires_at: monotonic, s, when its URL ends."""

    data: bytes
    expires_at: float


class ImageStore:
    """The pictures of one folder. Times are of the monotonic clock.

    ttl_s: life of a picture. quota_bytes: the oldest go first. Pictures of an earlier process live on.
    """

    def __init__(
        self, folder: StoreFolder, ttl_s: float, quota_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._ttl_s = ttl_s
        self._quota_bytes = quota_bytes
        self._clock = clock
        self._expired: OrderedDict[str, None] = OrderedDict()
        self._read_now: WeakValueDictionary[str, StoredPicture] = WeakValueDictionary()
        now, wall = clock(), time.time()
        self._entries = OrderedDict(
            (name, _Entry(status.st_size, now - max(0.0, wall - status.st_mtime)))
            for name, status in folder.own_files(SUFFIXES.values())
        )

    async def put(self, images: Sequence[GeneratedImage]) -> list[str]:
        """Stores pictures, all or none; returns their file names.

        Raises:
            StorageFull: they could not be written whole.
        """
        names: list[str] = []
        try:
            self._make_room(sum(len(image.data) for image in images))
            names = await asyncio.to_thread(lambda: [self._name(image) for image in images])
            for name, image in zip(names, images, strict=True):
                self._entries[name] = _Entry(len(image.data), self._clock())
            await asyncio.to_thread(self._write_all, names, images)
        except OSError as error:
            for name in names:
                self._drop(name)
            raise StorageFull(CANNOT_STORE) from error
        return names

    async def get(self, name: str) -> StoredPicture:
        """The picture of that file name; one object for all who are being given it.

        Raises:
            InvalidRequest: `image_not_found`, or `image_expired` for one that was here.
        """
        self._expire()
        entry = self._entries.get(name)
        if entry is None:
            raise self._missing(name)
        if (picture := self._read_now.get(name)) is not None:
            return picture
        try:
            data = await asyncio.to_thread(self._read, name)
        except FileNotFoundError:
            self._drop(name)
            self._folder.doubt("a picture")
            raise self._missing(name) from None
        except OSError:
            raise self._missing(name) from None
        return self._read_now.setdefault(name, StoredPicture(data, entry.stored_at + self._ttl_s))

    async def has(self, names: Sequence[str]) -> bool:
        """Whether all these pictures can still be fetched, as they were written."""
        try:
            for name in names:
                await self.get(name)
        except InvalidRequest:
            return False
        return True

    async def address(self, name: str) -> str | None:
        """Where else a picture could be fetched: nowhere."""
        return None

    async def probe(self) -> bool:
        """Whether the folder takes writes; tries again after it once did not."""
        return await asyncio.to_thread(self._folder.check)

    @property
    def writable(self) -> bool:
        return self._folder.writable

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self._entries.values())

    def close(self) -> None:
        self._folder.close()

    def _name(self, image: GeneratedImage) -> str:
        return self._folder.name(picture_stem(image.data), SUFFIXES[image.output_format])

    def _write_all(self, names: Sequence[str], images: Sequence[GeneratedImage]) -> None:
        for name, image in zip(names, images, strict=True):
            self._folder.write(name, [image.data])

    def _read(self, name: str) -> bytes:
        """Raises FileNotFoundError where the file is not what was written, too."""
        with self._folder.open(name) as file:
            data = file.read()
        if not is_content_of(name, data):
            raise FileNotFoundError(name)
        return data

    def _make_room(self, size: int) -> None:
        """Drops the oldest pictures until `size` more bytes fit; OSError where only young ones are left."""
        self._expire()
        youngest = self._clock() - PROTECTED_S
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
        self._folder.delete(name)

    def _missing(self, name: str) -> InvalidRequest:
        if name in self._expired:
            return InvalidRequest("this image has expired; generate it again", code="image_expired")
        return InvalidRequest("no such image", code="image_not_found")


def picture_stem(data: bytes) -> str:
    """What a new picture's name begins with: nobody can guess it, and it tells what the file holds."""
    return secrets.token_urlsafe(_RANDOM_BYTES) + _fingerprint(data)


def is_content_of(name: str, data: bytes) -> bool:
    """Whether the file of that name was written with these bytes."""
    return name.startswith(_fingerprint(data), _RANDOM_CHARACTERS)


def _fingerprint(data: bytes) -> str:
    return short(hashlib.sha256(data).digest())
