"""What the main loop does between two steps: batches, previews, cancels, failures; seen over the pipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxserve import wire
from fluxserve.errors import ConfigError, FluxserveError, InsufficientMemory, InvalidRequest
from fluxserve.scheduling import CostModel
from fluxserve.worker.failures import device_lost, failed
from fluxserve.worker.scheduler import batch, next_task
from fluxserve.worker.task import Task, preview_steps
from tests.fake_pipeline import AcceleratorError, FakeSample, OutOfMemoryError, count, read_log
from tests.jobs import request
from tests.worker.conftest import Worker

AREA = 64 * 64


@pytest.fixture
def batching(spawn: Callable[..., Worker]) -> Worker:
    """A worker that steps four samples together."""
    worker = spawn(FLUXSERVE_FAKE_BATCH="4")
    assert worker.load().max_batch == 4
    return worker


def test_on_a_cpu_images_are_made_one_after_the_other(worker: Worker) -> None:
    worker.send(wire.Submit(1, request(n=2, steps=3), 0.0))
    worker.wait_for(wire.Done)
    assert [(message.index, message.step) for message in worker.of(wire.Stepped)] == [
        (index, step) for index in (0, 1) for step in (1, 2, 3)
    ]


def test_elsewhere_the_images_of_a_batch_go_side_by_side(batching: Worker) -> None:
    batching.send(wire.Submit(1, request(n=5, steps=3), 0.0))
    batching.wait_for(wire.Done)
    steps = [(message.index, message.step) for message in batching.of(wire.Stepped)]
    assert steps[:4] == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert steps[-3:] == [(4, 1), (4, 2), (4, 3)]
    assert [message.image.index for message in batching.of(wire.Finished)] == [0, 1, 2, 3, 4]
    denoise = [message.pixels for message in batching.of(wire.Measured) if message.stage == "denoise"]
    assert denoise == [AREA, *[4 * AREA] * 3, *[AREA] * 3]  # the first is the warm-up's


def test_a_failure_in_a_batch_fails_the_job_at_fault_alone(batching: Worker, tmp_path: Path) -> None:
    batching.send(wire.Submit(1, request("a cat [slow:text:0.3]", seed=100), 0.0))
    batching.send(wire.Submit(2, request("a cat [oom:step2]", seed=200), 5.0))
    batching.send(wire.Submit(3, request("a cat", seed=300, n=2), 0.0))
    answers = {batching.wait_for(wire.Failed).job_id: "failed"}
    while len(batching.of(wire.Done)) < 2:
        answers[batching.wait_for(wire.Done).job_id] = "done"
    assert answers == {1: "done", 2: "failed", 3: "done"}
    assert batching.of(wire.Failed)[0].code == "insufficient_memory"
    for seed in (100, 300, 301):
        steps = [act.detail for act in read_log(tmp_path) if (act.verb, act.seed) == ("step", seed)]
        assert steps == [1, 2, 3, 4]


def test_previews_come_at_their_steps_before_the_image(worker: Worker, tmp_path: Path) -> None:
    worker.send(wire.Submit(1, request(n=2, steps=8, partial_images=3), 0.0))
    worker.wait_for(wire.Done)
    told = [
        (message.image.index, message.partial_index if isinstance(message, wire.Previewed) else "done")
        for message in worker.heard
        if isinstance(message, wire.Previewed | wire.Finished)
    ]
    assert told == [(index, what) for index in (0, 1) for what in (0, 1, 2, "done")]
    assert [act.detail for act in read_log(tmp_path) if act.verb == "preview"] == [2, 4, 6] * 2


def test_a_preview_costs_no_step_and_no_order(worker: Worker, tmp_path: Path) -> None:
    worker.send(wire.Submit(1, request(steps=6, partial_images=2), 0.0))
    worker.wait_for(wire.Done)
    assert count(tmp_path, "step", seed=1) == 6


def test_a_cancelled_job_is_answered_by_nothing(worker: Worker, tmp_path: Path) -> None:
    worker.send(wire.Submit(1, request("a cat [slow:step:0.1]", steps=50), 0.0))
    worker.wait_for(wire.Stepped)
    worker.send(wire.Cancel(1))
    worker.send(wire.Cancel(99))
    worker.send(wire.Submit(2, request(seed=9), 0.0))
    worker.wait_for(wire.Done)
    assert {message.job_id for message in worker.of(wire.Done)} == {2}
    assert not worker.of(wire.Failed)
    assert count(tmp_path, "step", seed=1) <= 3


def test_a_job_fails_once_even_when_several_of_its_images_do(worker: Worker) -> None:
    worker.send(wire.Submit(1, request("a cat [error:encode]", n=3), 0.0))
    worker.wait_for(wire.Failed)
    worker.send(wire.Submit(2, request(seed=9), 0.0))
    worker.wait_for(wire.Done)
    assert [message.job_id for message in worker.of(wire.Failed)] == [1]
    assert [message.job_id for message in worker.of(wire.Done)] == [2]


def test_timings_name_every_stage(worker: Worker) -> None:
    worker.send(
        wire.Submit(
            1,
            request(
                "[slow:text:0.05] [slow:step:0.05] [slow:vae:0.05] [slow:encode:0.05]", n=2, steps=2, partial_images=1
            ),
            0.0,
        )
    )
    whole = worker.wait_for(wire.Done).timings
    each = [message.timings for message in worker.of(wire.Finished)]
    assert whole.text_ms >= 50
    assert whole.denoise_ms >= 200
    assert whole.decode_ms >= 100
    assert whole.encode_ms >= 100
    assert all(timings.text_ms == whole.text_ms for timings in each)
    assert sum(timings.denoise_ms for timings in each) == pytest.approx(whole.denoise_ms)


@pytest.mark.parametrize(
    ("steps", "partial_images", "after"),
    [
        (4, 0, []),
        (4, 1, [2]),
        (4, 3, [1, 2, 3]),
        (28, 3, [7, 14, 21]),
        (1, 3, []),
        (2, 2, [1]),
        (3, 3, [1, 2]),
        (50, 2, [17, 33]),
    ],
)
def test_previews_are_spread_evenly_and_never_the_last_step(steps: int, partial_images: int, after: list[int]) -> None:
    assert preview_steps(steps, partial_images) == after


def task(
    job_id: int, *, steps: int = 4, n: int = 1, done: int = 0, since: float = 0.0, width: int = 64
) -> Task[FakeSample]:
    asked = request(steps=steps, n=n, width=width)
    made: Task[FakeSample] = Task(job_id, asked, width * 64, since)
    made.begin_with([FakeSample(asked, index, done) for index in range(n)])
    return made


def unit_costs() -> CostModel:
    """A second a step at 64 x 64."""
    costs = CostModel()
    costs.observe("denoise", AREA, 1.0)
    return costs


def test_the_job_with_least_left_goes_on() -> None:
    tasks = [task(1, steps=50), task(2, steps=50, done=48), task(3, steps=4)]
    assert next_task(tasks, unit_costs(), 0.1, now=0.0).job_id == 2
    assert next_task([tasks[0], tasks[2]], unit_costs(), 0.1, now=0.0).job_id == 3
    assert next_task([task(1), task(2)], unit_costs(), 0.1, now=0.0).job_id == 1


def test_a_job_that_has_waited_long_enough_goes_on_whatever_comes() -> None:
    old, new = task(1, steps=50, since=0.0), task(2, steps=1, since=500.0)
    assert next_task([old, new], unit_costs(), 0.1, now=500.0).job_id == 1
    assert next_task([old, new], unit_costs(), 0.0, now=500.0).job_id == 2
    old.served_s = 450.0
    assert next_task([old, new], unit_costs(), 0.1, now=500.0).job_id == 2


def ids(first: Task[FakeSample], tasks: list[Task[FakeSample]], max_batch: int) -> list[tuple[int, int]]:
    return [(each.job_id, image.sample.index) for each, image in batch(first, tasks, max_batch)]


def test_a_batch_is_of_one_kind_and_begins_with_the_job_chosen() -> None:
    first, same, wide = task(1, n=2), task(2, n=3), task(3, width=128)
    tasks = [wide, same, first]
    assert ids(first, tasks, 4) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert ids(first, tasks, 1) == [(1, 0)]
    assert ids(wide, tasks, 4) == [(3, 0)]


def test_the_image_furthest_on_is_stepped_first() -> None:
    job = task(1, n=3)
    assert job.images is not None
    job.images[2].sample.step = 2
    assert ids(job, [job], 2) == [(1, 2), (1, 0)]


def test_what_waits_for_its_preview_or_decode_is_not_stepped() -> None:
    job = task(1, n=3)
    assert job.images is not None
    job.images[0].sample.step = 4
    job.images[1].sample.step = 2
    job.images[1].previews = [2]
    assert ids(job, [job], 4) == [(1, 2)]


def test_failures_are_told_in_the_front_s_words() -> None:
    assert failed(7, OutOfMemoryError("CUDA out of memory")).code == InsufficientMemory.code
    assert failed(7, MemoryError()).code == InsufficientMemory.code
    invalid = failed(7, InvalidRequest("bad picture", param="image", code="invalid_image"))
    assert invalid == wire.Failed(7, "invalid_image", "bad picture", "image")
    for error in (ValueError("a secret prompt"), ConfigError("a secret path")):
        unforeseen = failed(7, error)
        assert (unforeseen.code, "secret" in unforeseen.message) == (FluxserveError.code, False)


def test_a_broken_device_is_told_from_a_broken_request() -> None:
    assert device_lost(AcceleratorError("device-side assert triggered"))
    assert device_lost(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not device_lost(RuntimeError("shapes do not match"))
    assert not device_lost(ValueError("CUDA error in a prompt"))
    assert not device_lost(OutOfMemoryError("CUDA out of memory"))
