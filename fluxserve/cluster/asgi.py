"""One ASGI call over a stream of messages: the scope goes there in one piece with its body, messages come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from starlette.types import ASGIApp, Message, Scope

_PLAIN = (
    "type",
    "asgi",
    "http_version",
    "method",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "headers",
    "client",
    "server",
)
LEAVING_S = 5.0
"""For an application to come to its end after its client has left."""


def plain(scope: Scope) -> Scope:
    """What of a scope another process can be sent."""
    return {name: scope[name] for name in _PLAIN if name in scope}


async def call(app: ASGIApp, scope: Scope, body: bytes) -> AsyncIterator[Message]:
    """The messages with which `app` answers, as they come. Closed early, its client has left.

    Raises: what the application does.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    gone = asyncio.Event()
    bodies = [body]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, messages.put)
        finally:
            messages.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await running
    finally:
        gone.set()
        if not running.done():
            await asyncio.wait([running], timeout=LEAVING_S)
            running.cancel()
