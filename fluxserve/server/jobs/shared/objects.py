"""Object storage through obstore, or a folder that several servers share: few calls, each bounded in time.

Everything rests on one thing that all of them can: an object is created only if there is none.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from fluxserve.errors import ConfigError, StoreUnavailable
from fluxserve.server.jobs.store_folder import FIRST_LINE, MARK, SHORT_BYTES, short

if TYPE_CHECKING:
    from obstore.store import ObjectStore

log = logging.getLogger(__name__)

LIMIT_S = 20.0
"""Of one call, its retries among it."""
_CHECK_EVERY_S, _CHECK_AGAIN_S = 5.0, 1.0
"""How long it is believed to answer since it last did, and not to since it last did not."""
_RETRY: Any = {
    "max_retries": 2,
    "retry_timeout": timedelta(seconds=10),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=1), "base": 2},
}
_CLIENT: Any = {"connect_timeout": "3s", "timeout": "15s", "allow_http": True}
"""http is spoken where whoever runs the server wrote http; AWS_ALLOW_HTTP and its like do not count beside these."""
_HALF_WRITTEN_S = 3600.0
_PROBE = "probe"
_TAG_CHARACTERS = SHORT_BYTES * 4 // 3


@dataclass(frozen=True)
class Status:
    """modified: Unix time by the store's clock, s."""

    path: str
    size: int
    modified: float


@dataclass(frozen=True)
class Found:
    data: bytes
    status: Status


