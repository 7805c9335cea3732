"""The open jobs of one model: admitted or refused, queued, dispatched to workers, brought to their end.

Starts no process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fluxserve import errors, wire
from fluxserve.config import EngineConfig
from fluxserve.engine.admission import Admission
from fluxserve.engine.crew import Worker
from fluxserve.engine.events import Changes
from fluxserve.engine.job import Job, Part, parts_of
from fluxserve.engine.metrics import Metrics
from fluxserve.engine.quarantine import Quarantine
from fluxserve.engine.queue import JobQueue
from fluxserve.request import GenerationRequest, Timings
from fluxserve.scheduling import CostModel

PREFETCH = 2
"""Jobs a worker always has, if there are any: one to do and one to go on with."""


@dataclass(frozen=True)
class Readiness:
    """seconds: predicted, until a worker takes jobs. measured: that is no guess."""

    seconds: float
    measured: bool


class Dispatcher:
    """paused: workers get nothing new. costs: what has been measured here; the watchdogs wait by it too.

    workers: how many there are where all are loaded. changes: told when a job comes or ends.
    """

    def __init__(
        self,
        limits: EngineConfig,
        costs: CostModel,
        metrics: Metrics,
        workers: int,
        readiness: Callable[[], Readiness],
        changes: Changes,
    ) -> None:
        self.paused = False
        self._limits = limits
        self._costs = costs
        self._metrics = metrics
        self._most_workers = workers
        self._readiness = readiness
        self._changes = changes
        self._workers: list[Worker] = []
        self._admission = Admission(limits, costs, self._workers)
        self._queue = JobQueue(self._admission.rank_of, self._admission.cost_of)
        self._quarantine = Quarantine()
        self._ids = itertools.count(1)

    @property
    def waiting(self) -> int:
        """Accepted jobs that wait for their start."""
        return len(self._admission.waiting(self._queue))

    @property
    def waiting_since(self) -> float | None:
        """When the oldest job came that no worker has (monotonic); None without any."""
        return min((part.job.clock.submitted_at for part in self._queue), default=None)

    @property
    def busy(self) -> bool:
        """A worker has a job."""
        return any(len(worker.has) for worker in self._workers)

    @property
    def idle(self) -> bool:
        """No job is open."""
        return not len(self._queue) and not self.busy

    def submit(
        self,
        request: GenerationRequest,
        pixels: int,
        *,
        client: str,
        start_timeout_s: float | None,
        deadline_s: float | None,
        digest: str | None,
    ) -> Job:
        """See `Engine.submit`. pixels: of one pass over one image."""
        if digest is not None and digest in self._quarantine:
            raise errors.WorkerCrashed("this request has crashed its workers before and is not run again for now")
        job = Job(next(self._ids), request, client=client, pixels=pixels, digest=digest, on_end=self._on_end)
        parts, readiness = parts_of(job, self._most_workers), self._readiness()
        self._admission.check(parts[0], self._queue, start_timeout_s, readiness.seconds, readiness.measured)
        if deadline_s is not None:
            job.fail_after(deadline_s, errors.DeadlineExceeded(f"the request was not finished within {deadline_s:g} s"))
        for part in parts:
            self._queue.add(part)
        self.dispatch()
        self._changes.note()
        return job

    def eta_s(self, job: Job) -> float | None:
        """Predicted seconds until `job` is finished; None before anything has been measured."""
        readiness, parts = self._readiness(), [part for part in self._parts() if part.job is job]
        if not self._costs.calibrated:
            return readiness.seconds if readiness.measured else None
        ahead_s = self._admission.ahead_s(parts[0], self._queue) if parts and job.queued else 0.0
        left_s = sum(map(self._admission.left_s, parts)) / max(min(len(parts), self._most_workers), 1)
        return readiness.seconds + ahead_s + left_s

    def place(self, job: Job) -> int:
        """1 for the job that is begun next; 0 for one that has begun."""
        part = next((part for part in self._parts() if part.job is job), None)
        if part is None or not job.queued:
            return 0
        waiting = self._admission.waiting(self._queue)
        return 1 + len({other.job for other in self._admission.before(part, self._queue)} & waiting)

    def fail_all(self, error: errors.FluxserveError) -> None:
        for job in list(dict.fromkeys(part.job for part in self._parts())):
            job.fail(error)

    # What workers say

    def employ(self, workers: Sequence[Worker]) -> None:
        """From now on these are the workers; none of the ones before has a job."""
        self._workers[:] = workers

    def on_message(self, worker: Worker, message: wire.Message) -> None:
        if isinstance(message, wire.Measured):
            self._measure(message)
            return
        if isinstance(message, wire.Began) and (job := worker.has.job(message.job_id)) and job.queued:
            self._note_start(job)
        worker.has.on_message(message)
        if isinstance(message, wire.Done):
            self.dispatch()

    def on_death(self, worker: Worker) -> None:
        """What it had begun is one attempt older, and runs again or fails."""
        lost = worker.has.take_lost()
        for part in lost:
            if not part.job.progress.missing():
                part.job.finish(Timings(steps=part.job.request.num_inference_steps))
            elif part.job.attempts >= self._limits.max_attempts:
                self._quarantine_job(part.job)
        self._queue.put_back([part for part in lost if part.missing and not part.job.done])
        self.dispatch()

    # Between queue and workers

    def dispatch(self) -> None:
        """Gives every worker what it should have: the one with the least first."""
        while not self.paused and (found := self._next()) is not None:
            worker, part = found
            worker.send(worker.has.submit(part))

    def _next(self) -> tuple[Worker, Part] | None:
        for worker in sorted((worker for worker in self._workers if worker.ready), key=lambda worker: len(worker.has)):
            if (part := self._next_part(worker)) is not None:
                return worker, part
        return None

    def _next_part(self, worker: Worker) -> Part | None:
        """What the worker should get now: what keeps it fed, and whatever overtakes all it has."""
        if worker.has.alone:
            return None
        if self._queue.returned:
            return None if len(worker.has) else self._queue.returned.popleft()
        if len(worker.has) < min(max(PREFETCH, worker.max_batch), self._limits.hand_over):
            return self._queue.take() or (None if len(worker.has) else self._taken_over())
        if len(worker.has) < self._limits.hand_over:
            return self._queue.take_below(min(map(self._admission.rank_of, worker.has)))
        return None

    def _taken_over(self) -> Part | None:
        """For a worker with nothing to do while none waits: what another has and has not begun."""
        for other in sorted(self._workers, key=lambda worker: -len(worker.has)):
            if (found := other.has.give_up()) is not None:
                part, cancel = found
                other.send(cancel)
                return part
        return None

    def _parts(self) -> Iterable[Part]:
        """In workers, then those that wait."""
        return itertools.chain((part for worker in self._workers for part in worker.has), self._queue)

    def _on_end(self, job: Job) -> None:
        """Every job comes here once, whatever ended it."""
        self._metrics.jobs.labels(_outcome(job)).inc()
        self._queue.discard(job)
        for worker in self._workers:
            worker.send(*worker.has.withdraw(job))
        self.dispatch()
        self._changes.note()

    def _quarantine_job(self, job: Job) -> None:
        if job.digest is not None:
            self._quarantine.add(job.digest)
        job.fail(errors.WorkerCrashed(f"the worker crashed {job.attempts} times on this request; it is not retried"))

    def _measure(self, message: wire.Measured) -> None:
        self._costs.observe(message.stage, message.pixels, message.seconds)
        self._metrics.stage.labels(message.stage).observe(message.seconds)
        if message.stage == "denoise":
            self._metrics.denoise_step.observe(message.seconds)

    def _note_start(self, job: Job) -> None:
        """The time that a job may run counts from its first start."""
        self._metrics.queue_wait.observe(job.clock.waited_s)
        seconds = self._limits.max_job_seconds
        job.fail_after(seconds, errors.DeadlineExceeded(f"a job may run for at most {seconds:g} s"))


_OUTCOMES: dict[type[errors.FluxserveError], str] = {
    errors.Cancelled: "cancelled",
    errors.DeadlineExceeded: "deadline",
    errors.WorkerCrashed: "crashed",
    errors.InsufficientMemory: "oom",
    errors.NonFiniteOutput: "nan",
}


def _outcome(job: Job) -> str:
    return "ok" if job.error is None else _OUTCOMES.get(type(job.error), "error")
