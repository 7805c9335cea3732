"""Idempotency keys: which request each was first used for, and its answer while it is kept.

A keyed request is done once: copies join it while it runs and get the stored answer afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fluxserve.errors import FluxserveError
from fluxserve.server.jobs.homes import Claim, Entry, refuse_other
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.store_folder import StoreFolder
from fluxserve.server.jobs.stored_answers import (
    FINAL_ERRORS,
    DamagedRecord,
    RecordHead,
    read_head,
    read_record,
    record_pieces,
)

KEEP_S = 24 * 3600.0
MOST_ENTRIES, QUOTA_BYTES = 5_000, 512 * 2**20
"""Of all clients together. Beyond it the one who holds most loses its oldest."""
_SUFFIX = ".answer"


class IdempotencyStore:
    """The answers of one folder. url_ttl_s: how long one of URLs is kept; others: a day. Times are monotonic.

    Answers of an earlier process live on, as long as the wall clock says.
    """

    def __init__(self, folder: StoreFolder, url_ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._url_ttl_s = url_ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._reading = asyncio.Lock()
        self._take_over()

    def find(self, scope: str, fingerprint: str) -> Entry | None:
        """The entry of a key that was used before. scope: client, route and key.

        Raises:
            InvalidRequest: `idempotency_key_reused`: it was used for another request.
        """
        name = self._name(scope)
        entry = self._entries.get(name)
        if entry is not None and entry.work is None and entry.expires_at <= self._clock():
            self._drop(name)
            return None
        if entry is not None:
            refuse_other(entry.fingerprint, fingerprint)
        return entry

    async def claim(self, client: str, scope: str, fingerprint: str, seeds: tuple[int, ...]) -> Claim | Entry:
        """What came first under a key, or the right to draw it, which lasts until something else is awaited.

        Raises: as `find` does.
        """
        return self.find(scope, fingerprint) or Claim(client, scope, fingerprint, seeds)

    async def release(self, claim: Claim) -> None:
        """Nothing holds a claim that is not opened."""

    def open(self, claim: Claim, work: Coroutine[Any, Any, Outcome]) -> Entry:
        """Runs `work` to its end under a claim, whoever waits for it."""
        name = self._name(claim.scope)
        entry = Entry(claim.client, claim.fingerprint, name, None, self._clock() + KEEP_S)
        entry.work = asyncio.ensure_future(self._run(name, entry, work))
        entry.work.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._entries[name] = entry
        return entry

    async def recall(self, entry: Entry) -> asyncio.Future[Outcome] | None:
        """The answer of a generation that has ended, done or failed as it was; None: it is lost, and its key free."""
        async with self._reading:  # one after the other, and one reading for all who want it at a time
            recalled = asyncio.ensure_future(self._recall(entry))
            await asyncio.wait([recalled])
        if not isinstance(recalled.exception(), OSError | DamagedRecord):
            return recalled
        self._folder.doubt("a stored answer")
        self.drop(entry)
        return None

    async def _recall(self, entry: Entry) -> Outcome:
        outcome = entry.read() if entry.read else None
        if outcome is None:
            outcome = await asyncio.to_thread(self._read, entry)
            entry.read = weakref.ref(outcome)
        return outcome

    async def forget(self, entry: Entry) -> None:
        """Frees the key of an answer that can no longer be given."""
        self.drop(entry)

    def drop(self, entry: Entry) -> None:
        """The same at once."""
        if self._entries.get(entry.file) is entry:
            self._drop(entry.file)

    async def _run(self, name: str, entry: Entry, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Keeps a final answer, frees the key of any other."""
        try:
            outcome = await work
            if outcome.names:
                entry.expires_at = self._clock() + self._url_ttl_s
            await self._keep(entry, without_pictures_of_urls(outcome))
            return outcome
        except tuple(FINAL_ERRORS.values()) as error:
            await self._keep(entry, error)
            raise
        finally:
            if entry.work is not None:
                self._drop(name)

    async def _keep(self, entry: Entry, answer: Outcome | FluxserveError) -> None:
        """On a full disk the waiters have their answer, and a later copy runs anew."""
        expires_at = time.time() + entry.expires_at - self._clock()

        def write() -> int:
            return self._folder.write(entry.file, record_pieces(entry.client, entry.fingerprint, expires_at, answer))

        with suppress(OSError):
            entry.size = await asyncio.to_thread(write)
            entry.work = None
            self._make_room()

    def _make_room(self) -> None:
        """Nobody's answers push out those of a client who holds less."""
        entries, sizes = Counter[str](), Counter[str]()
        for entry in self._entries.values():
            entries[entry.client] += 1
            sizes[entry.client] += entry.size
        for held, most in ((entries, MOST_ENTRIES), (sizes, QUOTA_BYTES)):
            while held.total() > most and (oldest := self._oldest_settled(held.most_common(1)[0][0])):
                entries[oldest.client] -= 1
                sizes[oldest.client] -= oldest.size
                self._drop(oldest.file)

    def _oldest_settled(self, client: str) -> Entry | None:
        settled = (entry for entry in self._entries.values() if entry.work is None and entry.client == client)
        return next(settled, None)

    def _drop(self, name: str) -> None:
        if self._entries.pop(name, None) is not None:
            self._folder.delete(name)

    def _name(self, scope: str) -> str:
        return self._folder.name(hashlib.sha256(scope.encode()).hexdigest(), _SUFFIX)

    def _read(self, entry: Entry) -> Outcome:
        with self._folder.open(entry.file) as file:
            return read_record(file)

    def _take_over(self) -> None:
        """Goes on with the answers of an earlier process."""
        now, wall = self._clock(), time.time()
        for name, status in self._folder.own_files([_SUFFIX]):
            head = self._read_head(name)
            life_s = min(head.expires_at - wall, KEEP_S) if head else 0.0
            if head is None or life_s <= 0:
                self._folder.delete(name)
            else:
                self._entries[name] = Entry(head.client, head.fingerprint, name, None, now + life_s, status.st_size)

    def _read_head(self, name: str) -> RecordHead | None:
        try:
            with self._folder.open(name) as file:
                return read_head(file)
        except (OSError, DamagedRecord):
            return None


def without_pictures_of_urls(outcome: Outcome) -> Outcome:
    """Pictures behind URLs lie in the image store already."""
    if not outcome.names:
        return outcome
    images = tuple(replace(image, data=b"") for image in outcome.result.images)
    return replace(outcome, result=replace(outcome.result, images=images))
