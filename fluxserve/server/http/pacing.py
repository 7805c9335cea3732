"""Spreads a burst of requests over turns of the event loop, so that what is urgent gets its turn.

A request that is refused takes a millisecond from its first byte to its last without ever pausing; a hundred that come
at once would hold up health checks, streams and the worker's messages for a tenth of a second.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.server.http.paths import HEALTH_PATHS

REQUESTS_A_TURN = 4
"""Requests begun in one turn of the loop."""


class Pacing:
    """Wraps the application. Belongs to one event loop."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._begun = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in HEALTH_PATHS:
            await self._turn()
        await self._app(scope, receive, send)

    async def _turn(self) -> None:
        while self._begun >= REQUESTS_A_TURN:
            await asyncio.sleep(0)
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._begun += 1

    def _next_turn(self) -> None:
        self._begun = 0
