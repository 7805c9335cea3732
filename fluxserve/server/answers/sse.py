"""Server-sent events of a job: previews, finished pictures, errors.

Three kinds of events and no other, as OpenAI's clients take any unknown type for a preview; the rest is comments.
A stream ends with the last picture or with one error event, and never silently.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fluxserve.engine import Engine
from fluxserve.engine.events import CompletedImage, JobEvent, PartialImage
from fluxserve.engine.job import Job
from fluxserve.errors import FluxserveError
from fluxserve.request import GeneratedImage, Progress, Timings
from fluxserve.server.answers.images import description, timings_body, truncation_warning, usage
from fluxserve.server.answers.parts import Base64, Part, send_parts
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.http.context import context_of
from fluxserve.server.http.disconnect import until_gone
from fluxserve.server.http.errors import error_body
from fluxserve.server.jobs.outcome import Outcome

PING_AFTER_S = 15.0
_PROGRESS_EVERY_S = 0.25
_TELL_WAITING_AFTER_S, _TELL_WAITING_EVERY_S = 0.2, 2.0
Event = Sequence[Part]

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True)
class SseWriter:
    """Writes what happens to one request as events."""

    resolved: ResolvedRequest

    async def live(self, job: Job, model: Engine) -> AsyncIterator[Event]:
        """The events of a job, as they happen; its place and the seconds to come while it waits."""
        sent_at = 0.0
        try:
            async for event in _with_pauses(job):
                match event:
                    case None:
                        yield _waiting(model, job)
                    case Progress() if time.monotonic() - sent_at >= _PROGRESS_EVERY_S:
                        sent_at = time.monotonic()
                        yield _progress(event, model.eta_s(job))
                    case PartialImage():
                        yield self._partial(event)
                    case CompletedImage():
                        warnings = truncation_warning(job.request, job.progress.truncated_from)
                        yield self._completed(event.image, event.timings, job.progress.text_tokens, warnings)
        except FluxserveError as error:
            yield _failure(error)

    async def replayed(self, outcome_of: Callable[[], Awaitable[Outcome]]) -> AsyncIterator[Event]:
        """The finished pictures of a job that ran for another, or will have."""
        try:
            outcome = await outcome_of()
        except FluxserveError as error:
            yield _failure(error)
            return
        result = outcome.result
        warnings = truncation_warning(self.resolved.request, result.truncated_from)
        for image in result.images:
            yield self._completed(image, result.timings, result.text_tokens, warnings)

    def _partial(self, partial: PartialImage) -> Event:
        about = {"partial_image_index": partial.partial_index, "image_index": partial.index}
        return self._picture("partial_image", partial.image, about)

    def _completed(self, image: GeneratedImage, timings: Timings, text_tokens: int, warnings: list[str]) -> Event:
        about = {
            "image_index": image.index,
            "seed": image.seed,
            "usage": usage(self.resolved, text_tokens, images=1),
            "timings": timings_body(timings),
        }
        return self._picture("completed", image, {**about, **({"warnings": warnings} if warnings else {})})

    def _picture(self, name: str, image: GeneratedImage, about: dict[str, Any]) -> Event:
        kind = f"{self.resolved.event_kind}.{name}"
        rest = json.dumps(
            {"type": kind, "created_at": int(time.time()), **description(self.resolved), **about}
        ).encode()
        head = b'event: %s\ndata: {"b64_json":"' % kind.encode()
        return head, Base64(image.data), b'",' + rest[1:] + b"\n\n"


class EventStream(StreamingResponse):
    """The answer that sends events as they come, pings while none do, and notices at once when its client leaves.

    on_close: called once, when the stream has ended or its client has left. held: what the job holds for it.
    """

    def __init__(
        self, events: AsyncIterator[Event], on_close: Callable[[], None], held: Callable[[], Iterable[bytes]]
    ) -> None:
        super().__init__((), media_type="text/event-stream", headers=_HEADERS)
        self._events = events
        self._on_close = on_close
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context_of(scope).held = self._held
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._relay(send, gone)
        finally:
            gone.cancel()
            self._on_close()

    async def _relay(self, send: Send, gone: asyncio.Future[None]) -> None:
        coming = asyncio.ensure_future(_next(self._events))
        try:
            while True:
                awaited: list[asyncio.Future[Any]] = [coming, gone]
                await asyncio.wait(awaited, timeout=PING_AFTER_S, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                event = coming.result() if coming.done() else (b": ping\n\n",)
                if event is None:
                    await send({"type": "http.response.body", "body": b""})
                if event is None or not await send_parts(event, send, gone):
                    return
                if coming.done():
                    coming = asyncio.ensure_future(_next(self._events))
        finally:
            coming.cancel()


def _next(events: AsyncIterator[Event]) -> Coroutine[Any, Any, Event | None]:
    async def advance() -> Event | None:
        return await anext(events, None)

    return advance()


def _failure(error: FluxserveError) -> Event:
    return (b"event: error\ndata: %s\n\n" % json.dumps({"type": "error", **error_body(error)}).encode(),)


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
