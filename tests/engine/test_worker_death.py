"""Whatever ends the worker, every accepted request gets its one right answer, and the engine is ready again."""

from __future__ import annotations

import asyncio
import functools
import os
import random
import signal
import socket
from pathlib import Path
from time import monotonic

import pytest

from fluxserve.engine import CompletedImage, Engine, Job, PartialImage
from fluxserve.engine.worker_process import open_pipe
from fluxserve.errors import WorkerCrashed, WorkerUnavailable
from tests.engine.conftest import Start, is_alive
from tests.fake_pipeline import count, read_log
from tests.jobs import assert_right, request, until

pytestmark = pytest.mark.anyio

SLOW = "a cat [slow:step:0.1]"
SOON = 0.05
"""Seconds of back-off, so that tests need not wait for it."""


@pytest.fixture
async def engine(start: Start) -> Engine:
    return await start(back_off_s=SOON)


def submit(engine: Engine, prompt: str = SLOW, seed: int = 1, *, digest: str | None = None, **fields: object) -> Job:
    return engine.submit(request(prompt, seed, **fields), client="me", digest=digest)  # type: ignore[arg-type]


def kill(engine: Engine, number: int = signal.SIGKILL) -> None:
    [pid] = engine.worker_pids
    os.kill(pid, number)


def has_begun(job: Job) -> bool:
    return not job.queued


def restarts(engine: Engine, reason: str) -> float:
    return engine.metrics.registry.get_sample_value("fluxserve_worker_restarts_total", {"reason": reason}) or 0.0


@pytest.mark.fault(33)
async def test_what_a_worker_said_before_it_died_is_heard() -> None:
    """Though it left a message unread, which resets the connection before anybody looked at what it said."""
    ours, theirs = socket.socketpair()
    reader, writer = await open_pipe(ours)
    writer.write(b"unread")
    with theirs:
        theirs.sendall(b"last words")
    await until(writer.transport.is_closing)
    assert await reader.read() == b"last words"


