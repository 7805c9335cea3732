"""Whether a request is taken now, by what is ahead of it and how long that takes here. Changes no job and no queue."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence

from fluxserve.config import EngineConfig
from fluxserve.engine.crew import Worker
from fluxserve.engine.job import Job, Part
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
    """workers: those there are, at any time."""

    def __init__(self, limits: EngineConfig, costs: CostModel, workers: Sequence[Worker]) -> None:
        self._limits = limits
        self._costs = costs
        self._workers = workers
        self._promised: deque[float] = deque()

    def rank_of(self, part: Part) -> float:
        """Smallest is served next. In a worker it is served, as far as is known here, since it began."""
        return rank(self.left_s(part), part.job.clock.waited_s, self._limits.ageing)

    def cost_of(self, part: Part) -> float:
        """Seconds of the worker and of the thread that writes pictures, previews among them."""
        request, pixels, count = part.job.request, part.job.progress.pixels, len(part.places)
        shown = count * request.partial_images
        encoded = (count + shown) * self._costs.seconds("encode", request.width * request.height)
        return self.left_s(part) + encoded + shown * self._costs.seconds("preview", pixels)

    def waiting(self, queue: JobQueue) -> set[Job]:
        """Accepted jobs that wait for their start. A worker that has jobs is at one of them."""
        at_work = {part.job for worker in self._workers for part in worker.has.at_work}
        return {part.job for part in (*self._in_workers(), *queue)} - at_work

    def before(self, part: Part, queue: JobQueue) -> list[Part]:
        """What will be done before `part` is begun, at the latest beside it."""
        own = self.rank_of(part)
        others = (other for other in (*self._in_workers(), *queue) if other.job is not part.job)
        return [other for other in others if self.rank_of(other) <= own]

    def ahead_s(self, part: Part, queue: JobQueue) -> float:
        """The same in seconds, shared by the workers."""
        return sum(map(self.left_s, self.before(part, queue))) / max(len(self._workers), 1)

    def left_s(self, part: Part) -> float:
        """What is left of the part itself."""
        return self._costs.remaining_s(part.remaining_work())

    def check(
        self, part: Part, queue: JobQueue, start_timeout_s: float | None, until_ready_s: float, measured: bool = False
    ) -> None:
        """until_ready_s: until a worker takes jobs. measured: that is no guess.

        Raises:
            QueueFull: too many jobs wait, or too many of this client while others wait too.
            WaitExceedsTimeout: it would not start within start_timeout_s.
        """
        waiting = len(self.waiting(queue))
        if waiting >= self._limits.max_queue and not self._has_a_place(part.job, queue, waiting):
            raise QueueFull(
                f"{waiting} requests are waiting, which is the most this server accepts; try again later",
                retry_after_s=self._promise_s(queue, until_ready_s),
            )
        mine, others = queue.share(part.client)
        if others and mine >= CLIENT_SHARE * self._limits.max_queue:
            raise QueueFull(
                f"{mine} requests of this client are waiting, which is the most while others wait too; try again later",
                retry_after_s=self._promise_s(queue, until_ready_s),
            )
        calibrated = self._costs.calibrated
        wait_s = until_ready_s + (self.ahead_s(part, queue) if calibrated else 0.0)
        if start_timeout_s is not None and (calibrated or measured) and wait_s > start_timeout_s:
            raise WaitExceedsTimeout(
                f"the request would start in about {wait_s:.0f} s but may wait at most {start_timeout_s:g} s",
                retry_after_s=wait_s - start_timeout_s,
            )

    def _in_workers(self) -> Iterator[Part]:
        return (part for worker in self._workers for part in worker.has)

    def _has_a_place(self, job: Job, queue: JobQueue, waiting: int) -> bool:
        """In a full queue: nobody is refused because others fill it, while he has less than an equal share of it."""
        open_jobs = {job, *(part.job for part in (*self._in_workers(), *queue))}
        jobs = Counter(other.client for other in open_jobs)
        share = max(1, self._limits.max_queue // len(jobs))
        return len(jobs) > 1 and jobs[job.client] <= share and waiting < CROWDED * self._limits.max_queue

    def _promise_s(self, queue: JobQueue, until_ready_s: float) -> float:
        """Until a place in the queue is free that no client refused before was told to come back for."""
        now = time.monotonic()
        while self._promised and self._promised[0] <= now:
            self._promised.popleft()
        left_s = [self.left_s(part) for part in self._in_workers()]
        first_s = until_ready_s + min(left_s, default=0.0)
        left_s += [self.left_s(part) for part in queue]
        mean_s = sum(left_s) / max(len(left_s), 1) / max(len(self._workers), 1)
        promise_s = max(first_s, min(first_s + len(self._promised) * mean_s, HORIZON_S))
        if promise_s < HORIZON_S:
            self._promised.append(now + promise_s)
        return promise_s
