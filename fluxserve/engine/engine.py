"""The torch-free dispatcher, as the server sees it: takes requests, keeps a worker, says what state they are in."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Literal

from fluxserve import errors, wire
from fluxserve.config import EngineConfig, PipelineConfig
from fluxserve.engine.dispatcher import Dispatcher
from fluxserve.engine.job import Job
from fluxserve.engine.metrics import Metrics
from fluxserve.engine.restarts import Death, Fatal
from fluxserve.engine.supervisor import LoadingProgress, Supervisor
from fluxserve.exit_codes import UNEXPECTED
from fluxserve.request import GenerationRequest, ModelCard
from fluxserve.scheduling import CostModel, drawn_pixels

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "restarting", "draining", "failed"]

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
        costs = CostModel()
        load = wire.Load(pipeline, limits.ageing)
        self._supervisor = Supervisor(worker_module, load, limits, costs, listener=self)
        self._dispatcher = Dispatcher(limits, costs, self.metrics, self._supervisor)
        self._draining = False
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
        start_timeout_s: float | None = None,
        deadline_s: float | None = None,
        digest: str | None = None,
    ) -> Job:
        """Accepts the request, with one waiter (`Job.leave` when done with it), or refuses at once.

        client: the key or address whose share of the queue it takes. start_timeout_s: how long it may wait for its
        start; None for ever. deadline_s: how long it may take in all. digest: names the body, so that one that has
        crashed its workers is not run again for ten minutes.

        Raises:
            QueueFull, WaitExceedsTimeout: overload, with `retry_after_s`.
            ModelLoading, ShuttingDown, WorkerUnavailable: not serving.
            WorkerCrashed: this very body has crashed its workers before.
        """
        pixels = drawn_pixels(request, self.serving_card())
        return self._dispatcher.submit(
            request, pixels, client=client, start_timeout_s=start_timeout_s, deadline_s=deadline_s, digest=digest
        )

    def eta_s(self, job: Job) -> float | None:
        """Predicted seconds until `job` is finished; None before anything has been measured."""
        return self._dispatcher.eta_s(job)

    def place(self, job: Job) -> int | None:
        """How many waiting jobs go before this one; None once it has begun."""
        return self._dispatcher.place(job)

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests from now on and returns when no job is open.

        Jobs that are still open after `timeout_s` seconds fail with ShuttingDown.
        """
        self._draining = True
        self._dispatcher.note_idle()
        try:
            await asyncio.wait_for(self._dispatcher.idle.wait(), timeout_s)
        except TimeoutError:
            self._dispatcher.fail_all(errors.ShuttingDown("the server is shutting down"))

    async def stop(self) -> None:
        """Ends the worker and reaps it; open jobs fail with ShuttingDown. The engine cannot be started again."""
        self._draining = True
        self._dispatcher.fail_all(errors.ShuttingDown("the server is shutting down"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The supervisor's listener

    def on_ready(self, ready: wire.Ready) -> None:
        self.card = ready.card
        self._became_ready.set()
        self._dispatcher.on_ready(ready.max_batch)

    def on_message(self, message: wire.Message) -> None:
        self._dispatcher.on_message(message)

    def on_death(self, death: Death) -> None:
        self.metrics.restarts.labels(death.reason).inc()
        self._dispatcher.on_death()

    def _watch_figures(self) -> None:
        self.metrics.queue_depth.set_function(lambda: self._dispatcher.waiting)
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
        self._dispatcher.fail_all(errors.WorkerUnavailable(self.fatal.message))
        self._gave_up.set()

    async def _probe_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            self.metrics.loop_lag.observe(max(time.monotonic() - due, 0.0))
