"""Several workers of one model: one queue, whoever is free takes the next, a death costs its own jobs alone."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from time import monotonic

import pytest

from fluxserve.config import HostingConfig, ModelConfig, PipelineConfig
from fluxserve.engine import Engine, Job
from fluxserve.errors import WorkerCrashed
from tests.engine.conftest import Start
from tests.fake_pipeline import count, read_log
from tests.jobs import assert_right, request, until

pytestmark = pytest.mark.anyio

SLOW = "a cat [slow:step:0.1]"


@pytest.fixture
async def pair(start: Start) -> Engine:
    """Two workers, both ready, which know how long a step takes."""
    engine: Engine = await start(workers=2, back_off_s=0.05)
    await until(lambda: engine.ready_workers == 2)
    return engine


def submit(engine: Engine, prompt: str = SLOW, seed: int = 1, **fields: object) -> Job:
    return engine.submit(request(prompt, seed, **fields), client="me")  # type: ignore[arg-type]


async def finished(jobs: list[Job]) -> None:
    for job in jobs:
        assert_right(job, await job.result())


def test_workers_take_the_devices_in_turn() -> None:
    def devices(device: str, workers: int | None) -> list[str]:
        config = ModelConfig(PipelineConfig(device=device), HostingConfig(workers=workers))
        return [pipeline.device for pipeline in config.pipelines]

    assert devices("auto", None) == ["auto"]
    assert devices("cuda:0, cuda:1", None) == ["cuda:0", "cuda:1"]
    assert devices("cuda:0,cuda:1", 3) == ["cuda:0", "cuda:1", "cuda:0"]


@pytest.mark.behaviour(167)
async def test_they_share_the_work(pair: Engine) -> None:
    began = monotonic()
    jobs = [submit(pair, seed=10 * i) for i in range(1, 9)]
    await finished(jobs)
    assert monotonic() - began < 0.75 * 8 * 0.4, "one worker takes 3.2 s"


@pytest.mark.behaviour(168)
async def test_the_pictures_of_a_request_are_spread(pair: Engine, folder: Path) -> None:
    job = submit(pair, seed=10, n=5, partial_images=1)
    indices = [event.index async for event in job.events() if hasattr(event, "partial_index")]
    await finished([job])
    begun = sorted(act.detail for act in read_log(folder) if act.verb == "begin" and act.seed)
    assert begun == [2, 3]
    assert sorted(indices) == [0, 1, 2, 3, 4]
    assert [count(folder, "decode", seed) for seed in range(10, 15)] == [1] * 5


@pytest.mark.behaviour(167)
async def test_a_short_job_passes_long_ones(pair: Engine) -> None:
    await finished([submit(pair)])
    long = [submit(pair, seed=seed, steps=40) for seed in (10, 20, 30)]
    await until(lambda: not long[0].queued and not long[1].queued)
    short = submit(pair, seed=40, steps=2)
    await finished([short])
    assert not any(job.done for job in long)
    for job in long:
        job.cancel()


@pytest.mark.behaviour(167)
async def test_who_is_free_takes_over_what_another_has_not_begun(pair: Engine) -> None:
    await finished([submit(pair)])
    long, short, longer = (
        submit(pair, seed=10, steps=15),
        submit(pair, seed=20, steps=3),
        submit(pair, seed=30, steps=20),
    )
    await finished([short])
    await until(lambda: not longer.queued, 2)
    assert not long.done, "it had not to wait for the worker that was given it"
    await finished([long, longer])
    assert longer.attempts == 0


@pytest.mark.fault(140)
async def test_a_death_costs_only_the_jobs_of_its_worker(pair: Engine, folder: Path) -> None:
    jobs = [submit(pair, seed=10 * i, steps=12) for i in (1, 2, 3, 4)]
    await until(lambda: not jobs[0].queued and not jobs[1].queued)
    pids = pair.worker_pids
    os.kill(pids[0], signal.SIGKILL)
    await until(lambda: pair.ready_workers == 1)
    assert pair.state == "ready"
    late = submit(pair, seed=50, steps=2)
    await finished([*jobs, late])
    assert sum(job.attempts for job in jobs) == 1
    await until(lambda: pair.ready_workers == 2)
    assert pids[1] in pair.worker_pids
    assert pids[0] not in pair.worker_pids


@pytest.mark.fault(140)
async def test_a_death_beside_a_spread_request_draws_only_what_is_missing(pair: Engine, folder: Path) -> None:
    job = submit(pair, seed=10, n=6)
    await until(lambda: sum(count(folder, "decode", seed) for seed in range(10, 16)) >= 2)
    os.kill(pair.worker_pids[0], signal.SIGKILL)
    await finished([job])
    assert sum(count(folder, "decode", seed) for seed in range(10, 16)) <= 7


async def test_a_poison_request_dies_twice_however_many_workers_there_are(pair: Engine, folder: Path) -> None:
    poison = submit(pair, "poison [kill:step2]", seed=50)
    neighbours = [submit(pair, seed=10 * i) for i in (1, 2, 3)]
    with pytest.raises(WorkerCrashed):
        await poison.result()
    await finished(neighbours)
    assert count(folder, "begin", seed=50) == 2


async def test_kills_of_any_worker_at_any_moment_leave_one_answer_each(pair: Engine) -> None:
    jobs = [submit(pair, seed=10 * i, n=1 + i % 3, steps=3) for i in range(1, 13)]
    for round in range(4):
        await asyncio.sleep(0.3)
        if pair.worker_pids:
            os.kill(pair.worker_pids[round % len(pair.worker_pids)], signal.SIGKILL)
    for job in jobs:
        try:
            assert_right(job, await job.result())
        except WorkerCrashed:
            assert job.attempts >= 2


async def test_a_worker_that_cannot_be_kept_leaves_the_other(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_FAKE_LOAD", "exit:1:2-9")
    engine = await start(workers=2, back_off_s=0.05, max_failed_starts=2)
    await asyncio.sleep(2)
    assert engine.state == "ready"
    await finished([submit(engine, seed=5)])


async def test_an_unload_keeps_what_waits(pair: Engine) -> None:
    pair.jobs.paused = True
    waiting = submit(pair, seed=7)
    pids = pair.worker_pids
    await pair.unload()
    assert (pair.state, pair.worker_pids, waiting.done) == ("unloaded", [], False)
    assert len(pids) == 2
    pair.load()
    await finished([waiting])
    assert pair.load_s is not None
