"""One model, as the server sees it: takes requests, is loaded and unloaded, says what state it is in."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from typing import Literal

from fluxserve import errors, wire
from fluxserve.config import EngineConfig, ModelConfig
from fluxserve.engine.crew import Crew, Worker
from fluxserve.engine.dispatcher import Dispatcher, Readiness
from fluxserve.engine.events import Changes
from fluxserve.engine.job import Job
from fluxserve.engine.metrics import Metrics
from fluxserve.engine.restarts import Death, Fatal
from fluxserve.engine.supervisor import START_GUESS_S, LoadingProgress
from fluxserve.exit_codes import UNEXPECTED
from fluxserve.request import GenerationRequest, ModelCard
from fluxserve.scheduling import CostModel, drawn_pixels

log = logging.getLogger(__name__)

State = Literal["unloaded", "starting", "ready", "restarting", "draining", "failed"]


class Engine:
    """Owns the jobs of one model, and its workers while it is loaded. Belongs to one event loop, in the main thread.

    card: what a worker said about the model; None until one has, then kept. fatal: why no worker came back at the last
    load; a further load clears it. load_s: how long a load takes, measured; None: not known. costs: what drawing takes.
    used_at: when the model was last loaded or a job of it ended (monotonic). wanted_at: since when it is to be loaded,
    though no job waits.
    """

    def __init__(
        self,
        config: ModelConfig,
        limits: EngineConfig,
        *,
        worker_module: str = "fluxserve.worker",
        metrics: Metrics | None = None,
        changes: Changes | None = None,
    ) -> None:
        self.config = config
        self.card: ModelCard | None = None
        self.fatal: Fatal | None = None
        self.load_s: float | None = None
        self.used_at = time.monotonic()
        self.wanted_at: float | None = None
        self.metrics = metrics or Metrics()
        self._limits = limits
        self._module = worker_module
        self._changes = changes or Changes()
        self.costs = CostModel()
        self._loaded: _Loaded | None = None
        self._draining = False
        self._dispatcher = Dispatcher(
            limits, self.costs, self.metrics, len(config.pipelines), self._readiness, self._changes
        )

    @property
    def state(self) -> State:
        """starting: a load. restarting: every worker died, jobs wait. failed: see `fatal`."""
        if self.fatal:
            return "failed"
        if self._draining:
            return "draining"
        if self._loaded is None:
            return "unloaded"
        if self._loaded.crew.ready:
            return "ready"
        return "starting" if self._loaded.ready_at is None else "restarting"

    @property
    def loading(self) -> LoadingProgress | None:
        """The progress of the present load or restart, None without one."""
        return self._loaded.crew.loading if self._loaded else None

    @property
    def fresh(self) -> bool:
        """A worker has shown life within the watchdog's limit; /readyz wants this of a model that is ready."""
        return self._loaded is not None and self._loaded.crew.fresh

    @property
    def loaded(self) -> bool:
        """There are workers, or there will be in a moment."""
        return self._loaded is not None

    @property
    def resident_s(self) -> float:
        """Since it became ready; 0 while it is not."""
        ready_at = self._loaded.ready_at if self._loaded else None
        return 0.0 if ready_at is None else time.monotonic() - ready_at

    @property
    def worker_pids(self) -> list[int]:
        """The workers' process ids; a worker has none between two processes."""
        return self._loaded.crew.pids if self._loaded else []

    @property
    def ready_workers(self) -> int:
        """How many take jobs."""
        return sum(worker.ready for worker in self._loaded.crew.workers) if self._loaded else 0

    @property
    def jobs(self) -> Dispatcher:
        """The open ones."""
        return self._dispatcher

    @property
    def waiting_since(self) -> float | None:
        """Since when somebody waits for a worker of this model (monotonic); None if nobody does."""
        since = [moment for moment in (self.wanted_at, self._dispatcher.waiting_since) if moment is not None]
        return min(since, default=None)

    def load(self) -> None:
        """Has the workers started and returns at once; `state` tells when the model is ready."""
        if self._loaded is not None:
            return
        pipelines = self.config.pipelines
        threads = None if len(pipelines) == 1 else max(1, len(os.sched_getaffinity(0)) // len(pipelines))
        loads = [wire.Load(pipeline, self._limits.ageing, threads) for pipeline in pipelines]
        crew = Crew(self._module, loads, self._limits, self.costs, listener=self)
        crew.workers[0].supervisor.start_s = self.load_s
        self.fatal, self.used_at = None, time.monotonic()
        self._dispatcher.employ(crew.workers)
        self._dispatcher.paused = False
        self._loaded = _Loaded(crew, crew.start())
        self._loaded.life.add_done_callback(self._on_end_of_life)
        self._changes.note()

    async def unload(self) -> None:
        """Ends the workers and reaps them. Jobs that wait go on waiting; none may be in a worker."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        self._dispatcher.employ([])
        self.wanted_at = None
        loaded.life.cancel()
        await asyncio.gather(loaded.life, return_exceptions=True)
        self._changes.note()

    async def wait_ready(self) -> None:
        """Returns once a worker takes jobs.

        Raises:
            WorkerUnavailable: that will never be.
        """
        await self._changes.until(lambda: self.state == "ready" or self.fatal is not None)
        if self.fatal:
            raise errors.WorkerUnavailable(self.fatal.message)

    async def wait_fatal(self) -> Fatal:
        """Waits, for ever if all goes well, until no worker comes back."""
        await self._changes.until(lambda: self.fatal is not None)
        assert self.fatal is not None
        return self.fatal

    async def wait_card(self) -> ModelCard:
        """The card, for which the model is loaded if it never was. Raises: as `check_serving`."""
        self.check_serving()
        if self.card is None and self.wanted_at is None:
            self.wanted_at = time.monotonic()
            self._changes.note()
        await self._changes.until(lambda: self.card is not None or self._refuses)
        return self.serving_card()

    def known_card(self) -> ModelCard:
        """What a worker said about the model. Raises: ModelLoading: none has yet."""
        if self.card is None:
            raise errors.ModelLoading(
                "the model is still loading; /readyz tells how far it is", retry_after_s=self._readiness().seconds
            )
        return self.card

    def check_serving(self) -> None:
        """Raises: ShuttingDown, WorkerUnavailable: no request is taken."""
        if self.fatal:
            raise errors.WorkerUnavailable("the model's process cannot be kept alive; see the server's log")
        if self._draining:
            raise errors.ShuttingDown("the server is shutting down", retry_after_s=self._limits.drain_timeout_s)

    def serving_card(self) -> ModelCard:
        """The card, if requests are taken at all.

        Raises:
            ModelLoading, ShuttingDown, WorkerUnavailable: they are not.
        """
        self.check_serving()
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
        crashed its workers is not run again for ten minutes. A model that is not loaded is, for the job.

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

    def place(self, job: Job) -> int:
        """1 for the job that is begun next; 0 for one that has begun."""
        return self._dispatcher.place(job)

    async def drain(self, timeout_s: float) -> None:
        """Refuses new requests from now on and returns when no job is open.

        Jobs that are still open after `timeout_s` seconds fail with ShuttingDown.
        """
        self._draining = True
        self._changes.note()
        try:
            await asyncio.wait_for(self._changes.until(lambda: self._dispatcher.idle), timeout_s)
        except TimeoutError:
            self._dispatcher.fail_all(errors.ShuttingDown("the server is shutting down"))

    async def stop(self) -> None:
        """Ends the workers and reaps them; open jobs fail with ShuttingDown. The engine cannot be loaded again."""
        self._draining = True
        self._dispatcher.fail_all(errors.ShuttingDown("the server is shutting down"))
        await self.unload()

    # The crew's listener

    def on_ready(self, worker: Worker, ready: wire.Ready) -> None:
        assert self._loaded is not None
        if self._loaded.ready_at is None:
            self._loaded.ready_at = self.used_at = time.monotonic()
            self.load_s, self.wanted_at = worker.supervisor.start_s, None
            _log_ready(ready.card)
        if worker is self._loaded.crew.workers[0]:
            self.card = ready.card
        self._dispatcher.dispatch()
        self._changes.note()

    def on_message(self, worker: Worker, message: wire.Message) -> None:
        self._dispatcher.on_message(worker, message)
        if isinstance(message, wire.Done | wire.Failed):
            self.used_at = time.monotonic()

    def on_death(self, worker: Worker, death: Death) -> None:
        self.metrics.restarts.labels(death.reason).inc()
        self._dispatcher.on_death(worker)
        self._changes.note()

    @property
    def _refuses(self) -> bool:
        return self.fatal is not None or self._draining

    def _readiness(self) -> Readiness:
        """Until a worker takes jobs: the load, if there has to be one first."""
        measured = self.load_s is not None
        if self._loaded is not None and not self._dispatcher.paused:
            return Readiness(self._loaded.crew.until_ready_s, measured)
        return Readiness(START_GUESS_S if self.load_s is None else self.load_s, measured)

    def _on_end_of_life(self, life: asyncio.Task[Fatal]) -> None:
        """The crew has come to an end, and with it every hope of another worker."""
        if life.cancelled() or self._loaded is None or self._loaded.life is not life:
            return
        error = life.exception()
        self.fatal = life.result() if error is None else Fatal(UNEXPECTED, f"the supervisor failed: {error!r}")
        log.error("giving up: %s", self.fatal.message, exc_info=error)
        self._dispatcher.fail_all(errors.WorkerUnavailable(self.fatal.message))
        self._dispatcher.employ([])
        self._loaded, self.wanted_at = None, None
        self._changes.note()


def _log_ready(card: ModelCard) -> None:
    log.info("ready: %s on %s in %s. %s", card.id, card.device, card.dtype, card.notice or "")
    if card.placement is not None:
        log.info("placement: %s", card.placement.summary)


class _Loaded:
    """What there is of a model that is loaded. life: runs its crew. ready_at: when a worker first took jobs."""

    def __init__(self, crew: Crew, life: asyncio.Task[Fatal]) -> None:
        self.crew = crew
        self.life = life
        self.ready_at: float | None = None
