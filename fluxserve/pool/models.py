"""The models of one server: loads what is asked for, unloads what is idle or has to give way."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Literal, Protocol

from fluxserve.config import EngineConfig, ModelConfig
from fluxserve.engine import Changes, Engine, Fatal, Metrics
from fluxserve.engine.engine import State
from fluxserve.pool.describe import describe
from fluxserve.pool.room import Room, devices_of

log = logging.getLogger(__name__)

DESCRIBED_AT_ONCE = 2
LOOK_S = 1.0
"""How often it is looked who has to give way, while somebody waits for room."""
LAG_PROBE_S = 0.25

Reason = Literal["asked", "idle", "room"]


class LoadTimes(Protocol):
    """How long loads have taken in earlier processes, s; and what drawing took, see `CostModel.rates`."""

    def get(self, key: str) -> float | None: ...
    def rates(self, key: str) -> Mapping[str, Mapping[int, float]]: ...
    def keep(self, key: str, seconds: float, rates: Mapping[str, Mapping[int, float]]) -> Awaitable[None]: ...


class ModelPool:
    """engines: the models, the first of which is the default. metrics: all figures; the server adds its requests'.

    One model is loaded at the start. Of several, each is described first, so that its card and its size are known.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        limits: EngineConfig,
        load_times: LoadTimes,
        *,
        worker_module: str = "fluxserve.worker",
    ) -> None:
        self.metrics = Metrics()
        self._changes = Changes()
        self.engines = tuple(
            Engine(model, limits, worker_module=worker_module, metrics=self.metrics, changes=self._changes)
            for model in models
        )
        self._module = worker_module
        self._load_times = load_times
        self._room = Room()
        self._leaving: set[Engine] = set()
        self._starting = {engine for engine in self.engines if engine.config.preload}
        self._refused: Fatal | None = None
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        for engine in self.engines:
            engine.load_s = load_times.get(_key(engine))
            engine.costs.recall(load_times.rates(_key(engine)))
        self._watch_figures()

    @property
    def default(self) -> Engine:
        return self.engines[0]

    @property
    def state(self) -> State:
        """ready: whatever is asked of some model is answered. starting: what loads at the start has not loaded yet."""
        states = {engine.state for engine in self.engines}
        if self._draining:
            return "draining"
        if "failed" in states and len(states) == 1:
            return "failed"
        if self._starting:
            return "starting"
        lasting: State = "restarting" if "restarting" in states else "failed"
        return "ready" if states & {"ready", "unloaded", "starting"} else lasting

    @property
    def fresh(self) -> bool:
        """Some worker has shown life within its watchdog's limit, or none is needed."""
        ready = [engine for engine in self.engines if engine.state == "ready"]
        return not ready or any(engine.fresh for engine in ready)

    async def start(self) -> None:
        """Has loads and descriptions begun, and returns at once."""
        if len(self.engines) == 1:
            self._load(self.default)
        self._tasks = [asyncio.create_task(self._tend()), asyncio.create_task(self._probe_lag())]

    async def wait_fatal(self) -> Fatal:
        """Waits, for ever if all goes well, until no model can be served any more, or one never could be."""
        await self._changes.until(lambda: self._fatal is not None)
        assert self._fatal is not None
        return self._fatal

    def check_serving(self) -> None:
        """Raises: ModelLoading, ShuttingDown, WorkerUnavailable: no request is taken, for whichever model."""
        if all(engine.fatal for engine in self.engines) or self._draining:
            self.default.check_serving()
        self.check_known()

    def check_known(self) -> None:
        """Raises: ModelLoading: the only model is loaded for the first time, and nothing is known of it."""
        if len(self.engines) == 1:
            self.default.known_card()

    def ask_for(self, engine: Engine) -> None:
        """Has it loaded, as soon as there is room; does nothing if it is."""
        self._leaving.discard(engine)
        engine.fatal = None
        engine.jobs.paused = False
        if not engine.loaded:
            engine.wanted_at = engine.wanted_at or time.monotonic()
        self._changes.note()

    def dismiss(self, engine: Engine) -> None:
        """Has it unloaded, once its workers have finished what they are at; jobs that wait have it loaded again."""
        engine.wanted_at = None
        if engine.loaded:
            engine.jobs.paused = True
            self._leaving.add(engine)
            self._changes.note()

    async def drain(self, timeout_s: float) -> None:
        """As `Engine.drain`, for all."""
        self._draining = True
        await asyncio.gather(*(engine.drain(timeout_s) for engine in self.engines))

    async def stop(self) -> None:
        """Ends all workers and reaps them; open jobs fail with ShuttingDown."""
        self._draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, *(engine.stop() for engine in self.engines), return_exceptions=True)
        for engine in self.engines:
            await self._keep_times(engine)

    @property
    def _fatal(self) -> Fatal | None:
        failures = [engine.fatal for engine in self.engines]
        return self._refused or (failures[0] if all(failures) else None)

    # What has to be done

    async def _tend(self) -> None:
        """Whenever something has changed or enough time has passed."""
        try:
            await self._describe_all()
            while True:
                seen = self._changes.count
                await self._arrange()
                try:
                    async with asyncio.timeout(self._next_look_s()):
                        await self._changes.until(lambda seen=seen: self._changes.count != seen)  # type: ignore[misc]
                except TimeoutError:
                    pass
        except Exception:
            log.exception("models are no longer loaded and unloaded")
            raise

    async def _describe_all(self) -> None:
        """Those that are not loaded already."""
        turns = asyncio.Semaphore(DESCRIBED_AT_ONCE)
        await asyncio.gather(*(self._describe(engine, turns) for engine in self.engines if not engine.loaded))
        for engine in self.engines:
            if engine.config.preload and not engine.loaded:
                self.ask_for(engine)

    async def _describe(self, engine: Engine, turns: asyncio.Semaphore) -> None:
        async with turns:
            told = await describe(self._module, engine.config.pipelines[0])
        if isinstance(told, Fatal):
            self._refused = Fatal(told.exit_code, f"{engine.config.label}: {told.message}")
            log.error("giving up: %s", self._refused.message)
        elif told is not None:
            engine.card = told.card
            self._room.free[devices_of(engine)[0]] = told.free_bytes
        self._changes.note()

    async def _arrange(self) -> None:
        self._starting -= {engine for engine in self.engines if engine.state == "ready" or engine.fatal}
        for engine in self._loaded():
            await self._let_go(engine)
        waiting = [engine for engine in self.engines if _waits(engine)]
        for engine in sorted(waiting, key=lambda engine: engine.waiting_since or 0.0):
            if not await self._make_room(engine):
                return
            self._load(engine)
        for engine in self._loaded():
            if engine.jobs.paused and engine not in self._leaving:
                engine.jobs.paused = False
                engine.jobs.dispatch()

    async def _let_go(self, engine: Engine) -> None:
        """Unloads what is to leave, or nobody has asked for in its time; keeps how long its load took."""
        if engine in self._leaving and not engine.jobs.busy:
            await self._unload(engine, "asked")
        elif _idle_left_s(engine) <= 0:
            await self._unload(engine, "idle")
        if engine.load_s != self._load_times.get(_key(engine)):
            await self._keep_times(engine)

    async def _keep_times(self, engine: Engine) -> None:
        if engine.load_s is not None:
            await self._load_times.keep(_key(engine), engine.load_s, engine.costs.rates)

    async def _make_room(self, engine: Engine) -> bool:
        """Whether there is room now. If not, the least recently used model gives way: at once if it is idle.

        One that has jobs gives way to older ones, once it has been there for as long as its load took: then it gets
        no more of them, and is unloaded when its workers have finished.
        """
        while not self._room.fits(engine, self._loaded()):
            others = [other for other in self._loaded() if set(devices_of(other)) & set(devices_of(engine))]
            others = sorted((other for other in others if other.state != "starting"), key=lambda other: other.used_at)
            idle = [other for other in others if other.jobs.idle]
            giving = [other for other in others if not other.jobs.idle and _gives_way(other, engine)]
            done = [*idle, *(other for other in giving if not other.jobs.busy)]
            if done:
                await self._unload(done[0], "room")
                continue
            if giving and not any(other.jobs.paused for other in others):
                giving[0].jobs.paused = True
            return not any(self._loaded())
        return True

    def _load(self, engine: Engine) -> None:
        self.metrics.loads.inc()
        engine.load()

    async def _unload(self, engine: Engine, reason: Reason) -> None:
        self._leaving.discard(engine)
        log.info("unloading %s: %s", engine.config.label, reason)
        self.metrics.unloads.labels(reason).inc()
        await engine.unload()
        await self._keep_times(engine)

    def _loaded(self) -> list[Engine]:
        return [engine for engine in self.engines if engine.loaded]

    def _next_look_s(self) -> float | None:
        looks = [max(_idle_left_s(engine), 0.0) for engine in self._loaded()]
        looks += [LOOK_S for engine in self.engines if _waits(engine)]
        soonest = min(looks, default=float("inf"))
        return None if soonest == float("inf") else soonest + 0.01

    # Figures

    def _watch_figures(self) -> None:
        engines, metrics = self.engines, self.metrics
        metrics.queue_depth.set_function(lambda: sum(engine.jobs.waiting for engine in engines))
        metrics.worker_up.set_function(lambda: sum(engine.ready_workers for engine in engines))
        metrics.watch_memory("front", lambda: [os.getpid()])
        metrics.watch_memory("worker", lambda: [pid for engine in engines for pid in engine.worker_pids])

    async def _probe_lag(self) -> None:
        while True:
            due = time.monotonic() + LAG_PROBE_S
            await asyncio.sleep(LAG_PROBE_S)
            self.metrics.loop_lag.observe(max(time.monotonic() - due, 0.0))


def _key(engine: Engine) -> str:
    """What a load's time depends on."""
    pipeline = engine.config.pipeline
    return f"{pipeline.model} {pipeline.device} {pipeline.dtype} {pipeline.storage} {pipeline.offload}"


def _waits(engine: Engine) -> bool:
    return not engine.loaded and engine.fatal is None and engine.waiting_since is not None


def _gives_way(engine: Engine, older: Engine) -> bool:
    """Whether it has been there long enough, and has nothing waiting that came before what the other is wanted for."""
    if engine.resident_s < (engine.load_s or 0.0):
        return False
    since = engine.jobs.waiting_since
    return since is None or since > (older.waiting_since or 0.0)


def _idle_left_s(engine: Engine) -> float:
    """Until it has been idle for its time; infinite for one that is busy, not ready, or never leaves."""
    timeout_s = engine.config.idle_timeout_s
    if timeout_s is None or not engine.jobs.idle or engine.state != "ready":
        return float("inf")
    return engine.used_at + timeout_s - time.monotonic()
