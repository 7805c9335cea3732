"""One job inside the worker: its samples, what is left of it, where its time went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Generic

from fluxserve.request import GenerationRequest
from fluxserve.scheduling import RemainingWork
from fluxserve.worker.pipeline_protocol import S

Spent = defaultdict[str, float]
"""Wall milliseconds by field of `Timings`."""


def no_time() -> Spent:
    return defaultdict(float)


@dataclass(eq=False)
class Image(Generic[S]):
    """One sample with its previews and its time. previews: steps after which one is still to be sent, in order."""

    sample: S
    previews: list[int]
    sent_previews: int = 0
    spent_ms: Spent = field(default_factory=no_time)

    @property
    def preview_due(self) -> bool:
        return bool(self.previews) and self.previews[0] == self.sample.step


@dataclass(eq=False)
class Task(Generic[S]):
    """A job from its submission until its last image is decoded.

    pixels: of one pass over one image. since: when it began to wait (monotonic). images: None before `begin`, then
    those that are not decoded yet. dropped: nobody wants it any more; also set by the image writer's thread.
    replanned: it has run out of memory once, and a smaller plan was made for it.
    """

    job_id: int
    request: GenerationRequest
    pixels: int
    since: float
    served_s: float = 0.0
    images: list[Image[S]] | None = None
    dropped: bool = False
    replanned: bool = False
    spent_ms: Spent = field(default_factory=no_time)

    def begin_with(self, samples: Sequence[S]) -> None:
        """Takes the pipeline's samples; the text's time belongs to each of them."""
        asked = self.request.partial_images
        self.images = [Image(sample, preview_steps(sample.steps, asked)) for sample in samples]
        for image in self.images:
            image.spent_ms["text_ms"] = self.spent_ms["text_ms"]

    def remaining_work(self) -> RemainingWork:
        if self.images is None:
            return RemainingWork(self.pixels, False, (self.request.num_inference_steps,) * len(self.request.seeds))
        return RemainingWork(self.pixels, True, tuple(image.sample.steps - image.sample.step for image in self.images))

    @contextmanager
    def spending(self, stage_ms: str, *images: Image[S]) -> Iterator[None]:
        """Adds the block's wall time to the job and to `images`, and counts it as being served."""
        start = perf_counter()
        yield
        seconds = perf_counter() - start
        self.served_s += seconds
        for spent_ms in (self.spent_ms, *(image.spent_ms for image in images)):
            spent_ms[stage_ms] += seconds * 1000


def preview_steps(steps: int, partial_images: int) -> list[int]:
    """After which steps to show an image on its way: evenly spread, never the last, fewer when there are few steps."""
    at = {round(j * steps / (partial_images + 1)) for j in range(1, partial_images + 1)}
    return sorted(at - {0, steps})
