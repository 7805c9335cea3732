"""The open jobs: admitted or refused, queued, dispatched to the worker, brought to their end. Starts no process."""

from __future__ import annotations

import asyncio
import itertools

from fluxserve import errors, wire
from fluxserve.config import EngineConfig
from fluxserve.engine.admission import Admission
from fluxserve.engine.inflight import InFlight
from fluxserve.engine.job import Job
from fluxserve.engine.metrics import Metrics
from fluxserve.engine.quarantine import Quarantine
from fluxserve.engine.queue import JobQueue
from fluxserve.engine.supervisor import Supervisor
from fluxserve.request import GenerationRequest, Timings
from fluxserve.scheduling import CostModel

PREFETCH = 2
"""Jobs the worker always has, if there are any: one to do and one to go on with."""


class Dispatcher:
    """idle: set while no job is open. costs: what has been measured here; the watchdog waits by it too."""

    def __init__(self, limits: EngineConfig, costs: CostModel, metrics: Metrics, supervisor: Supervisor) -> None:
        self.idle = asyncio.Event()
        self._limits = limits
        self._costs = costs
        self._metrics = metrics
        self._supervisor = supervisor
        self._inflight = InFlight()
        self._admission = Admission(limits, costs, self._inflight)
        self._queue = JobQueue(self._admission.rank_of, self._admission.cost_of)
        self._quarantine = Quarantine()
        self._ids = itertools.count(1)
        self._prefetch = PREFETCH

    @property
    def waiting(self) -> int:
        """Accepted jobs that wait for their start."""
        return self._admission.waiting(self._queue)

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
        self._admission.check(job, self._queue, start_timeout_s, self._supervisor.until_ready_s)
        if deadline_s is not None:
            job.fail_after(deadline_s, errors.DeadlineExceeded(f"the request was not finished within {deadline_s:g} s"))
        self._queue.add(job)
        self.idle.clear()
        self._dispatch()
        return job

    def eta_s(self, job: Job) -> float | None:
        """Predicted seconds until `job` is finished; None before anything has been measured."""
        if not self._costs.calibrated:
            return None
        ahead_s = self._admission.ahead_s(job, self._queue) if job.queued else 0.0
        left_s = self._costs.remaining_s(job.progress.remaining_work())
        return self._supervisor.until_ready_s + ahead_s + left_s

    def place(self, job: Job) -> int | None:
        """How many waiting jobs go before this one; None once it has begun."""
        return self._admission.place(job, self._queue) if job.queued else None

    def fail_all(self, error: errors.FluxserveError) -> None:
        for job in [*self._queue, *self._inflight]:
            job.fail(error)

    def note_idle(self) -> None:
        """Sets `idle` if no job is open."""
        if not len(self._queue) and not len(self._inflight):
            self.idle.set()

    # What the worker says

    def on_ready(self, max_batch: int) -> None:
        """A worker takes jobs from now on."""
        self._prefetch = min(max(PREFETCH, max_batch), self._limits.hand_over)
        self._dispatch()

    def on_message(self, message: wire.Message) -> None:
        if isinstance(message, wire.Measured):
            self._measure(message)
            return
        if isinstance(message, wire.Began):
            self._note_start(message.job_id)
        self._inflight.on_message(message)

    def on_death(self) -> None:
        """The worker is gone: what it had begun is one attempt older, and runs again or fails."""
        for job in (lost := self._inflight.take_lost()):
            if not job.progress.missing():
                job.finish(Timings(steps=job.request.num_inference_steps))
            elif job.attempts >= self._limits.max_attempts:
                self._quarantine_job(job)
        self._queue.put_back([job for job in lost if not job.done])

    # Between queue and worker

    def _dispatch(self) -> None:
        while self._supervisor.ready and (job := self._next_job()):
            self._supervisor.send(self._inflight.dispatch(job))

    def _next_job(self) -> Job | None:
        """The job the worker should get now: what keeps it fed, and whatever overtakes all it has."""
        if self._inflight.alone:
            return None
        if self._queue.returned:
            return None if len(self._inflight) else self._queue.returned.popleft()
        if len(self._inflight) < self._prefetch:
            return self._queue.take()
        if len(self._inflight) < self._limits.hand_over:
            return self._queue.take_below(min(map(self._admission.rank_of, self._inflight)))
        return None

    def _on_end(self, job: Job) -> None:
        """Every job comes here once, whatever ended it."""
        self._metrics.jobs.labels(_outcome(job)).inc()
        self._queue.discard(job)
        if self._inflight.drop(job):
            self._supervisor.send(wire.Cancel(job.id))
        self._dispatch()
        self.note_idle()

    def _quarantine_job(self, job: Job) -> None:
        if job.digest is not None:
            self._quarantine.add(job.digest)
        job.fail(errors.WorkerCrashed(f"the worker crashed {job.attempts} times on this request; it is not retried"))

    def _measure(self, message: wire.Measured) -> None:
        self._costs.observe(message.stage, message.pixels, message.seconds)
        self._metrics.stage.labels(message.stage).observe(message.seconds)
        if message.stage == "denoise":
            self._metrics.denoise_step.observe(message.seconds)

    def _note_start(self, job_id: int) -> None:
        job = next((job for job in self._inflight if job.id == job_id), None)
        if job is not None and job.queued:
            self._metrics.queue_wait.observe(job.clock.age_s)
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
