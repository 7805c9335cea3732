"""Keeps one worker alive: starts it, watches it, replaces it. A listener gets messages and deaths."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Protocol

from fluxserve import wire
from fluxserve.config import EngineConfig
from fluxserve.engine.restarts import Death, Fatal, RestartPolicy
from fluxserve.engine.watchdog import Watchdog
from fluxserve.engine.worker_process import WorkerProcess
from fluxserve.exit_codes import UNEXPECTED
from fluxserve.scheduling import CostModel

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""The watchdog looks at least this often, and kills only at the second look, so that a front that was itself
stopped for a while reads what has piled up before it blames the worker."""

LAST_WORDS_S = 10.0
"""A worker that has closed its pipe gets this long to end with an exit code of its own."""

START_GUESS_S = 5.0


@dataclass(frozen=True)
class LoadingProgress:
    """How far the worker's start is. done, total: bytes of `stage`; total 0: not known."""

    stage: str
    done: int
    total: int


class Listener(Protocol):
    def on_message(self, message: wire.Message) -> None:
        """Any message but those of the start."""

    def on_ready(self, ready: wire.Ready) -> None:
        """A worker takes jobs from now on."""

    def on_death(self, death: Death) -> None:
        """The worker that was ready, or was to be, is gone and reaped."""


class Supervisor:
    """ready: a worker takes jobs. loading: the progress of the present start, None while ready.

    start_s: how long a start takes, measured; None: not known yet. Before `run` it may be set to what is known.
    """

    def __init__(
        self, module: str, load: wire.Load, limits: EngineConfig, costs: CostModel, listener: Listener
    ) -> None:
        self.ready = False
        self.loading: LoadingProgress | None = None
        self.start_s: float | None = None
        self._module = module
        self._load = load
        self._limits = limits
        self._costs = costs
        self._listener = listener
        self._worker: WorkerProcess | None = None
        self._watchdog = Watchdog(limits, costs)
        self._policy = RestartPolicy(limits)
        self._finished_a_job = False
        self._refusal: str | None = None
        self._start_due = time.monotonic()

    @property
    def pid(self) -> int | None:
        """The worker's process id, None between two workers."""
        return self._worker.pid if self._worker else None

    @property
    def fresh(self) -> bool:
        """The worker has shown life within the watchdog's limit."""
        return self._worker is not None and self._watchdog.left_s > 0

    @property
    def until_ready_s(self) -> float:
        """Predicted seconds until a worker takes jobs; 0 while one does."""
        if self.ready:
            return 0.0
        expected = START_GUESS_S if self.start_s is None else self.start_s
        return max(self._start_due + expected - time.monotonic(), 0.5)

    def send(self, message: wire.ToWorker) -> None:
        """To the present worker, if there is one."""
        if self._worker:
            self._worker.send(message)

    async def run(self) -> Fatal:
        """Runs one worker after the other; returns when no further one makes sense. Cancelling it ends the worker."""
        self._start_due = time.monotonic()
        while True:
            death = await self._live()
            log.warning("the worker ended: %s, exit code %s", death.reason, death.exit_code)
            self._listener.on_death(death)
            pause_s = self._policy.after(death)
            if isinstance(pause_s, Fatal):
                return pause_s
            self._start_due = time.monotonic() + pause_s
            await asyncio.sleep(pause_s)

    async def _live(self) -> Death:
        """One worker from start to end."""
        self._finished_a_job, self._refusal = False, None
        self._watchdog = Watchdog(self._limits, self._costs)
        self.loading = LoadingProgress("starting", 0, 0)
        try:
            worker = self._worker = await WorkerProcess.spawn(self._module, self._load.shared)
        except OSError as error:
            log.error("the worker could not be started: %s", error)
            return Death(UNEXPECTED, was_ready=False, finished_a_job=False)
        watch = asyncio.create_task(self._watch(worker))
        was_ready, exit_code, grace_s = False, None, 0.0
        try:
            worker.send(self._load)
            async for message in worker.messages():
                self._hear(message)
            grace_s = LAST_WORDS_S
        finally:
            watch.cancel()
            was_ready, self.ready, self._worker = self.ready, False, None
            exit_code = await worker.end(grace_s)
        hung = watch.done() and not watch.cancelled()
        return Death(exit_code, was_ready, self._finished_a_job, hung, self._refusal)

    def _hear(self, message: wire.Message) -> None:
        self._watchdog.hear(message)
        match message:
            case wire.Loading(stage, done, total):
                self.loading = LoadingProgress(stage, done, total)
            case wire.Ready():
                self._become_ready(message)
            case wire.Unusable(_, reason):
                self._refusal = reason
            case wire.Beat():
                pass
            case _:
                self._finished_a_job |= isinstance(message, wire.Done)
                self._listener.on_message(message)

    def _become_ready(self, ready: wire.Ready) -> None:
        self.start_s = time.monotonic() - self._start_due
        self.ready, self.loading = True, None
        self._listener.on_ready(ready)

    async def _watch(self, worker: WorkerProcess) -> None:
        """Kills the worker when it has been silent for too long at two looks; ends then."""
        silent_looks = 0
        while silent_looks < 2:
            await asyncio.sleep(min(max(self._watchdog.left_s, LOOK_S / 10), LOOK_S))
            silent_looks = silent_looks + 1 if self._watchdog.left_s <= 0 else 0
        log.error("the worker has been silent for too long: ending it")
        worker.kill()
