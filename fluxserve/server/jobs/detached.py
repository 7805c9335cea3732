"""Jobs whose client timed out, kept for the retry that its library is about to send.

openai-python and openai-node wait, give up, and send the same request again within about a second: a job that was
nearly done would start from nothing. Any other hang-up means that nobody wants the picture.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass

from fluxserve.engine.job import Job

KEEP_RUNNING_S = 3.0
KEEP_FINISHED_S = 60.0
MOST_JOBS, MOST_BYTES = 32, 64 * 2**20
"""Bytes of finished pictures; the oldest are let go of first."""


@dataclass(eq=False)
class _Detached:
    fingerprint: str
    job: Job
    timer: asyncio.TimerHandle


class DetachedJobs:
    """Holds one waiter's place in each job it keeps. Belongs to one event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, _Detached] = OrderedDict()

    def detach(self, fingerprint: str, job: Job) -> None:
        """Takes over the leaving client's place."""
        timer = asyncio.get_running_loop().call_later(KEEP_RUNNING_S, self._time_up, job)
        self._kept[job.id] = _Detached(fingerprint, job, timer)
        if len(self._kept) > MOST_JOBS:
            self._let_go(next(iter(self._kept)))

    def reattach(self, fingerprint: str) -> Job | None:
        """The oldest kept job of the same request, with the place in it; each is given once."""
        for kept in self._kept.values():
            if kept.fingerprint == fingerprint:
                kept.timer.cancel()
                del self._kept[kept.job.id]
                return kept.job
        return None

    def close(self) -> None:
        for job_id in list(self._kept):
            self._let_go(job_id)

    def _time_up(self, job: Job) -> None:
        """A job that is done is worth keeping longer; one that still runs costs too much."""
        if job.done and job.error is None:
            later = asyncio.get_running_loop().call_later(KEEP_FINISHED_S - KEEP_RUNNING_S, self._let_go, job.id)
            self._kept[job.id].timer = later
            self._keep_within(MOST_BYTES)
        else:
            self._let_go(job.id)

    def _keep_within(self, most: int) -> None:
        sizes = {job_id: _size(kept.job) for job_id, kept in self._kept.items()}
        held = sum(sizes.values())
        for job_id, size in sizes.items():
            if held <= most:
                return
            if size:
                self._let_go(job_id)
                held -= size

    def _let_go(self, job_id: int) -> None:
        kept = self._kept.pop(job_id)
        kept.timer.cancel()
        kept.job.leave()


def _size(job: Job) -> int:
    """Bytes of the pictures that it has made."""
    return sum(len(image.data) for image in job.progress.images)