@pytest.mark.fault(116)
async def test_a_workers_threads_wait_asleep(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    engine = await start()
    environment = Path(f"/proc/{engine.worker_pids[0]}/environ").read_bytes().split(b"\0")
    assert {b"OMP_WAIT_POLICY=PASSIVE", b"THP_MEM_ALLOC_ENABLE=1"} <= set(environment)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    told = await start()
    assert b"OMP_WAIT_POLICY=ACTIVE" in Path(f"/proc/{told.worker_pids[0]}/environ").read_bytes().split(b"\0")


@pytest.mark.fault(33)
async def test_kill_9_with_one_running_and_two_waiting_loses_nothing(start: Start) -> None:
    engine = await start()
    jobs = [submit(engine, seed=10 * i, n=2, steps=3) for i in (1, 2, 3)]
    await until(lambda: not jobs[0].queued)
    kill(engine)
    await until(lambda: engine.state == "restarting")
    late = submit(engine, seed=40)
    for job in (*jobs, late):
        assert_right(job, await job.result())
    assert engine.state == "ready"
    assert restarts(engine, "killed") == 1
    assert_right(again := submit(engine), await again.result())


async def test_a_rerun_makes_only_what_is_missing(engine: Engine, folder: Path) -> None:
    job = submit(engine, n=3, partial_images=2)
    seen = []
    async for event in job.events():
        seen.append(event)
        if isinstance(event, CompletedImage) and event.image.index == 1:
            kill(engine)
    assert_right(job, await job.result())
    assert [event.image.index for event in seen if isinstance(event, CompletedImage)] == [0, 1, 2]
    partials = [(event.index, event.partial_index) for event in seen if isinstance(event, PartialImage)]
    assert partials == [(index, number) for index in range(3) for number in range(2)]
    assert [count(folder, "decode", seed) for seed in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.fault(33)
async def test_a_poison_request_harms_no_neighbour_and_is_not_run_again(engine: Engine, folder: Path) -> None:
    poison = submit(engine, "poison [kill:step2]", seed=50, digest="poison")
    neighbours = [submit(engine, seed=10 * i) for i in (1, 2, 3)]
    with pytest.raises(WorkerCrashed, match="2 times"):
        await poison.result()
    for job in neighbours:
        assert_right(job, await job.result())
        assert job.attempts <= 1
    assert restarts(engine, "killed") == 2
    with pytest.raises(WorkerCrashed, match="before"):
        submit(engine, "poison [kill:step2]", seed=50, digest="poison")
    assert count(folder, "step", seed=50) == 2


@pytest.mark.fault(33)
async def test_jobs_that_come_back_run_one_at_a_time_in_their_old_order(engine: Engine, folder: Path) -> None:
    jobs = [submit(engine, seed=seed, steps=steps) for seed, steps in ((10, 8), (20, 6), (30, 4))]
    await until(lambda: count(folder, "step") >= 1)
    kill(engine)
    for job in jobs:
        assert_right(job, await job.result())
    acts = read_log(folder)
    reloaded = [place for place, act in enumerate(acts) if act.verb == "load"][1]
    begun = [act.seed for act in acts[reloaded:] if act.verb == "begin" and act.seed]
    assert begun == [10, 20, 30] or begun[:2] == [10, 30]  # 20 waits in the queue when 30 was dispatched beside 10


@pytest.mark.fault(37)
async def test_a_cuda_error_ends_the_worker_and_the_job_is_done_by_the_next(engine: Engine) -> None:
    job = submit(engine, "a cat [cuda:step2:once]")
    assert_right(job, await job.result())
    assert job.attempts == 1
    assert restarts(engine, "device") == 1


@pytest.mark.fault(34)
async def test_a_hung_worker_counts_as_dead(start: Start) -> None:
    engine = await start(watchdog_floor_s=1.0, back_off_s=SOON)
    await submit(engine).result()  # from here on the time of a step is known
    started = monotonic()
    hung = submit(engine, "a cat [stop:step2:once]", seed=3)
    waiting = submit(engine, seed=8)
    for job in (hung, waiting):
        assert_right(job, await job.result())
    assert restarts(engine, "hung") == 1
    assert monotonic() - started < 20


@pytest.mark.fault(34)
async def test_a_slow_worker_that_beats_is_left_alone(start: Start) -> None:
    engine = await start(watchdog_floor_s=0.5)
    pids = engine.worker_pids
    await submit(engine).result()
    await submit(engine, "a cat [beat:vae:2.5]").result()
    assert engine.worker_pids == pids


@pytest.mark.fault(34)
async def test_a_stopped_idle_worker_is_replaced(start: Start) -> None:
    engine = await start(watchdog_floor_s=1.5, back_off_s=SOON)
    kill(engine, signal.SIGSTOP)
    await until(lambda: restarts(engine, "hung") == 1)
    assert_right(job := submit(engine), await job.result())


async def test_no_number_of_kills_loses_a_job_that_was_hit_once(engine: Engine) -> None:
    for round in range(3):
        job = submit(engine, seed=100 * round)
        await until(functools.partial(has_begun, job))
        kill(engine)
        assert_right(job, await job.result())
    assert restarts(engine, "killed") == 3


@pytest.mark.fault(33)
async def test_kills_at_any_moment_leave_one_answer_each(engine: Engine) -> None:
    rng = random.Random(7)
    jobs = [submit(engine, seed=10 * i, n=1 + i % 2, steps=3) for i in range(1, 13)]
    for _ in range(4):  # five deaths in a row before any worker was ready would be a crash loop
        await asyncio.sleep(rng.uniform(0.1, 0.8))
        if engine.worker_pids:
            kill(engine)
    for job in jobs:
        try:
            assert_right(job, await job.result())
        except WorkerCrashed:
            assert job.attempts == 2
    assert_right(again := submit(engine, seed=999), await again.result())


async def test_a_cancelled_job_is_not_run_again(engine: Engine, folder: Path) -> None:
    job = submit(engine, steps=50)
    await until(lambda: count(folder, "step") >= 1)
    kill(engine)
    await until(lambda: engine.state == "restarting")
    job.cancel()
    assert_right(other := submit(engine, seed=70), await other.result())
    assert count(folder, "begin", seed=1) == 1


async def test_a_drain_waits_for_the_worker_to_come_back(engine: Engine) -> None:
    job = submit(engine)
    await until(lambda: not job.queued)
    kill(engine)
    await engine.drain(30)
    assert_right(job, await job.result())


@pytest.mark.fault(35)
async def test_a_crash_loop_at_the_start_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_FAKE_LOAD", "exit:1")
    engine = await start(ready=False, back_off_s=SOON, max_failed_starts=3)
    fatal = await asyncio.wait_for(engine.wait_fatal(), 20)
    assert (fatal.exit_code, engine.state) == (70, "failed")
    with pytest.raises(WorkerUnavailable):
        await engine.wait_ready()
    with pytest.raises(WorkerUnavailable):
        submit(engine)


@pytest.mark.fault(35)
async def test_waiting_requests_are_answered_when_the_engine_gives_up(start: Start) -> None:
    engine = await start(back_off_s=SOON, max_barren_deaths=2, max_attempts=5)
    jobs = [submit(engine, "poison [exit:step1]"), submit(engine, seed=5, steps=50)]
    for job in jobs:
        with pytest.raises(WorkerUnavailable):
            await job.result()
    assert (await engine.wait_fatal()).exit_code == 70


async def test_failed_starts_are_tried_again(start: Start, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("FLUXSERVE_FAKE_LOAD", "exit:1:2")
    engine = await start(back_off_s=SOON)
    assert sum(act.verb == "load" for act in read_log(folder)) == 3
    assert_right(job := submit(engine), await job.result())


@pytest.mark.parametrize(("refusal", "exit_code"), [("checkpoint", 65), ("source", 69), ("config", 78)])
async def test_a_worker_that_cannot_serve_ends_the_engine_without_another_try(
    start: Start, monkeypatch: pytest.MonkeyPatch, folder: Path, refusal: str, exit_code: int
) -> None:
    monkeypatch.setenv("FLUXSERVE_FAKE_LOAD", refusal)
    engine = await start(ready=False)
    fatal = await asyncio.wait_for(engine.wait_fatal(), 20)
    assert fatal.exit_code == exit_code
    assert fatal.message in ("model.safetensors is damaged", "the repository is gated", "no such device")
    assert len(read_log(folder)) == 1


async def test_a_stop_ends_a_worker_that_hangs(start: Start) -> None:
    engine = await start()
    [pid] = engine.worker_pids
    kill(engine, signal.SIGSTOP)
    started = monotonic()
    await engine.stop()
    assert not is_alive(pid)
    assert monotonic() - started < 5


async def test_a_stop_while_the_worker_starts_leaves_none(start: Start) -> None:
    engine = await start(ready=False)
    await engine.stop()
    assert not engine.worker_pids
