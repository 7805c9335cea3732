"""Idempotency keys: which request each was first used for, and its answer while it is kept.

A keyed request is done once: copies join it while it runs and get the stored answer afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fluxserve.errors import ConfigError, FluxserveError, InvalidRequest
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.stored_answers import FINAL_ERRORS, read_fingerprint, read_record, write_record

_KEEP_S = 24 * 3600.0
_MOST_ENTRIES = 1000
_QUOTA_BYTES = 512 * 2**20
_SUFFIX = ".answer"


@dataclass(eq=False)
class Entry:
    """One key. work: the running or just finished generation; None once the answer lies in the file alone."""

    fingerprint: str
    path: Path
    work: asyncio.Task[Outcome] | None
    expires_at: float
    size: int = 0

    async def outcome(self) -> Outcome:
        """The answer, once it is there; raises as the generation did. Leaving early stops nothing."""
        if self.work is not None:
            return await asyncio.shield(self.work)
        return await asyncio.to_thread(read_record, self.path)


class IdempotencyStore:
    """folder: where answers lie. url_ttl_s: how long an answer of URLs is kept; others: a day. Times are monotonic.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: Path, url_ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._url_ttl_s = url_ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_over()
        except OSError as error:
            raise ConfigError(f"the folder of stored answers cannot be used ({error.strerror})") from error

    def find(self, scope: str, fingerprint: str) -> Entry | None:
        """The entry of a key that was used before. scope: client, route and key.

        Raises:
            InvalidRequest: `idempotency_key_reused`: it was used for another request.
        """
        name = _name(scope)
        entry = self._entries.get(name)
        if entry is not None and entry.work is None and entry.expires_at <= self._clock():
            self._drop(name)
            return None
        if entry is not None and entry.fingerprint != fingerprint:
            raise InvalidRequest(
                "this Idempotency-Key was used for another request; use a new key", code="idempotency_key_reused"
            )
        return entry

    def open(self, scope: str, fingerprint: str, work: Coroutine[Any, Any, Outcome]) -> Entry:
        """Runs `work` to its end under a key that is not in use, whoever waits for it."""
        name = _name(scope)
        entry = Entry(fingerprint, self._folder / (name + _SUFFIX), None, self._clock() + _KEEP_S)
        entry.work = asyncio.ensure_future(self._run(name, entry, work))
        entry.work.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._entries[name] = entry
        return entry

    def forget(self, scope: str) -> None:
        """Frees a key whose stored answer can no longer be given."""
        self._drop(_name(scope))

    async def _run(self, name: str, entry: Entry, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Keeps a final answer, frees the key of any other."""
        try:
            outcome = await work
            if outcome.names:
                entry.expires_at = self._clock() + self._url_ttl_s
            await self._keep(entry, _without_pictures_of_urls(outcome))
            return outcome
        except tuple(FINAL_ERRORS.values()) as error:
            await self._keep(entry, error)
            raise
        finally:
            if entry.work is not None:
                self._drop(name)

    async def _keep(self, entry: Entry, answer: Outcome | FluxserveError) -> None:
        """On a full disk the waiters have their answer, and a later copy runs anew."""
        with suppress(OSError):
            entry.size = await asyncio.to_thread(write_record, entry.path, entry.fingerprint, answer)
            entry.work = None
            self._make_room()

    def _make_room(self) -> None:
        settled = [name for name, entry in self._entries.items() if entry.work is None]
        total = sum(entry.size for entry in self._entries.values())
        for name in settled:
            if len(self._entries) <= _MOST_ENTRIES and total <= _QUOTA_BYTES:
                return
            total -= self._entries[name].size
            self._drop(name)

    def _drop(self, name: str) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            with suppress(OSError):
                entry.path.unlink(missing_ok=True)

    def _take_over(self) -> None:
        """Goes on with the answers of an earlier process; the shorter life is assumed for all."""
        now, wall = self._clock(), time.time()
        paths = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in paths:
            status = path.stat()
            expires_at = now + self._url_ttl_s - max(0.0, wall - status.st_mtime)
            try:
                if path.suffix != _SUFFIX or expires_at <= now:
                    raise ValueError("left over")
                entry = Entry(read_fingerprint(path), path, None, expires_at, status.st_size)
            except (ValueError, KeyError):
                path.unlink()
                continue
            self._entries[path.stem] = entry


def _name(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()


def _without_pictures_of_urls(outcome: Outcome) -> Outcome:
    """Pictures behind URLs lie in the image store already."""
    if not outcome.names:
        return outcome
    images = tuple(replace(image, data=b"") for image in outcome.result.images)
    return replace(outcome, result=replace(outcome.result, images=images))