class ObjectStorage:
    """One place in a storage, marked as this kind of server's. writable: whether it did what it was last asked.

    key: stands in the mark, and is in the names of all that the servers write. Methods raise StoreUnavailable.
    """

    def __init__(self, store: ObjectStore, key: bytes) -> None:
        self.writable = True
        self._store = store
        self._key = key
        self._answered_at = self._asked_at = time.monotonic()
        self._offset_s = 0.0
        self._checking = asyncio.Lock()

    @classmethod
    async def open(cls, url: str) -> ObjectStorage:
        """Makes the place, or goes on with the one that other servers use.

        Raises:
            ConfigError: it cannot be used, or holds what is not the servers'; names --store.
        """
        opened = cls(_connect(url), b"")
        try:
            opened._key = await opened._read_key()
            await opened._read_clock()
        except StoreUnavailable as error:
            raise ConfigError(f"--store {url} cannot be used: {_reason(error.__cause__)}") from error
        except _Foreign as error:
            raise ConfigError(f"--store {url} {error}; name a place of its own for the pictures") from None
        return opened

    def name(self, stem: str, suffix: str) -> str:
        """An object's name: stem, a tag that only who holds the place's key can make, suffix."""
        return f"{stem}{short(hmac.digest(self._key, (stem + suffix).encode(), 'sha256'))}{suffix}"

    def wrote(self, name: str) -> bool:
        """Whether a server of this place made the name."""
        stem, dot, suffix = name.rpartition(".")
        return hmac.compare_digest(self.name(stem[:-_TAG_CHARACTERS], dot + suffix).encode(), name.encode())

    def now(self) -> float:
        """Unix time by the store's clock, which all its servers go by, s."""
        return time.monotonic() + self._offset_s

    def age_s(self, status: Status) -> float:
        """Seconds since an object was written."""
        return self.now() - status.modified

    async def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless there is one; whether there was none."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        async with self._asking(writes=True):
            try:
                await obstore.put_async(self._store, path, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
        return True

    async def put(self, path: str, data: bytes, media_type: str | None = None) -> None:
        """Writes an object whole, over any that is there."""
        import obstore
        from obstore.store import LocalStore

        attributes: Any = {"Content-Type": media_type}
        told = None if media_type is None or isinstance(self._store, LocalStore) else attributes
        async with self._asking(writes=True):
            await obstore.put_async(self._store, path, data, attributes=told, use_multipart=False)

    async def get(self, path: str) -> Found | None:
        import obstore

        async with self._asking():
            try:
                answer = await obstore.get_async(self._store, path)
                data = bytes(await answer.bytes_async())
            except FileNotFoundError:
                return None
        return Found(data, _status(answer.meta))

    async def head(self, path: str) -> Status | None:
        import obstore

        async with self._asking():
            try:
                return _status(await obstore.head_async(self._store, path))
            except FileNotFoundError:
                return None

    async def delete(self, path: str) -> None:
        """Deletes an object, if it is there: another server may have been first."""
        import obstore

        async with self._asking():
            try:
                await obstore.delete_async(self._store, path)
            except FileNotFoundError:
                return

    async def list(self, folder: str) -> Sequence[Status]:
        """What lies anywhere below a folder."""
        import obstore

        async with self._asking():
            return [_status(meta) for meta in await obstore.list(self._store, prefix=folder).collect_async()]

    async def sign(self, path: str, life_s: float) -> str | None:
        """A URL that anybody may GET the object by for so long; None where the storage gives none."""
        import obstore
        from obstore.store import AzureStore, GCSStore, S3Store

        if not isinstance(self._store, S3Store | GCSStore | AzureStore):
            return None
        async with self._asking():
            return await obstore.sign_async(self._store, "GET", path, timedelta(seconds=life_s))

    async def tidy(self) -> None:
        """Deletes what servers that died had half written into a shared folder; object storage keeps no such thing."""
        from obstore.store import LocalStore

        if isinstance(self._store, LocalStore) and self._store.prefix is not None:
            await asyncio.to_thread(self._delete_half_written, Path(self._store.prefix))

    def doubt(self, what: str) -> None:
        """Tells the log of an object that is not as it was written; a write must succeed before all is fine."""
        self.writable, self._asked_at = False, 0.0
        log.warning("%s in the shared store is gone or damaged", what)

    async def check(self) -> bool:
        """Whether it takes objects, as of a few seconds ago; one asks for all."""
        async with self._checking:
            now = time.monotonic()
            if self.writable and now - self._answered_at < _CHECK_EVERY_S:
                return True
            if not self.writable and now - self._asked_at < _CHECK_AGAIN_S:
                return False
            try:
                await self.put(_PROBE, b"probe")
            except StoreUnavailable:
                return False
        return True

    def _delete_half_written(self, folder: Path) -> None:
        """obstore writes NAME#NUMBER first, and lists no such file."""
        for path in folder.rglob("*#*"):
            name = path.name.partition("#")[0]
            if self.wrote(name) or self.wrote(path.parent.name):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _HALF_WRITTEN_S:
                        path.unlink()

    async def _read_clock(self) -> None:
        """Writes, and asks when that was: to the second, which is how well storages tell."""
        await self.put(_PROBE, b"probe")
        if (status := await self.head(_PROBE)) is not None:
            self._offset_s = status.modified - time.monotonic()

    async def _is_empty(self) -> bool:
        import obstore

        async with self._asking():
            async for first in obstore.list(self._store, chunk_size=1):
                return not first
        return True

    async def _read_key(self) -> bytes:
        """The key of the place, which the first server makes."""
        found = await self.get(MARK)
        if found is None and not await self._is_empty():
            found = await self.get(MARK)  # another server may have begun
            if found is None:
                raise _Foreign("holds what is not the servers'")
        if found is None:
            await self.create(MARK, FIRST_LINE + secrets.token_hex(32).encode() + b"\n")
            found = await self.get(MARK)
        match = found and re.fullmatch(re.escape(FIRST_LINE) + rb"([0-9a-f]{64})\n", found.data)
        if not match:
            raise _Foreign(f"holds a {MARK} that is not the servers'")
        return bytes.fromhex(match[1].decode())

    @asynccontextmanager
    async def _asking(self, *, writes: bool = False) -> AsyncIterator[None]:
        """One call: bounded, its failure told without what the storage said, in which a key may stand."""
        from obstore.exceptions import BaseError

        try:
            async with asyncio.timeout(LIMIT_S):
                yield
        except (BaseError, OSError, ValueError, NotImplementedError) as error:
            if self.writable:
                log.warning("the shared store fails: %s", _reason(error))
            self.writable, self._asked_at = False, time.monotonic()
            raise StoreUnavailable("the server's store cannot be reached; try again", retry_after_s=5) from error
        if writes:
            if not self.writable:
                log.info("the shared store takes pictures again")
            self.writable, self._answered_at = True, time.monotonic()


class _Foreign(Exception):
    """Somebody else's objects lie there."""


def _connect(url: str) -> ObjectStore:
    """Raises ConfigError: there is no such storage, its variables do not suffice, or obstore is missing."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url
    except ImportError:
        raise ConfigError("--store needs obstore; pip install 'fluxserve[store]'") from None
    try:
        if url.startswith("file:"):
            folder = Path(url2pathname(urlsplit(url).path))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return LocalStore(folder, automatic_cleanup=True)
        return from_url(url, client_options=_CLIENT, retry_config=_RETRY)
    except OSError as error:
        raise ConfigError(f"--store {url} cannot be used: {error.strerror}") from error
    except (BaseError, ValueError) as error:
        raise ConfigError(
            f"--store {url} cannot be used: its storage's variables, such as AWS_REGION and AWS_ACCESS_KEY_ID, "
            "AZURE_STORAGE_ACCOUNT_NAME or GOOGLE_APPLICATION_CREDENTIALS, do not suffice"
        ) from error


def _status(meta: Any) -> Status:
    return Status(meta["path"], meta["size"], meta["last_modified"].timestamp())


_CAUSE = re.compile(r" - (?:Server returned non-2xx status code: ([0-9]{3} [A-Za-z ]+)|HTTP error: ([a-z ]+))")


def _reason(error: BaseException | None) -> str:
    """Why a call failed, in words in which no key, URL or answer of the storage stands."""
    from obstore import exceptions

    match error:
        case TimeoutError():
            return f"it did not answer within {LIMIT_S:g} s"
        case FileNotFoundError():
            return "there is no such bucket, container or folder"
        case PermissionError() | exceptions.PermissionDeniedError() | exceptions.UnauthenticatedError():
            return "its credentials are refused, or may not do this"
    cause = _CAUSE.search(str(error))
    return (cause[1] or cause[2]) if cause else type(error).__name__
