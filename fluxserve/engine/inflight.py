"""The jobs the worker has, and what its messages mean for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fluxserve import errors, wire
from fluxserve.engine.events import PartialImage
from fluxserve.engine.job import Job
from fluxserve.errors import FluxserveError, GenerationFailed, InvalidRequest
from fluxserve.request import GeneratedImage, Progress

_FAILURES = {cls.code: cls for cls in GenerationFailed.__subclasses__()}


@dataclass
class Dispatched:
    """One job in the worker. places: where each of the seeds it was sent stands in its request."""

    job: Job
    places: tuple[int, ...]
    began: bool = False


class InFlight:
    """By job id. A job leaves it when it ends, however that happens."""

    def __init__(self) -> None:
        self._dispatched: dict[int, Dispatched] = {}

    def __len__(self) -> int:
        return len(self._dispatched)

    def __iter__(self) -> Iterator[Job]:
        return (dispatched.job for dispatched in self._dispatched.values())

    @property
    def begun(self) -> int:
        """Jobs the worker has taken up."""
        return sum(dispatched.began for dispatched in self._dispatched.values())

    @property
    def alone(self) -> bool:
        """The worker must get nothing beside the job it has."""
        return any(job.alone for job in self)

    def dispatch(self, job: Job) -> wire.Submit:
        """The message that gives the job to the worker: the request, with the seeds that are still missing."""
        places = job.progress.missing()
        self._dispatched[job.id] = Dispatched(job, places)
        seeds = tuple(job.request.seeds[place] for place in places)
        return wire.Submit(job.id, replace(job.request, seeds=seeds), job.clock.age_s)

    def drop(self, job: Job) -> bool:
        """Whether the worker had it."""
        return self._dispatched.pop(job.id, None) is not None

    def take_lost(self) -> list[Job]:
        """The worker is gone: all it had, oldest first. Those it had begun have spent an attempt."""
        lost = sorted(self._dispatched.values(), key=lambda dispatched: dispatched.job.id)
        self._dispatched.clear()
        for dispatched in lost:
            dispatched.job.attempts += dispatched.began
            dispatched.job.restart()
        return [dispatched.job for dispatched in lost]

    def on_message(self, message: wire.Message) -> None:
        """What happened to a job happens to it here; jobs that ended in the meantime are not known any more."""
        dispatched = self._dispatched.get(getattr(message, "job_id", 0))
        if dispatched is None:
            return
        job = dispatched.job
        match message:
            case wire.Began():
                dispatched.began = True
                job.began()
            case wire.Prepared(_, text_tokens, truncated_from):
                job.prepared(text_tokens, truncated_from)
            case wire.Stepped(_, index, step, steps):
                job.stepped(Progress(dispatched.places[index], step, steps))
            case wire.Previewed(_, number, image):
                placed = _placed(image, dispatched)
                job.previewed(PartialImage(placed.index, number, placed))
            case wire.Finished(_, image, timings):
                job.completed(_placed(image, dispatched), timings)
            case wire.Done(_, timings):
                del self._dispatched[job.id]
                job.finish(timings)
            case wire.Failed():
                del self._dispatched[job.id]
                job.fail(_error(message))


def _placed(image: GeneratedImage, dispatched: Dispatched) -> GeneratedImage:
    return replace(image, index=dispatched.places[image.index])


def _error(failed: wire.Failed) -> FluxserveError:
    """The exception that the worker's message stands for."""
    if failed.code == errors.FluxserveError.code:
        return GenerationFailed(failed.message)
    failure = _FAILURES.get(failed.code)
    if failure is not None:
        return failure(failed.message)
    return InvalidRequest(failed.message, param=failed.param, code=failed.code)
