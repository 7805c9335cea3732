"""Requests that are answered later, over several servers: any of them tells of a job, one draws it.

How far it is, its place and its cancelling are known to the one that draws it alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from fluxserve.errors import FluxserveError, InvalidRequest, StoreUnavailable
from fluxserve.server.jobs.async_jobs import AsyncJob, described, ended, not_found, recalled, scope_of
from fluxserve.server.jobs.homes import Claim, DrawnElsewhere, refuse_other
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.shared.answers import SharedAnswers
from fluxserve.server.jobs.shared.claims import LEASE_S
from fluxserve.server.jobs.shared.objects import ObjectStorage

_FOLDER, _SUFFIX = "jobs", ".job"
_LOOK_EVERY_S = 1.0
_LONGEST_S = 24 * 3600.0
"""How long a job may take until what describes it is swept."""


class SharedJobs:
    """ttl_s: how long a job that has ended is kept: as long as URLs."""

    def __init__(self, objects: ObjectStorage, answers: SharedAnswers, ttl_s: float) -> None:
        self._objects = objects
        self._answers = answers
        self._ttl_s = ttl_s
        self._own: dict[str, AsyncJob] = {}

    async def find(self, id: str, client: str) -> AsyncJob:
        """Raises InvalidRequest: `job_not_found`: there is none, it has expired, or it is another client's."""
        found = self._own.get(id) or await self._read(id)
        if found is None or found.client != client:
            raise not_found()
        if found.job is None:
            await self._look(found)
        return found

    async def claim(self, id: str, client: str, fingerprint: str, seeds: tuple[int, ...]) -> Claim | AsyncJob:
        """The job that an Idempotency-Key stands for, or the right to open it.

        Raises:
            InvalidRequest: `idempotency_key_reused`: it stands for another request's. StoreUnavailable.
        """
        end = time.monotonic() + LEASE_S
        while time.monotonic() < end:
            if (own := self._own.get(id)) is not None:
                refuse_other(own.fingerprint, fingerprint)
                return own
            held = await self._answers.claim(client, scope_of(client, id), fingerprint, seeds)
            if isinstance(held, Claim):
                return held
            with suppress(InvalidRequest):
                return await self.find(id, client)
            if not isinstance(held, DrawnElsewhere):
                await self._answers.forget(held)  # an answer that no job tells of any more
            await asyncio.sleep(_LOOK_EVERY_S)  # another server is about to tell of it
        raise StoreUnavailable("the job cannot be found at the moment; try again", retry_after_s=5)

    async def release(self, claim: Claim) -> None:
        """Lets others open what this server does not."""
        await self._answers.release(claim)

    async def open(self, new: AsyncJob, claim: Claim, work: Coroutine[Any, Any, Outcome]) -> None:
        """Runs the work to its end, whoever asks for it, once other servers can tell of it."""
        new.expires_at = self._objects.now() + self._ttl_s
        self._own[new.id] = new
        entry = self._answers.open(claim, self._noted(new, work))
        assert entry.work is not None
        new.work = entry.work
        new.work.add_done_callback(lambda task: self._ended(new, task))
        await self._write(new)

    async def outcome(self, done: AsyncJob) -> Outcome:
        """What a job made, once it has ended.

        Raises:
            FluxserveError: why it failed; `job_not_found`: its answer had to make room.
        """
        while done.elsewhere:
            await asyncio.sleep(_LOOK_EVERY_S)
            await self._look(done)
        if done.error is not None:
            raise done.error
        found = await self._answers.look(done.scope)
        answer = None if found is None or isinstance(found, DrawnElsewhere) else await self._answers.recall(found)
        if answer is None:
            raise not_found()
        return await asyncio.shield(answer)

    async def sweep(self) -> None:
        """Deletes what describes jobs that are long over."""
        for status in await self._objects.list(_FOLDER):
            is_own = self._objects.wrote(status.path.rpartition("/")[2])
            if is_own and self._objects.age_s(status) > self._ttl_s + _LONGEST_S:
                await self._objects.delete(status.path)

    async def _look(self, job: AsyncJob) -> None:
        """Notes what has become of a job that another server draws or drew. Raises as `find` does."""
        try:
            found = await self._answers.look(job.scope)
        except StoreUnavailable:
            raise
        except FluxserveError as error:
            job.elsewhere, job.error = False, error
            return
        job.elsewhere = isinstance(found, DrawnElsewhere)
        if found is None or (not job.elsewhere and job.expires_at <= self._objects.now()):
            raise not_found()

    async def _noted(self, new: AsyncJob, work: Coroutine[Any, Any, Outcome]) -> Outcome:
        try:
            return await work
        finally:
            new.let_go(self._objects.now() + self._ttl_s)
            await self._write(new)

    def _ended(self, new: AsyncJob, task: asyncio.Task[Outcome]) -> None:
        ended(new, task)
        self._own.pop(new.id, None)

    async def _read(self, id: str) -> AsyncJob | None:
        found = await self._objects.get(self._path(id))
        return recalled(found.data) if found else None

    async def _write(self, job: AsyncJob) -> None:
        with suppress(StoreUnavailable):
            await self._objects.put(self._path(job.id), json.dumps(described(job)).encode())

    def _path(self, id: str) -> str:
        return f"{_FOLDER}/{self._objects.name(hashlib.sha256(id.encode()).hexdigest(), _SUFFIX)}"
