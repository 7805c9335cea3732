"""The workers of one loaded model, each with the parts it has. They come with a load and go with an unload."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from fluxserve import wire
from fluxserve.config import EngineConfig
from fluxserve.engine.inflight import InFlight
from fluxserve.engine.restarts import Death, Fatal
from fluxserve.engine.supervisor import LoadingProgress, Supervisor
from fluxserve.exit_codes import REFUSALS
from fluxserve.scheduling import CostModel

log = logging.getLogger(__name__)


class CrewListener(Protocol):
    def on_ready(self, worker: Worker, ready: wire.Ready) -> None:
        """It takes jobs from now on."""

    def on_message(self, worker: Worker, message: wire.Message) -> None:
        """Any message but those of the start."""

    def on_death(self, worker: Worker, death: Death) -> None:
        """It is gone and reaped, and what it had is lost."""


class Worker:
    """One worker, whichever process it is at present. has: its parts. started: set once it has been ready."""

    def __init__(
        self, module: str, load: wire.Load, limits: EngineConfig, costs: CostModel, listener: CrewListener
    ) -> None:
        self.supervisor = Supervisor(module, load, limits, costs, listener=self)
        self.has = InFlight()
        self.max_batch = 1
        self.started = asyncio.Event()
        self._listener = listener

    @property
    def ready(self) -> bool:
        """It takes jobs."""
        return self.supervisor.ready

    def send(self, *messages: wire.ToWorker) -> None:
        for message in messages:
            self.supervisor.send(message)

    def on_ready(self, ready: wire.Ready) -> None:
        self.max_batch = ready.max_batch
        self.started.set()
        self._listener.on_ready(self, ready)

    def on_message(self, message: wire.Message) -> None:
        self._listener.on_message(self, message)

    def on_death(self, death: Death) -> None:
        self._listener.on_death(self, death)


class Crew:
    """Starts the first worker, then the others beside it, and ends them together. loads: of each worker."""

    def __init__(
        self, module: str, loads: Sequence[wire.Load], limits: EngineConfig, costs: CostModel, listener: CrewListener
    ) -> None:
        self._shared = shared_memory() if len(loads) > 1 else None
        shared = [replace(load, shared=self._shared) for load in loads]
        self.workers = [Worker(module, load, limits, costs, listener) for load in shared]

    @property
    def ready(self) -> bool:
        """Some worker takes jobs."""
        return any(worker.ready for worker in self.workers)

    @property
    def fresh(self) -> bool:
        """One that takes jobs has shown life within the watchdog's limit."""
        return any(worker.ready and worker.supervisor.fresh for worker in self.workers)

    @property
    def loading(self) -> LoadingProgress | None:
        """The progress of the first worker's start, None while any is ready."""
        return None if self.ready else self.workers[0].supervisor.loading

    @property
    def pids(self) -> list[int]:
        """Of the processes there are; a worker has none between two."""
        return [pid for worker in self.workers if (pid := worker.supervisor.pid) is not None]

    @property
    def until_ready_s(self) -> float:
        """Predicted seconds until some worker takes jobs; 0 while one does."""
        started = [worker for worker in self.workers if worker.started.is_set()] or self.workers[:1]
        return min(worker.supervisor.until_ready_s for worker in started)

    def start(self) -> asyncio.Task[Fatal]:
        """Ends when no worker makes sense any more. Cancelling it ends them all."""
        life = asyncio.create_task(self._run())
        if self._shared is not None:
            life.add_done_callback(partial(_close, self._shared))
        return life

    async def _run(self) -> Fatal:
        first, *others = self.workers
        tasks = [asyncio.create_task(first.supervisor.run())]
        try:
            await _either(first.started, tasks[0])
            if first.started.is_set():
                tasks += [asyncio.create_task(other.supervisor.run()) for other in others]
            return await _last(tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def shared_memory() -> int | None:
    """The descriptor of an empty file in memory, which grows with what workers put into it and cannot be cut under
    them; None where there is no such thing, so that each holds its own. It takes no memory of this process.
    """
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.memfd_create("fluxserve-weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        log.warning("workers hold their weights one by one: %s", error)
        return None
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return descriptor


def _close(descriptor: int, _: object) -> None:
    os.close(descriptor)


async def _either(event: asyncio.Event, task: asyncio.Task[Fatal]) -> None:
    """Returns once the event is set or the task is done."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()


async def _last(tasks: Sequence[asyncio.Task[Fatal]]) -> Fatal:
    """Why the last worker has given up. One that refuses what it was given speaks for all."""
    pending = set(tasks)
    while True:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            fatal = task.result()
            if not pending or fatal.exit_code in REFUSALS:
                return fatal
            log.error("going on with one worker less: %s", fatal.message)
