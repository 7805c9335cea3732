"""How far a job is: when it began, what has arrived of it, what is left."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from fluxserve.engine.events import PartialImage
from fluxserve.request import GeneratedImage, GenerationRequest, Progress, Timings
from fluxserve.scheduling import RemainingWork


@dataclass
class JobClock:
    """submitted_at, began_at: monotonic seconds; began_at is None until the worker takes the job up."""

    submitted_at: float = field(default_factory=time.monotonic)
    began_at: float | None = None

    @property
    def age_s(self) -> float:
        """Since the submission."""
        return time.monotonic() - self.submitted_at

    @property
    def waited_s(self) -> float:
        """From the submission to the start, or to now."""
        return self.age_s if self.began_at is None else self.began_at - self.submitted_at

    def begin(self) -> None:
        """Only the first start ends the wait."""
        if self.began_at is None:
            self.began_at = time.monotonic()

    def stamp(self, timings: Timings) -> Timings:
        """The worker's timings with those that only the front knows."""
        return replace(timings, queue_ms=self.waited_s * 1000, total_ms=self.age_s * 1000)


class JobProgress:
    """pixels: of one pass over one image. text_tokens, truncated_from: 0 and None until the prompt is encoded."""

    def __init__(self, request: GenerationRequest, pixels: int) -> None:
        self.pixels = pixels
        self.text_tokens = 0
        self.truncated_from: int | None = None
        self._steps = request.num_inference_steps
        self._images: dict[int, GeneratedImage] = {}
        self._steps_left = dict.fromkeys(range(len(request.seeds)), self._steps)
        self._previews: set[tuple[int, int]] = set()

    @property
    def images(self) -> tuple[GeneratedImage, ...]:
        """What has arrived, in the order of the request's seeds."""
        return tuple(self._images[index] for index in sorted(self._images))

    def remaining_work(self, places: Iterable[int], prepared: bool) -> RemainingWork:
        """Of the images at these places. prepared: their prompt is encoded where they are drawn."""
        steps_left = tuple(self._steps_left[place] for place in places if place in self._steps_left)
        return RemainingWork(self.pixels, prepared, steps_left)

    def steps_done(self) -> tuple[int, int]:
        """(steps that were done, steps in all) of all its images."""
        steps = (len(self._images) + len(self._steps_left)) * self._steps
        return steps - sum(self._steps_left.values()), steps

    def missing(self) -> tuple[int, ...]:
        """The places in the request whose images have not arrived."""
        return tuple(self._steps_left)

    def prepare(self, text_tokens: int, truncated_from: int | None) -> None:
        self.text_tokens, self.truncated_from = text_tokens, truncated_from

    def step(self, progress: Progress) -> None:
        self._steps_left[progress.index] = progress.steps - progress.step

    def preview(self, partial: PartialImage) -> bool:
        """Whether it is new: a rerun repeats those that were sent before."""
        key = (partial.index, partial.partial_index)
        is_new = key not in self._previews
        self._previews.add(key)
        return is_new

    def complete(self, image: GeneratedImage) -> None:
        self._images[image.index] = image
        del self._steps_left[image.index]

    def restart(self, places: Iterable[int]) -> None:
        """What is not complete of these begins again."""
        self._steps_left |= {place: self._steps for place in places if place in self._steps_left}
