"""The front's half of generation: takes requests in, hands them to the worker, answers. Knows nothing of HTTP."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from typing import Literal

from fluxserve import errors, wire
from fluxserve.config import EngineConfig, PipelineConfig
from fluxserve.engine.admission import Admission
from fluxserve.engine.inflight import InFlight
from fluxserve.engine.job import Job
from fluxserve.engine.metrics import Metrics
from fluxserve.engine.quarantine import Quarantine
from fluxserve.engine.queue import JobQueue
from fluxserve.engine.restarts import UNEXPECTED, Death, Fatal
from fluxserve.engine.supervisor import LoadingProgress, Supervisor
from fluxserve.request import GenerationRequest, ModelCard, Timings
from fluxserve.scheduling import CostModel, drawn_pixels

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "draining", "failed"]

FEED = 2
"""Jobs the worker always has, if there are any: one to do and one to go on with."""

LAG_PROBE_S = 0.25


class Engine:
    """Owns the worker process, the queue and the jobs. Belongs to one event loop, in the main thread.

    card: what the worker said about its model; None until it was ready once, kept over restarts.
    fatal: set when no worker will come back. metrics: all figures; the server adds those of its requests.
    """

    def __init__(
        self, pipeline: PipelineConfig, limits: EngineConfig, *, worker_module: str = "fluxserve.worker"
    ) -> None:
        self.card: ModelCard | None = None
        self.fatal: Fatal | None = None
        self.metrics = Metrics()
        self._limits = limits
        self._costs = CostModel()
        self._inflight = InFlight()
        self._admission = Admission(limits, self._costs, self._inflight)
        self._queue = JobQueue(self._admission.rank_of)
        self._supervisor = Supervisor(
            worker_module, wire.Load(pipeline, limits.ageing), limits, self._costs, listener=self
        )
        self._quarantine = Quarantine()
        self._ids = itertools.count(1)
        self._feed = FEED
        self._draining = False
        self._idle = asyncio.Event()
        self._gave_up = asyncio.Event()
        self._became_ready = asyncio.Event()
        self._tasks: list[asyncio.Task[Fatal] | asyncio.Task[None]] = []
        self._watch_figures()

    @property
    def state(self) -> State:
        """starting: the first load. restarting: the worker died, jobs wait. failed: see `fatal`."""
        if self.fatal:
            return "failed"
        if self._draining:
            return "draining"
        if self._supervisor.ready:
            return "ready"
        return "restarting" if self.card else "starting"

    @property
    def loading(self) -> LoadingProgress | None:
        """The progress of the worker's present start, None while it is ready."""
        return self._supervisor.loading

    @property
    def fresh(self) -> bool:
        """The worker has shown life within the watchdog's limit; /readyz wants state `ready` and this."""
        return self._supervisor.fresh

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None between two workers."""
        return self._supervisor.pid

    async def start(self) -> None:
        """Has the worker started and returns at once; `state` tells when it is ready."""
        supervision = asyncio.create_task(self._supervisor.run())
        supervision.add_done_callback(self._give_up)
        self._tasks = [supervision, asyncio.create_task(self._probe_lag())]

    async def wait_ready(self) -> None:
        """Returns once a worker was ready for the first time.

        Raises:
            WorkerUnavailable: that will never be.
        """
        waits = [asyncio.ensure_future(event.wait()) for event in (self._became_ready, self._gave_up)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self.fatal:
            raise errors.WorkerUnavailable(self.fatal.message)

    async def wait_fatal(self) -> Fatal:
        """Waits, for ever if all goes well, until the engine has given up."""
        await self._gave_up.wait()
        assert self.fatal is not None
        return self.fatal

    def known_card(self) -> ModelCard:
        """What the worker said about its model. Raises: ModelLoading: it has not been ready yet."""
        if self.card is None:
            raise errors.ModelLoading(
                "the model is still loading; /readyz tells how far it is", retry_after_s=self._supervisor.until_ready_s
            )
        return self.card

    def serving_card(self) -> ModelCard:
        """The same, if requests are taken at all.

        Raises:
            ModelLoading, ShuttingDown, WorkerUnavailable: they are not.
        """
        if self.fatal:
            raise errors.WorkerUnavailable("the model's process cannot be kept alive; see the server's log")
        if self._draining:
            raise errors.ShuttingDown("the server is shutting down", retry_after_s=self._limits.drain_timeout_s)
        return self.known_card()

    def submit(
        self,
        request: GenerationRequest,
        *,
        client: str,
        patience_s: float | None = None,
        deadline_s: float | None = None,
        digest: str | None = None,
    ) -> Job:
        """Accepts the request, with one waiter (`Job.leave` when done with it), or refuses at once.

        client: the key or address whose share of the queue it takes. patience_s: how long it may wait for its start;
        None for ever. deadline_s: how long it may take in all. digest: names the body, so that one that has crashed
        its workers is not run again for ten minutes.

        Raises:
            QueueFull, WaitExceedsTimeout: overload, with `retry_after_s`.
            ModelLoading, ShuttingDown, WorkerUnavailable: not serving.
            WorkerCrashed: this very body has crashed its workers before.
        """
        card = self.serving_card()
        if digest is not None and digest in self._quarantine:
            raise errors.WorkerCrashed("this request has crashed its workers before and is not run again for now")
        pixels = drawn_pixels(request, card)
        job = Job(next(self._ids), request, client=client, pixels=pixels, digest=digest, on_end=self._on_end)
        self._admission.check(job, self._queue, patience_s, self._supervisor.until_ready_s)
        if deadline_s is not None:
            job.limit(deadline_s, errors.DeadlineExceeded(f"the request was not finished within {deadline_s:g} s"))
        self._queue.add(job)
        self._idle.clear()
        self._hand_over()
        return job

    def eta_s(self, job: Job) -> float | None:
        """Predicted seconds until `job` is finished; None before anything has been measured."""
        if not self._costs.calibrated:
            return None
        ahead_s = self._admission.ahead_s(job, self._queue) if job.queued else 0.0
        return self._supervisor.until_ready_s + ahead_s + self._costs.remaining_s(job.remaining_work())

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests from now on and returns when no job is open.

        Jobs that are still open after `timeout_s` seconds fail with ShuttingDown.
        """
        self._draining = True
        self._note_idle()
        try:
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        except TimeoutError:
            self._fail_all(errors.ShuttingDown("the server is shutting down"))

    async def stop(self) -> None:
        """Ends the worker and reaps it; open jobs fail with ShuttingDown. The engine cannot be started again."""
        self._draining = True
        self._fail_all(errors.ShuttingDown("the server is shutting down"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The supervisor's listener

    def on_ready(self, ready: wire.Ready) -> None:
        self.card = ready.card
        self._feed = min(max(FEED, ready.max_batch), self._limits.hand_over)
        self._became_ready.set()
        self._hand_over()

    def on_message(self, message: wire.Message) -> None:
        if isinstance(message, wire.Measured):
            self._measure(message)
            return
        if isinstance(message, wire.Began):
            self._note_start(message.job_id)
        self._inflight.on_message(message)

    def on_death(self, death: Death) -> None:
        self.metrics.restarts.labels(death.reason).inc()
        for job in (lost := self._inflight.lose()):
            if not job.missing():
                job.finish(Timings(steps=job.request.num_inference_steps))
            elif job.attempts >= self._limits.max_attempts:
                self._condemn(job)
        self._queue.put_back([job for job in lost if not job.done])

    # Between queue and worker

    def _hand_over(self) -> None:
        while self._supervisor.ready and (job := self._next_job()):
            self._supervisor.send(self._inflight.hand(job))

    def _next_job(self) -> Job | None:
        """The job the worker should get now: what keeps it fed, and whatever overtakes all it has."""
        if self._inflight.alone:
            return None
        if self._queue.returned:
            return None if len(self._inflight) else self._queue.returned.popleft()
        if len(self._inflight) < self._feed:
            return self._queue.take()
        if len(self._inflight) < self._limits.hand_over:
            return self._queue.take_below(min(map(self._admission.rank_of, self._inflight)))
        return None

    def _on_end(self, job: Job) -> None:
        """Every job comes here once, whatever ended it."""
        self.metrics.jobs.labels(_outcome(job)).inc()
        self._queue.discard(job)
        if self._inflight.drop(job):
            self._supervisor.send(wire.Cancel(job.id))
        self._hand_over()
        self._note_idle()

    def _condemn(self, job: Job) -> None:
        if job.digest is not None:
            self._quarantine.add(job.digest)
        job.fail(errors.WorkerCrashed(f"the worker crashed {job.attempts} times on this request; it is not retried"))

    def _fail_all(self, error: errors.FluxserveError) -> None:
        for job in [*self._queue, *self._inflight]:
            job.fail(error)

    def _note_idle(self) -> None:
        if not len(self._queue) and not len(self._inflight):
            self._idle.set()

    # Admission and figures

    def _measure(self, message: wire.Measured) -> None:
        self._costs.observe(message.stage, message.pixels, message.seconds)
        self.metrics.stage.labels(message.stage).observe(message.seconds)
        if message.stage == "denoise":
            self.metrics.denoise_step.observe(message.seconds)

    def _note_start(self, job_id: int) -> None:
        job = next((job for job in self._inflight if job.id == job_id), None)
        if job is not None and job.began_at is None:
            self.metrics.queue_wait.observe(time.monotonic() - job.submitted_at)
            seconds = self._limits.max_job_seconds
            job.limit(seconds, errors.DeadlineExceeded(f"a job may run for {seconds:g} s at most"))

    def _watch_figures(self) -> None:
        self.metrics.queue_depth.set_function(lambda: self._admission.waiting(self._queue))
        self.metrics.worker_up.set_function(lambda: self._supervisor.ready)
        self.metrics.watch_memory("front", os.getpid)
        self.metrics.watch_memory("worker", lambda: self._supervisor.pid)

    def _give_up(self, supervision: asyncio.Task[Fatal]) -> None:
        """The supervisor has come to an end, and with it every hope of another worker."""
        if supervision.cancelled():
            return
        error = supervision.exception()
        self.fatal = supervision.result() if error is None else Fatal(UNEXPECTED, f"the supervisor failed: {error!r}")
        log.error("giving up: %s", self.fatal.message, exc_info=error)
        self._fail_all(errors.WorkerUnavailable(self.fatal.message))
        self._gave_up.set()

    async def _probe_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            self.metrics.loop_lag.observe(max(time.monotonic() - due, 0.0))


_OUTCOMES: dict[type[errors.FluxserveError], str] = {
    errors.Cancelled: "cancelled",
    errors.DeadlineExceeded: "deadline",
    errors.WorkerCrashed: "crashed",
    errors.InsufficientMemory: "oom",
    errors.NonFiniteOutput: "nan",
}


def _outcome(job: Job) -> str:
    return "ok" if job.error is None else _OUTCOMES.get(type(job.error), "error")
