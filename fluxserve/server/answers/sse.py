"""Server-sent events of a job: previews, finished pictures, errors.

Three kinds of events and no other, as OpenAI's clients take any unknown type for a preview; the rest is comments.
A stream ends with the last picture or with one error event, and never silently.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fluxserve.engine import Engine
from fluxserve.engine.events import CompletedImage, PartialImage
from fluxserve.engine.job import Job
from fluxserve.errors import FluxserveError
from fluxserve.request import GeneratedImage, Progress, Timings
from fluxserve.server.answers.images import base64_of, description, timings_body, truncation_warning, usage
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.http.disconnect import until_gone
from fluxserve.server.http.errors import error_body
from fluxserve.server.jobs.outcome import Outcome

PING_AFTER_S = 15.0
_PROGRESS_EVERY_S = 0.25
_PLACE_EVERY_S = 1.0
_WRITE_DEADLINE_S = 60.0
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


@dataclass(frozen=True)
class SseWriter:
    """Writes what happens to one request as events."""

    resolved: ResolvedRequest

    async def live(self, job: Job, engine: Engine) -> AsyncIterator[bytes]:
        """The events of a job that waits or runs, as they happen."""
        sent_at = 0.0
        async for comment in _places(job, engine):
            yield comment
        try:
            async for event in job.events():
                match event:
                    case Progress() if time.monotonic() - sent_at >= _PROGRESS_EVERY_S:
                        sent_at = time.monotonic()
                        yield _progress(event, engine.eta_s(job))
                    case PartialImage():
                        yield self._partial(event)
                    case CompletedImage():
                        warnings = truncation_warning(job.request, job.progress.truncated_from)
                        yield self._completed(event.image, event.timings, job.progress.text_tokens, warnings)
        except FluxserveError as error:
            yield _failure(error)

    async def replayed(self, outcome_of: Callable[[], Awaitable[Outcome]]) -> AsyncIterator[bytes]:
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

    def _partial(self, partial: PartialImage) -> bytes:
        about = {"partial_image_index": partial.partial_index, "image_index": partial.index}
        return self._picture("partial_image", partial.image, about)

    def _completed(self, image: GeneratedImage, timings: Timings, text_tokens: int, warnings: list[str]) -> bytes:
        about = {
            "image_index": image.index,
            "seed": image.seed,
            "usage": usage(self.resolved, text_tokens, images=1),
            "timings": timings_body(timings),
        }
        return self._picture("completed", image, {**about, **({"warnings": warnings} if warnings else {})})

    def _picture(self, name: str, image: GeneratedImage, about: dict[str, Any]) -> bytes:
        kind = f"{self.resolved.event_kind}.{name}"
        rest = json.dumps(
            {"type": kind, "created_at": int(time.time()), **description(self.resolved), **about}
        ).encode()
        return _event(kind, b'{"b64_json":"' + base64_of(image) + b'",' + rest[1:])


class EventStream(StreamingResponse):
    """The answer that sends events as they come, pings while none do, and notices at once when its client leaves.

    on_close: called once, when the stream has ended or its client has left.
    """

    def __init__(self, events: AsyncIterator[bytes], on_close: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=_HEADERS)
        self._events = events
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with asyncio.timeout(None) as deadline:
                await self._relay(send, gone, deadline)
        except TimeoutError:
            pass  # the client reads nothing: as good as gone
        finally:
            gone.cancel()
            self._on_close()

    async def _relay(self, send: Send, gone: asyncio.Future[None], deadline: asyncio.Timeout) -> None:
        coming = asyncio.ensure_future(_next(self._events))
        try:
            while True:
                awaited: list[asyncio.Future[Any]] = [coming, gone]
                await asyncio.wait(awaited, timeout=PING_AFTER_S, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    return
                chunk = coming.result() if coming.done() else b": ping\n\n"
                deadline.reschedule(asyncio.get_running_loop().time() + _WRITE_DEADLINE_S)
                await send({"type": "http.response.body", "body": chunk or b"", "more_body": chunk is not None})
                deadline.reschedule(None)
                if chunk is None:
                    return
                if coming.done():
                    coming = asyncio.ensure_future(_next(self._events))
        finally:
            coming.cancel()


def _next(events: AsyncIterator[bytes]) -> Coroutine[Any, Any, bytes | None]:
    async def advance() -> bytes | None:
        return await anext(events, None)

    return advance()


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)


def _failure(error: FluxserveError) -> bytes:
    return _event("error", json.dumps({"type": "error", **error_body(error)}).encode())


def _progress(progress: Progress, eta_s: float | None) -> bytes:
    return f": progress image={progress.index} step={progress.step}/{progress.steps}{_eta(eta_s)}\n\n".encode()


async def _places(job: Job, engine: Engine) -> AsyncIterator[bytes]:
    """Comments with the job's place in the queue, from 0, until it has begun; none where that is soon."""
    while await job.waits(_PLACE_EVERY_S):
        yield f": queued place={engine.place(job)}{_eta(engine.eta_s(job))}\n\n".encode()


def _eta(eta_s: float | None) -> str:
    return "" if eta_s is None else f" eta_ms={round(eta_s * 1000)}"
