"""Requests that are answered later (RFC 7240, respond-async): which there are, whose, and how far.

An answer lies among the idempotent ones, under its job's id, and so outlives the process; what it takes to write that
answer out again lies in a file of its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from fluxserve.engine import Engine
from fluxserve.engine.job import Job
from fluxserve.errors import FluxserveError, InvalidRequest
from fluxserve.request import GenerationRequest
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.jobs.homes import Claim, refuse_other
from fluxserve.server.jobs.idempotency import IdempotencyStore
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.store_folder import StoreFolder

_SUFFIX = ".job"
_MOST = 1000


@dataclass(eq=False)
class AsyncJob:
    """One of them. client: whose. fingerprint: of its request. created, expires_at: Unix time, s.

    model, job, work: while it runs. elsewhere: another server draws it. error: why it failed. Without any of these, its
    answer lies in the store.
    """

    id: str
    client: str
    fingerprint: str
    resolved: ResolvedRequest
    created: float
    expires_at: float
    model: Engine | None = None
    job: Job | None = None
    work: asyncio.Task[Outcome] | None = None
    error: FluxserveError | None = None
    elsewhere: bool = False

    @property
    def scope(self) -> str:
        """What its answer is kept under."""
        return scope_of(self.client, self.id)

    def let_go(self, expires_at: float) -> None:
        """Of its prompt and its pictures, as it ends."""
        self.resolved = _resolved(described(self)["resolved"])
        self.expires_at = expires_at


class AsyncJobs:
    """The jobs of one folder, of this process and those before it. ttl_s: how long one is kept: as long as URLs."""

    def __init__(
        self,
        folder: StoreFolder,
        answers: IdempotencyStore,
        ttl_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._answers = answers
        self._ttl_s = ttl_s
        self._clock = clock
        self._jobs: OrderedDict[str, AsyncJob] = OrderedDict()
        for name, _ in folder.own_files([_SUFFIX]):
            self._take_over(name)

    async def find(self, id: str, client: str) -> AsyncJob:
        """Raises InvalidRequest: `job_not_found`: there is none, it has expired, or it is another client's."""
        self._expire()
        found = self._jobs.get(id)
        if found is None or found.client != client:
            raise not_found()
        return found

    async def claim(self, id: str, client: str, fingerprint: str, seeds: tuple[int, ...]) -> Claim | AsyncJob:
        """The job that an Idempotency-Key stands for, or the right to open it, until something else is awaited.

        Raises:
            InvalidRequest: `idempotency_key_reused`: it stands for another request's.
        """
        self._expire()
        found = self._jobs.get(id)
        if found is not None:
            refuse_other(found.fingerprint, fingerprint)
        return found or Claim(client, scope_of(client, id), fingerprint, seeds)

    async def release(self, claim: Claim) -> None:
        """Nothing holds a claim that is not opened."""

    async def open(self, new: AsyncJob, claim: Claim, work: Coroutine[Any, Any, Outcome]) -> None:
        """Runs the work to its end, whoever asks for it."""
        new.expires_at = new.created + self._ttl_s
        self._jobs[new.id] = new
        entry = self._answers.open(claim, self._noted(new, work))
        assert entry.work is not None
        new.work = entry.work
        new.work.add_done_callback(lambda task: ended(new, task))

    async def outcome(self, done: AsyncJob) -> Outcome:
        """What a job that has ended made.

        Raises:
            FluxserveError: why it failed; `job_not_found`: its answer had to make room.
        """
        if done.error is not None:
            raise done.error
        entry = self._answers.find(done.scope, done.fingerprint)
        answer = entry and (entry.work or await self._answers.recall(entry))
        if not answer:
            raise not_found()
        return await asyncio.shield(answer)

    async def _noted(self, new: AsyncJob, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        """The work, and beside its answer what that is written out with, for the next process."""
        try:
            return await work
        finally:
            new.let_go(self._clock() + self._ttl_s)
            with suppress(OSError):
                await asyncio.to_thread(self._write, new)

    def _write(self, new: AsyncJob) -> None:
        self._folder.write(self._name(new.id), [json.dumps(described(new)).encode()])

    def _expire(self) -> None:
        """Those that run are not old. Beyond the bound, the client who has most loses its oldest."""
        now = self._clock()
        for each in [each for each in self._jobs.values() if each.job is None and each.expires_at <= now]:
            self._drop(each)
        while len(self._jobs) > _MOST:
            (most, _), *_ = Counter(each.client for each in self._jobs.values()).most_common(1)
            oldest = next((each for each in self._jobs.values() if each.client == most and each.job is None), None)
            if oldest is None:
                return
            self._drop(oldest)

    def _drop(self, old: AsyncJob) -> None:
        del self._jobs[old.id]
        self._folder.delete(self._name(old.id))
        if (entry := self._answers.find(old.scope, old.fingerprint)) is not None:
            self._answers.drop(entry)

    def _name(self, id: str) -> str:
        return self._folder.name(hashlib.sha256(id.encode()).hexdigest(), _SUFFIX)

    def _take_over(self, name: str) -> None:
        """Goes on with a job of an earlier process, if its answer is there."""
        old = None
        with suppress(OSError), self._folder.open(name) as file:
            old = recalled(file.read())
        try:
            known = old and self._name(old.id) == name and self._answers.find(old.scope, old.fingerprint)
        except InvalidRequest:
            known = None
        if old and known:
            self._jobs[old.id] = old
        else:
            self._folder.delete(name)


def scope_of(client: str, id: str) -> str:
    """What a job's answer is kept under."""
    return f"{client} job {id}"


def not_found() -> InvalidRequest:
    return InvalidRequest("there is no such job, or it is no longer kept", code="job_not_found")


_OF_REQUEST = ("width", "height", "crop", "max_sequence_length", "output_format")
_OF_RESOLVED = ("operation", "delivery", "stream", "quality", "warnings", "input_tokens", "safety_identifier")


def ended(job: AsyncJob, task: asyncio.Task[Outcome]) -> None:
    """Notes that its work is over."""
    error = None if task.cancelled() else task.exception()
    job.model = job.job = job.work = None
    job.error = error if isinstance(error, FluxserveError) else None


def described(job: AsyncJob) -> dict[str, Any]:
    """Without prompt and pictures: what an answer is written out with."""
    resolved = job.resolved
    told = {name: getattr(resolved.request, name) for name in _OF_REQUEST}
    told |= {name: getattr(resolved, name) for name in _OF_RESOLVED}
    plain = {name: getattr(job, name) for name in ("id", "client", "fingerprint", "created", "expires_at")}
    return {**plain, "resolved": told}


def recalled(data: bytes) -> AsyncJob | None:
    """The job that a file describes; None: it describes none."""
    try:
        told = json.loads(data)
        return AsyncJob(**{**told, "resolved": _resolved(told["resolved"])})
    except (ValueError, TypeError, KeyError):
        return None


def _resolved(told: dict[str, Any]) -> ResolvedRequest:
    request = GenerationRequest("", told["width"], told["height"], (), 1, None, told["max_sequence_length"])
    crop = None if told["crop"] is None else tuple(told["crop"])
    request = replace(request, output_format=told["output_format"], crop=crop)
    return ResolvedRequest(request=request, **{name: told[name] for name in _OF_RESOLVED})
