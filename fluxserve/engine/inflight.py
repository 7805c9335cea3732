"""The parts of jobs that one worker has, and what its messages mean for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from fluxserve import errors, wire
from fluxserve.engine.events import PartialImage
from fluxserve.engine.job import Job, Part
from fluxserve.errors import FluxserveError, GenerationFailed, InvalidRequest
from fluxserve.request import GeneratedImage, Progress

_FAILURES = {cls.code: cls for cls in GenerationFailed.__subclasses__()}


class InFlight:
    """By the number it was submitted under, which no worker gets twice. A part leaves it when it or its job ends."""

    def __init__(self) -> None:
        self._parts: dict[int, Part] = {}
        self._submitted = 0

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts.values())

    @property
    def at_work(self) -> list[Part]:
        """What the worker has taken up. A worker that has anything is at one of it."""
        return [part for part in self if part.began] or list(self)[:1]

    @property
    def alone(self) -> bool:
        """The worker must get nothing beside what it has."""
        return any(part.job.alone for part in self)

    def job(self, number: int) -> Job | None:
        """Whose part was submitted under this number; None if it is not here any more."""
        part = self._parts.get(number)
        return part.job if part else None

    def submit(self, part: Part) -> wire.Submit:
        """The message that gives it to the worker: the request, with its seeds alone that are still missing."""
        part.places = part.missing
        self._submitted += 1
        self._parts[self._submitted] = part
        job = part.job
        seeds = tuple(job.request.seeds[place] for place in part.places)
        return wire.Submit(self._submitted, replace(job.request, seeds=seeds), job.clock.age_s)

    def withdraw(self, job: Job) -> list[wire.Cancel]:
        """The messages that take all of the job back, if there is any of it here."""
        numbers = [number for number, part in self._parts.items() if part.job is job]
        return [self._cancel(number) for number in numbers]

    def give_up(self) -> tuple[Part, wire.Cancel] | None:
        """What the worker has not begun and would do last, for one that has nothing to do; see `at_work`."""
        waiting = [number for number, part in self._parts.items() if not part.began and part not in self.at_work]
        if not waiting:
            return None
        part = self._parts[waiting[-1]]
        return part, self._cancel(waiting[-1])

    def take_lost(self) -> list[Part]:
        """The worker is gone: all it had, oldest first. What it had begun has spent an attempt."""
        lost = sorted(self, key=lambda part: part.job.id)
        self._parts.clear()
        for part in lost:
            part.restart()
        return lost

    def on_message(self, message: wire.Message) -> None:
        """What happened to a part happens to its job here; those that ended in the meantime are not known any more."""
        part = self._parts.get(number := getattr(message, "job_id", 0))
        if part is None:
            return
        job = part.job
        match message:
            case wire.Began():
                part.began = True
                job.began()
            case wire.Prepared(_, text_tokens, truncated_from):
                part.prepared = True
                job.prepared(text_tokens, truncated_from)
            case wire.Stepped(_, index, step, steps):
                job.stepped(Progress(part.places[index], step, steps))
            case wire.Previewed(_, preview, image):
                placed = _placed(image, part)
                job.previewed(PartialImage(placed.index, preview, placed))
            case wire.Finished(_, image, timings):
                job.completed(_placed(image, part), timings)
            case wire.Done(_, timings):
                del self._parts[number]
                if not job.progress.missing():
                    job.finish(timings)
            case wire.Failed():
                del self._parts[number]
                job.fail(_error(message))

    def _cancel(self, number: int) -> wire.Cancel:
        del self._parts[number]
        return wire.Cancel(number)


def _placed(image: GeneratedImage, part: Part) -> GeneratedImage:
    return replace(image, index=part.places[image.index])


def _error(failed: wire.Failed) -> FluxserveError:
    """The exception that the worker's message stands for."""
    if failed.code == errors.FluxserveError.code:
        return GenerationFailed(failed.message)
    failure = _FAILURES.get(failed.code)
    if failure is not None:
        return failure(failed.message)
    return InvalidRequest(failed.message, param=failed.param, code=failed.code)
