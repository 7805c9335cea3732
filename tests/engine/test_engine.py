"""A request goes in, its pictures come out: order, events, cancel, bounds, deadlines, drain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import monotonic

import pytest

from fluxserve.engine import CompletedImage, Engine, Job, JobEvent, JobResult, PartialImage
from fluxserve.errors import (
    Cancelled,
    DeadlineExceeded,
    GenerationFailed,
    InsufficientMemory,
    InvalidRequest,
    ModelLoading,
    NonFiniteOutput,
    QueueFull,
    ShuttingDown,
    WaitExceedsTimeout,
    WorkerUnavailable,
)
from fluxserve.request import Progress
from tests.engine.conftest import Start
from tests.fake_pipeline import CARD, count, expected_pixels, read_log, shown_pixels
from tests.jobs import assert_right, request, until

pytestmark = pytest.mark.anyio

SLOW = "a cat [slow:step:0.2]"


def submit(engine: Engine, prompt: str = "a cat", seed: int = 1, **fields: object) -> Job:
    return engine.submit(request(prompt, seed, **fields), client="me")  # type: ignore[arg-type]


async def test_the_start_returns_at_once_and_then_the_card_is_there(start: Start) -> None:
    engine = await start(ready=False)
    assert engine.state == "starting"
    assert engine.card is None
    with pytest.raises(ModelLoading) as refusal:
        submit(engine)
    assert refusal.value.retry_after_s
    await engine.wait_ready()
    card: object = engine.card
    assert card == CARD
    assert engine.fresh
    assert engine.loading is None


async def test_loading_progress_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXSERVE_FAKE_LOAD", "slow:0.5")
    engine = await start(ready=False)
    await until(lambda: engine.loading is not None and engine.loading.stage == "transformer")
    assert engine.loading is not None
    assert (engine.loading.done, engine.loading.total) == (50, 100)


async def test_code_in_the_working_folder_is_not_run(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('came with a folder of weights')")
    monkeypatch.chdir(tmp_path)
    engine = await start(max_failed_starts=1)
    assert engine.state == "ready"


async def test_every_seed_gives_its_picture_in_order(engine: Engine) -> None:
    job = submit(engine, seed=2**64 - 1, n=3)
    result = await job.result()
    assert_right(job, result)
    assert [image.seed for image in result.images] == [2**64 - 1, 0, 1]
    assert result.timings.steps == 4
    assert result.timings.total_ms >= result.timings.denoise_ms
    assert (result.text_tokens, result.truncated_from) == (2, None)


async def test_a_cut_prompt_is_told(engine: Engine) -> None:
    result = await submit(engine, "word " * 100).result()
    assert (result.text_tokens, result.truncated_from) == (64, 100)


async def test_uploads_and_formats_cross_the_pipe(engine: Engine) -> None:
    job = submit(engine, image=b"\x00\xff" * 500_000, output_format="webp")
    image = (await job.result()).images[0]
    assert image.output_format == "webp"
    assert image.data[8:12] == b"WEBP"


async def collect(job: Job) -> list[JobEvent]:
    return [event async for event in job.events()]


async def test_events_tell_all_that_happens(engine: Engine) -> None:
    job = submit(engine, "a cat [slow:step:0.02]", n=2, partial_images=3)
    live, other = await asyncio.gather(collect(job), collect(job))
    assert live == other == await collect(job)
    for index in (0, 1):
        steps = [event.step for event in live if isinstance(event, Progress) and event.index == index]
        assert steps == [1, 2, 3, 4]
        partials = [event for event in live if isinstance(event, PartialImage) and event.index == index]
        assert [partial.partial_index for partial in partials] == [0, 1, 2]
        half = expected_pixels(1 + index, 64, 64) * 0.5
        assert abs(shown_pixels(partials[1].image) - half).max() <= 1
    assert [event.image.index for event in live if isinstance(event, CompletedImage)] == [0, 1]
    assert live[-1] == await job.result()
    assert isinstance(live[-1], JobResult)


async def test_each_image_is_sent_as_soon_as_it_is_done(engine: Engine) -> None:
    events = await collect(submit(engine, "a cat [slow:step:0.05]", n=2))
    first_image = next(place for place, event in enumerate(events) if isinstance(event, CompletedImage))
    assert first_image < events.index(Progress(1, 4, 4))


@pytest.mark.fault(27)
async def test_a_running_job_stops_within_a_step_of_its_cancel(engine: Engine, folder: Path) -> None:
    job = submit(engine, SLOW, steps=100)
    await until(lambda: count(folder, "step") >= 2)
    done = count(folder, "step")
    job.leave()
    with pytest.raises(Cancelled):
        await job.result()
    await submit(engine, "next", seed=50).result()
    assert count(folder, "step", seed=1) <= done + 1


async def test_a_cancel_is_seen_inside_a_long_decode(engine: Engine, folder: Path) -> None:
    job = submit(engine, "a cat [beat:vae:30]")
    await until(lambda: count(folder, "step") == 4)
    started = monotonic()
    job.cancel()
    await submit(engine, "next", seed=50).result()
    assert monotonic() - started < 5
    assert count(folder, "decode", seed=1) == 0


@pytest.mark.fault(26)
async def test_a_job_that_leaves_the_queue_costs_no_step(engine: Engine, folder: Path) -> None:
    first = submit(engine, SLOW, seed=1)
    await until(lambda: count(folder, "begin") == 1)
    gone = [submit(engine, seed=100 + i) for i in range(20)]
    for job in gone:
        job.leave()
    await first.result()
    await submit(engine, seed=200).result()
    assert {act.seed for act in read_log(folder) if act.verb == "step"} == {0, 1, 200}


async def test_a_job_lives_as_long_as_anybody_waits(engine: Engine) -> None:
    job = submit(engine, "a cat [slow:step:0.05]")
    job.join()
    job.leave()
    result = await job.result()
    job.leave()
    assert_right(job, result)


async def test_the_queue_is_bounded(start: Start) -> None:
    engine = await start(max_queue=2)
    running = submit(engine, SLOW)
    await until(lambda: not running.queued)
    waiting = [submit(engine, seed=10 * i) for i in (1, 2)]
    with pytest.raises(QueueFull) as refusal:
        submit(engine)
    assert refusal.value.retry_after_s is not None
    for job in (running, *waiting):
        assert_right(job, await job.result())
    assert_right(again := submit(engine), await again.result())


async def test_a_wait_that_is_too_long_is_refused_at_once(engine: Engine) -> None:
    await submit(engine, SLOW).result()
    running = submit(engine, SLOW, seed=9, steps=50)
    await until(lambda: not running.queued)
    with pytest.raises(WaitExceedsTimeout, match=r"about \d+ s") as refusal:
        engine.submit(request(SLOW, steps=100), client="me", start_timeout_s=2)
    assert refusal.value.retry_after_s is not None
    assert 1 < refusal.value.retry_after_s < 30
    short = engine.submit(request(steps=1), client="me", start_timeout_s=2)
    assert_right(short, await short.result())
    running.cancel()


async def test_a_short_job_overtakes_a_long_one(engine: Engine) -> None:
    long = submit(engine, SLOW, steps=30)
    await until(lambda: not long.queued)
    short = submit(engine, seed=5, steps=2)
    assert_right(short, await short.result())
    assert not long.done
    eta = engine.eta_s(long)
    assert eta is not None
    assert 1 < eta < 30
    long.cancel()


@pytest.mark.fault(30)
async def test_a_deadline_ends_the_job_at_its_next_step(engine: Engine, folder: Path) -> None:
    job = engine.submit(request(SLOW, steps=100), client="me", deadline_s=0.5)
    with pytest.raises(DeadlineExceeded, match=r"0\.5 s"):
        await job.result()
    done = count(folder, "step")
    await submit(engine, seed=7).result()
    assert count(folder, "step", seed=1) <= done + 1


async def test_no_job_runs_for_longer_than_the_server_allows(start: Start) -> None:
    engine = await start(max_job_seconds=0.4)
    with pytest.raises(DeadlineExceeded):
        await submit(engine, SLOW, steps=100).result()


async def test_out_of_memory_is_answered_once_by_a_smaller_plan(engine: Engine, folder: Path) -> None:
    """The job goes on where it was: no step is repeated but the one that failed."""
    job = submit(engine, "a cat [oom:step2:once]", seed=40)
    assert_right(job, await job.result())
    assert sum(act.verb == "replan" for act in read_log(folder)) == 1
    assert count(folder, "begin", seed=40) == 1
    assert count(folder, "step", seed=40) == job.request.num_inference_steps


@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        ("nan:vae", NonFiniteOutput, "not finite"),
        ("oom:step1", InsufficientMemory, "smaller size"),
        ("error:text", GenerationFailed, "ValueError"),
        ("error:encode", GenerationFailed, "ValueError"),
    ],
)
async def test_one_jobs_failure_is_its_own(engine: Engine, fault: str, error: type[Exception], says: str) -> None:
    pids = engine.worker_pids
    neighbour = submit(engine, seed=30, n=2)
    with pytest.raises(error, match=says) as failure:
        await submit(engine, f"a secret cat [{fault}]").result()
    assert "secret" not in str(failure.value)
    assert "something the prompt said" not in str(failure.value)
    assert_right(neighbour, await neighbour.result())
    assert engine.worker_pids == pids


async def test_what_the_pipeline_cannot_read_is_the_clients_fault(engine: Engine) -> None:
    with pytest.raises(InvalidRequest) as failure:
        await submit(engine, "a cat [invalid:text]").result()
    assert (failure.value.param, failure.value.code) == ("image", "invalid_image")


async def test_a_job_that_fails_after_its_first_image_keeps_nothing_back(engine: Engine) -> None:
    job = engine.submit(request(SLOW, n=5), client="me", deadline_s=1.4)
    with pytest.raises(DeadlineExceeded):
        await collect(job)
    assert len(job.progress.missing()) == 4


async def test_a_drain_lets_the_open_jobs_finish(engine: Engine) -> None:
    jobs = [submit(engine, "a cat [slow:step:0.05]", seed=10 * i) for i in range(1, 4)]
    drained = asyncio.create_task(engine.drain(30))
    await asyncio.sleep(0)
    assert engine.state == "draining"
    with pytest.raises(ShuttingDown):
        submit(engine)
    await drained
    for job in jobs:
        assert job.done
        assert_right(job, await job.result())


async def test_a_drain_that_takes_too_long_answers_the_rest(engine: Engine) -> None:
    job = submit(engine, SLOW, steps=100)
    await engine.drain(0.3)
    with pytest.raises(ShuttingDown):
        await job.result()


async def test_an_idle_engine_drains_at_once(engine: Engine) -> None:
    await asyncio.wait_for(engine.drain(30), 5)


async def test_a_stop_answers_every_job(engine: Engine) -> None:
    jobs = [submit(engine, SLOW, seed=10 * i) for i in range(1, 4)]
    await engine.stop()
    for job in jobs:
        with pytest.raises(ShuttingDown):
            await job.result()


async def test_a_mistake_in_the_front_ends_it_with_a_reason(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = await start()

    def mistake(message: object) -> None:
        raise AssertionError("a mistake")

    monkeypatch.setattr(engine, "on_message", mistake)
    with pytest.raises(WorkerUnavailable):
        await submit(engine).result()
    assert (await engine.wait_fatal()).exit_code == 1


async def test_the_figures_tell_what_happened(engine: Engine) -> None:
    await submit(engine, n=2).result()
    with pytest.raises(NonFiniteOutput):
        await submit(engine, "a cat [nan:vae]").result()
    running = submit(engine, SLOW, steps=50)
    await until(lambda: not running.queued)
    waiting = submit(engine, SLOW, steps=50)
    text = engine.metrics.text().decode()
    for line in (
        'fluxserve_jobs_total{outcome="ok"} 1.0',
        'fluxserve_jobs_total{outcome="nan"} 1.0',
        "fluxserve_queue_wait_seconds_count 3.0",
    ):
        assert line in text
    running.cancel()
    waiting.cancel()
    assert 'fluxserve_jobs_total{outcome="cancelled"} 2.0' in engine.metrics.text().decode()
