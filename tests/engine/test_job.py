"""What happens to one job, seen by those who wait for it."""

from __future__ import annotations

import asyncio

import pytest

from fluxserve.engine.events import CompletedImage, PartialImage
from fluxserve.engine.job import Job
from fluxserve.errors import Cancelled, DeadlineExceeded, WorkerCrashed
from fluxserve.request import GeneratedImage, Progress, Timings
from fluxserve.scheduling import RemainingWork
from tests.jobs import request

pytestmark = pytest.mark.anyio


def make(n: int = 2) -> tuple[Job, list[Job]]:
    """A job, and the list it appears in when it has ended."""
    ended: list[Job] = []
    return Job(1, request(n=n), client="me", pixels=4096, digest=None, on_end=ended.append), ended


def picture(index: int) -> GeneratedImage:
    return GeneratedImage(b"data", "png", 64, 64, 1 + index, index)


async def test_images_are_in_the_order_of_their_seeds_however_they_came() -> None:
    job, ended = make()
    job.began()
    job.completed(picture(1), Timings())
    assert job.progress.missing() == (0,)
    job.completed(picture(0), Timings())
    job.finish(Timings(steps=4))
    result = await job.result()
    assert [image.index for image in result.images] == [0, 1]
    assert ended == [job]


async def test_it_ends_once() -> None:
    job, ended = make()
    job.fail(WorkerCrashed("first"))
    job.cancel()
    job.fail(WorkerCrashed("second"))
    with pytest.raises(WorkerCrashed, match="first"):
        await job.result()
    assert ended == [job]


async def test_the_last_waiter_to_leave_cancels() -> None:
    job, ended = make()
    job.join()
    job.leave()
    assert not job.done
    job.leave()
    assert isinstance(job.error, Cancelled)
    assert ended == [job]


async def test_leaving_a_finished_job_changes_nothing() -> None:
    job, _ = make(n=1)
    job.completed(picture(0), Timings())
    job.finish(Timings())
    job.leave()
    assert (await job.result()).images == (picture(0),)


async def test_readers_see_what_was_before_and_what_comes_and_the_failure_last() -> None:
    job, _ = make()
    job.stepped(Progress(0, 1, 4))
    seen = []

    async def read() -> None:
        async for event in job.events():
            seen.append(event)

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    job.previewed(PartialImage(0, 0, picture(0)))
    await asyncio.sleep(0.01)
    job.completed(picture(0), Timings())
    job.fail(WorkerCrashed("gone"))
    with pytest.raises(WorkerCrashed):
        await reader
    assert [type(event) for event in seen] == [Progress, PartialImage, CompletedImage]


async def test_a_rerun_repeats_no_preview_and_starts_what_is_missing_anew() -> None:
    job, _ = make()
    job.prepared(5, None)
    job.previewed(PartialImage(1, 0, picture(1)))
    job.completed(picture(0), Timings())
    job.stepped(Progress(1, 3, 4))
    assert job.progress.remaining_work(job.progress.missing(), True).steps_left == (1,)
    job.restart(job.progress.missing())
    assert job.progress.remaining_work((0, 1), False) == RemainingWork(4096, False, (4,))
    job.previewed(PartialImage(1, 0, picture(1)))
    job.completed(picture(1), Timings())
    job.finish(Timings())
    assert sum(isinstance(event, PartialImage) for event in [event async for event in job.events()]) == 1


async def test_its_limits_end_with_it() -> None:
    job, _ = make()
    job.fail_after(0.01, DeadlineExceeded("too late"))
    with pytest.raises(DeadlineExceeded):
        await job.result()
    other, ended = make()
    other.fail_after(0.01, DeadlineExceeded("too late"))
    other.cancel()
    await asyncio.sleep(0.03)
    assert isinstance(other.error, Cancelled)
    assert ended == [other]


async def test_the_queue_wait_ends_with_the_first_start() -> None:
    job, _ = make(n=1)
    assert job.queued
    job.began()
    await asyncio.sleep(0.02)
    job.restart(job.progress.missing())
    job.began()
    job.completed(picture(0), Timings())
    job.finish(Timings())
    timings = (await job.result()).timings
    assert timings.queue_ms < 20 <= timings.total_ms
