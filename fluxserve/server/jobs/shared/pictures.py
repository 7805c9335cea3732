"""Pictures behind URLs that expire, in a store that several servers have: each serves what any of them wrote.

Nothing is remembered here: a name proves that a server wrote it and tells what it holds, the store tells since when.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from weakref import WeakValueDictionary

from fluxserve.errors import InvalidRequest, StorageFull, StoreUnavailable
from fluxserve.request import GeneratedImage
from fluxserve.server.jobs.image_store import (
    CANNOT_STORE,
    PROTECTED_S,
    SUFFIXES,
    StoredPicture,
    is_content_of,
    picture_stem,
)
from fluxserve.server.jobs.shared.objects import ObjectStorage, Status

_FOLDER = "pictures"
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}


class SharedPictures:
    """ttl_s: life of a picture, by the store's clock. quota_bytes: the oldest are swept first.

    redirects: who asks for a picture is sent to the storage, where it signs URLs.
    """

    def __init__(self, objects: ObjectStorage, ttl_s: float, quota_bytes: int, redirects: bool) -> None:
        self._objects = objects
        self._ttl_s = ttl_s
        self._quota_bytes = quota_bytes
        self._redirects = redirects
        self._read_now: WeakValueDictionary[str, StoredPicture] = WeakValueDictionary()
        self.size_bytes = 0

    @property
    def writable(self) -> bool:
        return self._objects.writable

    async def put(self, images: Sequence[GeneratedImage]) -> list[str]:
        """Stores pictures, all or none; returns their file names.

        Raises:
            StorageFull: they could not be written whole.
        """
        names = await asyncio.to_thread(lambda: [self._name(image) for image in images])
        puts = (self._put(name, image.data) for name, image in zip(names, images, strict=True))
        results = await asyncio.gather(*puts, return_exceptions=True)
        failed = next((result for result in results if isinstance(result, BaseException)), None)
        if failed is None:
            return names
        await asyncio.gather(*(self._drop(name) for name in names))
        if isinstance(failed, StoreUnavailable):
            raise StorageFull(CANNOT_STORE) from failed
        raise failed

    async def get(self, name: str) -> StoredPicture:
        """The picture of that file name; one object for all who are being given it.

        Raises:
            InvalidRequest: `image_not_found`, or `image_expired` for one that was here.
            StoreUnavailable.
        """
        if not self._objects.wrote(name):
            raise InvalidRequest("no such image", code="image_not_found")
        if (picture := self._read_now.get(name)) is not None and picture.expires_at > time.monotonic():
            return picture
        found = await self._objects.get(f"{_FOLDER}/{name}")
        if found is None:
            raise _expired()
        life_s = self._life_s(found.status)
        if not await asyncio.to_thread(is_content_of, name, found.data):
            self._objects.doubt("a picture")
            raise InvalidRequest("no such image", code="image_not_found")
        return self._read_now.setdefault(name, StoredPicture(found.data, time.monotonic() + life_s))

    async def has(self, names: Sequence[str]) -> bool:
        """Whether all these pictures can still be fetched, as they were written."""
        try:
            for name in names:
                await self.get(name)
        except InvalidRequest:
            return False
        return True

    async def address(self, name: str) -> str | None:
        """Where else the picture can be fetched for the rest of its life; None: here alone. Raises as `get` does."""
        if not self._redirects or not self._objects.wrote(name):
            return None
        path = f"{_FOLDER}/{name}"
        if (status := await self._objects.head(path)) is None:
            raise _expired()
        return await self._objects.sign(path, self._life_s(status))

    async def probe(self) -> bool:
        """Whether the store takes pictures."""
        return await self._objects.check()

    async def sweep(self) -> None:
        """Deletes what has expired and, beyond the quota, the oldest. Other servers may do the same."""
        listed = sorted(await self._objects.list(_FOLDER), key=lambda status: status.modified)
        own = [status for status in listed if self._objects.wrote(_name_of(status))]
        total = sum(status.size for status in own)
        for status in own:
            age_s = self._objects.age_s(status)
            if age_s > self._ttl_s or (total > self._quota_bytes and age_s > PROTECTED_S):
                total -= status.size
                await self._objects.delete(status.path)
        self.size_bytes = total

    def _life_s(self, status: Status) -> float:
        """Seconds that a picture has left. Raises InvalidRequest, `image_expired`: none."""
        left_s = min(self._ttl_s - self._objects.age_s(status), self._ttl_s)
        if left_s <= 0:
            raise _expired()
        return left_s

    def _name(self, image: GeneratedImage) -> str:
        return self._objects.name(picture_stem(image.data), SUFFIXES[image.output_format])

    async def _put(self, name: str, data: bytes) -> None:
        await self._objects.put(f"{_FOLDER}/{name}", data, _MEDIA_TYPES[name[name.rindex(".") :]])

    async def _drop(self, name: str) -> None:
        try:
            await self._objects.delete(f"{_FOLDER}/{name}")
        except StoreUnavailable:
            return  # it is swept when its time is up


def _expired() -> InvalidRequest:
    """A server of this store wrote the name: a picture that is gone had been here."""
    return InvalidRequest("this image has expired; generate it again", code="image_expired")


def _name_of(status: Status) -> str:
    return status.path.rpartition("/")[2]
