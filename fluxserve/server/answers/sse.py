"""An answer of server-sent events: sent as they come, with pings while none do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from fluxserve.server.answers.parts import Part, send_parts
from fluxserve.server.http.context import context_of
from fluxserve.server.http.disconnect import until_gone

PING_AFTER_S = 15.0
Event = Sequence[Part]

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


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
