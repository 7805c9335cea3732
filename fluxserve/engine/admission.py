"""Whether a request is taken now, by what is ahead of it and how long that takes here. Changes no job and no queue."""

from __future__ import annotations

import time
from collections import Counter, deque

from fluxserve.config import EngineConfig
from fluxserve.engine.inflight import InFlight
from fluxserve.engine.job import Job
from fluxserve.engine.queue import JobQueue
from fluxserve.errors import QueueFull, WaitExceedsTimeout
from fluxserve.scheduling import CostModel, rank

CLIENT_SHARE = 0.75
"""One client may fill this part of the queue while others wait too."""
CROWDED = 2
"""So many times the queue, at most, wait where clients with less than an equal share of it come to one that is full."""

HORIZON_S = 60.0
"""No place in the queue is promised further ahead: who ignores his promise would push everybody's out of sight."""


class Admission:
    def __init__(self, limits: EngineConfig, costs: CostModel, inflight: InFlight) -> None:
        self._limits = limits
        self._costs = costs
        self._inflight = inflight
        self._promised: deque[float] = deque()

    def rank_of(self, job: Job) -> float:
        """Smallest is served next. In the worker it is served, as far as is known here, since it began."""
        return rank(self._left_s(job), job.clock.waited_s, self._limits.ageing)

    def cost_of(self, job: Job) -> float:
        """Seconds of the worker and of the thread that writes pictures, previews among them."""
        request, pixels = job.request, job.progress.pixels
        shown = len(request.seeds) * request.partial_images
        encoded = (len(request.seeds) + shown) * self._costs.seconds("encode", request.width * request.height)
        return self._left_s(job) + encoded + shown * self._costs.seconds("preview", pixels)

    def waiting(self, queue: JobQueue) -> int:
        """Accepted jobs that wait for their start. A worker that has jobs is at one of them."""
        return len(queue) + len(self._inflight) - max(self._inflight.begun, min(len(self._inflight), 1))

    def ahead_s(self, job: Job, queue: JobQueue) -> float:
        """The work that will be done before `job` is begun, in seconds."""
        own = self.rank_of(job)
        others = (other for other in (*self._inflight, *queue) if other is not job)
        return sum(self._left_s(other) for other in others if self.rank_of(other) <= own)

    def place(self, job: Job, queue: JobQueue) -> int:
        """How many of those that wait will be begun before `job`."""
        own = self.rank_of(job)
        return sum(
            other.queued and self.rank_of(other) <= own for other in (*self._inflight, *queue) if other is not job
        )

    def check(self, job: Job, queue: JobQueue, start_timeout_s: float | None, until_ready_s: float) -> None:
        """until_ready_s: until a worker takes jobs.

        Raises:
            QueueFull: too many jobs wait, or too many of this client while others wait too.
            WaitExceedsTimeout: it would not start within start_timeout_s.
        """
        waiting = self.waiting(queue)
        if waiting >= self._limits.max_queue and not self._has_a_place(job, queue, waiting):
            raise QueueFull(
                f"{waiting} requests are waiting, which is the most this server accepts; try again later",
                retry_after_s=self._promise_s(queue, until_ready_s),
            )
        mine, others = queue.share(job.client)
        if others and mine >= CLIENT_SHARE * self._limits.max_queue:
            raise QueueFull(
                f"{mine} requests of this client are waiting, which is the most while others wait too; try again later",
                retry_after_s=self._promise_s(queue, until_ready_s),
            )
        wait_s = until_ready_s + self.ahead_s(job, queue)
        if start_timeout_s is not None and self._costs.calibrated and wait_s > start_timeout_s:
            raise WaitExceedsTimeout(
                f"the request would start in about {wait_s:.0f} s but may wait at most {start_timeout_s:g} s",
                retry_after_s=wait_s - start_timeout_s,
            )

    def _has_a_place(self, job: Job, queue: JobQueue, waiting: int) -> bool:
        """In a full queue: nobody is refused because others fill it, while he has less than an equal share of it."""
        jobs = Counter(other.client for other in (*self._inflight, *queue, job))
        share = max(1, self._limits.max_queue // len(jobs))
        return len(jobs) > 1 and jobs[job.client] <= share and waiting < CROWDED * self._limits.max_queue

    def _left_s(self, job: Job) -> float:
        return self._costs.remaining_s(job.progress.remaining_work())

    def _promise_s(self, queue: JobQueue, until_ready_s: float) -> float:
        """Until a place in the queue is free that no client refused before was told to come back for."""
        now = time.monotonic()
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        left_s = [self._left_s(job) for job in self._inflight]
        first_s = until_ready_s + min(left_s, default=0.0)
        left_s += [self._left_s(job) for job in queue]
        mean_s = sum(left_s) / max(len(left_s), 1)
        promise_s = max(first_s, min(first_s + len(self._promised) * mean_s, HORIZON_S))
        if promise_s < HORIZON_S:
            self._promised.append(now + promise_s)
        return promise_s
