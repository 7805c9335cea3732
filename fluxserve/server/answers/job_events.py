"""The events of one job, as they happen or afterwards, in the words of the door they leave by.

Place, steps and seconds to come are comments. The events end with the last picture or with the failure, and never
silently.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from fluxserve.engine import Engine
from fluxserve.engine.events import CompletedImage, JobEvent, PartialImage
from fluxserve.engine.job import Job
from fluxserve.errors import FluxserveError
from fluxserve.request import GeneratedImage, GenerationRequest, Progress, Timings
from fluxserve.server.answers.images import truncation_warning
from fluxserve.server.answers.sse import Event
from fluxserve.server.jobs.outcome import Outcome

_PROGRESS_EVERY_S = 0.25
_TELL_WAITING_AFTER_S, _TELL_WAITING_EVERY_S = 0.2, 2.0


@dataclass(frozen=True)
class Finished:
    """A finished picture, with what a stream tells of it. warnings: of the whole request."""

    image: GeneratedImage
    timings: Timings
    text_tokens: int
    warnings: list[str]


class StreamWords(Protocol):
    """How one door writes what happens to one request; used for one stream."""

    def opened(self) -> Iterable[Event]:
        """Before anything has happened."""

    def begun(self, index: int) -> Iterable[Event]:
        """Image `index` has done a step, perhaps not its first."""

    def partial(self, partial: PartialImage) -> Iterable[Event]:
        """A preview."""

    def completed(self, finished: Finished) -> Iterable[Event]:
        """A picture is there."""

    def failed(self, error: FluxserveError) -> Iterable[Event]:
        """Nothing more comes."""

    def closed(self) -> Iterable[Event]:
        """All pictures are there."""


async def live(words: StreamWords, job: Job, model: Engine) -> AsyncIterator[Event]:
    """The events of a job, as they happen; its place and the seconds to come while it waits."""
    for opening in words.opened():
        yield opening
    ending, told = words.closed, _Told(job, model)
    try:
        async for event in _with_pauses(job):
            for written in (*told.comments(event), *_written(words, event, job)):
                yield written
    except FluxserveError as error:
        ending = partial(words.failed, error)
    for last in ending():
        yield last


def _written(words: StreamWords, event: JobEvent | None, job: Job) -> Iterable[Event]:
    match event:
        case Progress():
            return words.begun(event.index)
        case PartialImage():
            return words.partial(event)
        case CompletedImage():
            warnings = truncation_warning(job.request, job.progress.truncated_from)
            return words.completed(Finished(event.image, event.timings, job.progress.text_tokens, warnings))
    return ()


async def replayed(
    words: StreamWords, request: GenerationRequest, outcome_of: Callable[[], Awaitable[Outcome]]
) -> AsyncIterator[Event]:
    """The finished pictures of a job that ran for another, or will have."""
    for opening in words.opened():
        yield opening
    ending = words.closed
    try:
        result = (await outcome_of()).result
        warnings = truncation_warning(request, result.truncated_from)
        for image in result.images:
            for written in words.completed(Finished(image, result.timings, result.text_tokens, warnings)):
                yield written
    except FluxserveError as error:
        ending = partial(words.failed, error)
    for last in ending():
        yield last


class _Told:
    """What comments tell of a job: its place while it waits, its steps now and then."""

    def __init__(self, job: Job, model: Engine) -> None:
        self._job, self._model = job, model
        self._at = 0.0

    def comments(self, event: JobEvent | None) -> Iterable[Event]:
        if event is None:
            return (_waiting(self._model, self._job),)
        if isinstance(event, Progress) and time.monotonic() - self._at >= _PROGRESS_EVERY_S:
            self._at = time.monotonic()
            return (_progress(event, self._model.eta_s(self._job)),)
        return ()


async def _with_pauses(job: Job) -> AsyncIterator[JobEvent | None]:
    """The job's events, and None now and then while it waits for its start."""
    events, pause_s = job.events(), _TELL_WAITING_AFTER_S
    coming = asyncio.ensure_future(anext(events, _END))
    try:
        while True:
            await asyncio.wait([coming], timeout=pause_s if job.queued else None)
            if not coming.done():
                pause_s = _TELL_WAITING_EVERY_S
                if job.queued:
                    yield None
            elif isinstance(event := coming.result(), _End):
                return
            else:
                coming = asyncio.ensure_future(anext(events, _END))
                yield event
    finally:
        coming.cancel()


class _End:
    """After the last event."""


_END = _End()


def _waiting(model: Engine, job: Job) -> Event:
    return (f": waiting place={model.place(job)} model={model.state}{_eta(model.eta_s(job))}\n\n".encode(),)


def _progress(progress: Progress, eta_s: float | None) -> Event:
    return (f": progress image={progress.index} step={progress.step}/{progress.steps}{_eta(eta_s)}\n\n".encode(),)


def _eta(eta_s: float | None) -> str:
    return "" if eta_s is None else f" eta_ms={round(eta_s * 1000)}"
