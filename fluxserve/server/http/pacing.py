"""Spreads a burst of requests over turns of the event loop, so that what is urgent gets its turn.

A request that is refused takes a millisecond from its first byte to its last without ever pausing; a hundred that come
at once would hold up health checks, streams and the worker's messages for a tenth of a second.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fluxserve.server.http.paths import HEALTH_PATHS
from fluxserve.server.http.protocol import LOST

REQUESTS_A_TURN = 4
"""Requests begun in one turn of the loop."""

_Waiting = tuple[asyncio.Future[None], Callable[[], bool]]
"""Its turn; whether its client has left."""


class Pacing:
    """Wraps the application. Those who send many wait for their own, not others. Belongs to one event loop.

    A request whose client has left before its turn is not begun.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._begun = 0
        self._waiting: OrderedDict[str, deque[_Waiting]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in HEALTH_PATHS:
            lost = scope.get("state", {}).get(LOST, lambda: False)
            await self._turn(_sender(scope), lost)
            if lost():
                return
        await self._app(scope, receive, send)

    async def _turn(self, sender: str, lost: Callable[[], bool]) -> None:
        if self._begun == 0:
            asyncio.get_running_loop().call_soon(self._next_turn)
        if self._begun < REQUESTS_A_TURN:
            self._begun += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(sender, deque()).append((turn, lost))
        await turn

    def _next_turn(self) -> None:
        """Begins requests of different senders, one of each as it goes round."""
        self._begun = 0
        while self._waiting and self._begun < REQUESTS_A_TURN:
            sender, turns = self._waiting.popitem(last=False)
            turn, lost = turns.popleft()
            if turns:
                self._waiting[sender] = turns
            if not turn.done():
                turn.set_result(None)
                self._begun += not lost()
        if self._begun:
            asyncio.get_running_loop().call_soon(self._next_turn)


def _sender(scope: Scope) -> str:
    """By the key that is sent, not looked at yet, else the peer's address."""
    return Headers(scope=scope).get("authorization") or str((scope.get("client") or ("",))[0])
