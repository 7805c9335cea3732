"""Idempotency keys over several servers: what a key stands for is drawn by the one that holds its claim.

An answer is created only where there is none, under the name of its claims' generation: a server that lost its lease
and still ends finds the other's answer, and gives that.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakValueDictionary

from fluxserve.errors import Cancelled, FluxserveError, StoreUnavailable, WorkerUnavailable
from fluxserve.server.jobs.homes import Claim, DrawnElsewhere, Entry, refuse_other
from fluxserve.server.jobs.idempotency import KEEP_S, QUOTA_BYTES, without_pictures_of_urls
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.shared.claims import BEAT_S, ClaimRecord, Claims, Numbered
from fluxserve.server.jobs.shared.objects import ObjectStorage
from fluxserve.server.jobs.stored_answers import FINAL_ERRORS, DamagedRecord, read_head, read_record, record_pieces

log = logging.getLogger(__name__)

_FOLDER, _SUFFIX = "answers", ".answer"
_SWEPT_AFTER_S = KEEP_S + 3600
"""Claims outlive their answers."""


@dataclass(frozen=True)
class _Held(Claim):
    """A claim that this server holds."""

    at: Numbered


@dataclass(eq=False, kw_only=True)
class _SharedEntry(Entry):
    at: Numbered


class SharedAnswers:
    """url_ttl_s: how long an answer of URLs is kept; others: a day."""

    def __init__(self, objects: ObjectStorage, url_ttl_s: float) -> None:
        self._objects = objects
        self._url_ttl_s = url_ttl_s
        self._claims = Claims(objects)
        self._running: dict[str, Entry] = {}
        self._reading = asyncio.Lock()
        self._given: WeakValueDictionary[str, Outcome] = WeakValueDictionary()

    async def claim(
        self, client: str, scope: str, fingerprint: str, seeds: tuple[int, ...]
    ) -> Claim | Entry | DrawnElsewhere:
        """What came first under a key, or the right to draw it: by these seeds, or by those that it had first.

        Raises:
            InvalidRequest: `idempotency_key_reused`: it was used for another request.
            StoreUnavailable.
        """
        name = self._name(scope)
        if (running := self._running.get(name)) is not None:
            refuse_other(running.fingerprint, fingerprint)
            return running
        if not await self._objects.check():
            raise StoreUnavailable("the server's store cannot be reached; try again", retry_after_s=5)
        last = await self._claims.last(name)
        if last is None or self._is_open_to_all(last.record, fingerprint):
            return await self._take(scope, name, last, ClaimRecord(client, fingerprint, seeds))
        refuse_other(last.record.fingerprint, fingerprint)
        if (unheld := await self._unheld(last)) is None:
            return DrawnElsewhere()
        first = unheld.record
        if first.state == "answered":
            return _entry(unheld)
        return await self._take(scope, name, last, ClaimRecord(client, fingerprint, first.seeds, first.generation))

    async def release(self, claim: Claim, error: FluxserveError | None = None) -> None:
        """Lets others draw at once what this server does not. error: why."""
        assert isinstance(claim, _Held)
        told = (error.code, error.message) if error else None
        with suppress(StoreUnavailable):  # then the lease ends it
            await self._claims.write(claim.at._replace(record=replace(claim.at.record, state="free", error=told)))

    def open(self, claim: Claim, work: Coroutine[Any, Any, Outcome]) -> Entry:
        """Runs `work` to its end under a claim, whoever waits for it."""
        assert isinstance(claim, _Held)
        entry = _entry(claim.at)
        entry.work = asyncio.ensure_future(self._run(claim, work))
        entry.work.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._running[claim.at.name] = entry
        return entry

    async def recall(self, entry: Entry) -> asyncio.Future[Outcome] | None:
        """The answer of a generation that has ended, done or failed as it was; None: it is lost.

        Raises:
            StoreUnavailable.
        """
        assert isinstance(entry, _SharedEntry)
        async with self._reading:  # pictures of one answer after the other
            recalled = asyncio.ensure_future(self._read(entry.at.record))
            await asyncio.wait([recalled])
        error = recalled.exception()
        if isinstance(error, StoreUnavailable):
            raise error
        return None if isinstance(error, DamagedRecord) else recalled

    async def look(self, scope: str) -> Entry | DrawnElsewhere | None:
        """What a key stands for, which is not claimed; None: nothing.

        Raises:
            FluxserveError: what it was given up with, or that its server has died. StoreUnavailable.
        """
        last = await self._claims.last(self._name(scope))
        if last is None or last.record.has_expired(self._objects.now()):
            return None
        if (unheld := await self._unheld(last)) is None:
            return DrawnElsewhere()
        if unheld.record.state == "answered":
            return _entry(unheld)
        raise _given_up(unheld.record)

    async def forget(self, entry: Entry) -> None:
        """Frees the key of an answer that can no longer be given. Another server may do the same."""
        assert isinstance(entry, _SharedEntry)
        if (last := await self._claims.last(entry.at.name)) is not None and last.number == entry.at.number:
            await self._claims.take(last.name, last.number + 1, ClaimRecord("", "", (), state="free"))

    async def sweep(self) -> None:
        """Deletes what is too old and, beyond the quota, the oldest of the client who holds most."""
        left = sorted(await self._objects.list(_FOLDER), key=lambda status: status.modified, reverse=True)
        left = [status for status in left if self._objects.wrote(status.path.rpartition("/")[2])]
        held = Counter[str]()
        for status in left:
            held[_owner(status.path)] += status.size
        while left and (most := held.most_common(1)[0][0]):
            oldest = left[-1]
            if self._objects.age_s(oldest) <= KEEP_S:
                if held.total() <= QUOTA_BYTES:
                    break
                oldest = next(status for status in reversed(left) if _owner(status.path) == most)
            left.remove(oldest)
            held[_owner(oldest.path)] -= oldest.size
            await self._objects.delete(oldest.path)
        await self._claims.sweep(_SWEPT_AFTER_S)

    def _is_open_to_all(self, last: ClaimRecord, fingerprint: str) -> bool:
        """Whether a key is as good as new."""
        return last.has_expired(self._objects.now()) or (last.state == "free" and last.fingerprint != fingerprint)

    async def _take(self, scope: str, name: str, last: Numbered | None, record: ClaimRecord) -> Claim | DrawnElsewhere:
        """The claim after the last, unless another server has it."""
        number = last.number + 1 if last else 0
        if not await self._claims.take(name, number, record):
            return DrawnElsewhere()
        at = Numbered(name, number, record)
        return _Held(record.client, scope, record.fingerprint, record.seeds, at)

    async def _unheld(self, last: Numbered) -> Numbered | None:
        """A claim that no server holds, with its answer noted if there is one; None: one holds it."""
        if last.record.state != "drawing":
            return last
        return await self._settled(last) if self._claims.lapsed(last) else None

    async def _settled(self, lapsed: Numbered) -> Numbered:
        """A claim whose holder has died, or was cut off: it may have answered before."""
        found = await self._objects.get(self._path(lapsed.record))
        try:
            head = found and read_head(io.BytesIO(found.data))
        except DamagedRecord:
            head = None
        if not head:
            return lapsed
        answered = lapsed._replace(record=replace(lapsed.record, state="answered", expires_at=head.expires_at))
        await self._claims.write(answered)
        return answered

    async def _run(self, claim: _Held, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """Keeps a final answer, frees the key of any other."""
        answer: Outcome | FluxserveError
        try:
            async with self._beating(claim.at):
                try:
                    answer = await work
                except tuple(FINAL_ERRORS.values()) as error:
                    answer = error
            return await self._keep(claim, answer)
        except BaseException as error:
            if not isinstance(error, tuple(FINAL_ERRORS.values())):
                await self.release(claim, error if isinstance(error, FluxserveError) else None)
            raise
        finally:
            self._running.pop(claim.at.name, None)

    async def _keep(self, claim: _Held, answer: Outcome | FluxserveError) -> Outcome:
        """The answer of the key: this one, unless another server was first. Where it cannot be kept it is given.

        Raises:
            FluxserveError: it is this error.
        """
        is_of_urls = isinstance(answer, Outcome) and answer.names
        expires_at = self._objects.now() + (self._url_ttl_s if is_of_urls else KEEP_S)
        kept = without_pictures_of_urls(answer) if isinstance(answer, Outcome) else answer
        pieces = await asyncio.to_thread(record_pieces, claim.client, claim.fingerprint, expires_at, kept)
        record = replace(claim.at.record, state="answered", expires_at=expires_at)
        if (others := await self._create(claim.at._replace(record=record), b"".join(pieces))) is not None:
            return others
        if isinstance(answer, FluxserveError):
            raise answer
        return answer

    async def _create(self, answered: Numbered, data: bytes) -> Outcome | None:
        """Writes the answer and notes it in its claim; returns another server's, if there is one already."""
        path = self._path(answered.record)
        try:
            is_first = await self._objects.create(path, data)
        except StoreUnavailable:
            return None  # who waits has the answer all the same; a later copy is drawn anew, by the same seeds
        if not is_first:
            log.warning("another server has answered a key whose lease this one lost")
            try:
                return await self._read(answered.record)
            except DamagedRecord:
                await self._objects.put(path, data)
        with suppress(StoreUnavailable):
            await self._claims.write(answered)
        return None

    @asynccontextmanager
    async def _beating(self, claim: Numbered) -> AsyncIterator[None]:
        """Keeps the lease."""

        async def beat() -> None:
            held = claim
            while True:
                await asyncio.sleep(BEAT_S)
                held = held._replace(record=replace(held.record, beat=held.record.beat + 1))
                with suppress(StoreUnavailable):
                    await self._claims.write(held)

        beating = asyncio.ensure_future(beat())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.wait([beating])

    async def _read(self, record: ClaimRecord) -> Outcome:
        """Raises FluxserveError: the answer is this error. DamagedRecord: it is not as it was written, or is gone."""
        if (outcome := self._given.get(record.generation)) is not None:
            return outcome
        found = await self._objects.get(self._path(record))
        try:
            outcome = await asyncio.to_thread(read_record, io.BytesIO(found.data if found else b""))
            return self._given.setdefault(record.generation, outcome)
        except DamagedRecord:
            self._objects.doubt("a stored answer")
            raise

    def _name(self, scope: str) -> str:
        return self._objects.name(hashlib.sha256(scope.encode()).hexdigest(), ".key")

    def _path(self, record: ClaimRecord) -> str:
        """Of the generation's answer, under its client's name."""
        client = hashlib.sha256(record.client.encode()).hexdigest()[:32]
        return f"{_FOLDER}/{client}/{self._objects.name(record.generation, _SUFFIX)}"


def _entry(at: Numbered) -> _SharedEntry:
    return _SharedEntry(at.record.client, at.record.fingerprint, at.name, None, 0.0, at=at)


def _given_up(record: ClaimRecord) -> FluxserveError:
    """Why nobody draws what a claim stands for."""
    code, message = record.error or (WorkerUnavailable.code, "its server has ended; send the request again")
    error = Cancelled(message) if code == Cancelled.code else FluxserveError(message)
    error.code = code
    return error


def _owner(path: str) -> str:
    return path.split("/")[-2]
