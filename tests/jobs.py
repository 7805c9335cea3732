"""Requests for engine and worker tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import monotonic

from fluxserve.engine import Job, JobResult
from fluxserve.request import GenerationRequest, consecutive_seeds
from tests.fake_pipeline import expected_pixels, shown_pixels


def request(prompt: str = "a cat", seed: int = 1, *, n: int = 1, steps: int = 4, **fields: object) -> GenerationRequest:
    """A small one."""
    small = GenerationRequest(prompt, 64, 64, consecutive_seeds(seed, n), steps, None, 256)
    return replace(small, **fields)  # type: ignore[arg-type]


def assert_right(job: Job, result: JobResult) -> None:
    """Every image of the job is there, in order, and shows what its seed draws."""
    assert [image.seed for image in result.images] == list(job.request.seeds)
    assert [image.index for image in result.images] == list(range(len(job.request.seeds)))
    for image in result.images:
        assert (shown_pixels(image) == expected_pixels(image.seed, image.width, image.height)).all()


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Returns once it holds."""
    end = monotonic() + timeout_s
    while not condition():
        assert monotonic() < end, "it did not come about"
        await asyncio.sleep(0.01)
