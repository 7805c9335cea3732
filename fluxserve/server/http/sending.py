"""Answers on their way out: how long a client may take to read them, and what all of them may hold in memory."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.server.http.context import RequestContext, context_of
from fluxserve.server.http.protocol import ABORT
from fluxserve.server.limits.send_budget import Outgoing, SendBudget


class Sending:
    """Wraps the application. A client that reads too slowly loses its connection, and the log says that it left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._budget = SendBudget()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        answer = _outgoing(scope, context)

        async def send_in_time(message: Message) -> None:
            if message["type"] == "http.response.start" and context.held is not None:
                self._budget.begin(answer)
            with answer.sending(len(message.get("body", b""))):
                try:
                    async with asyncio.timeout(answer.patience_s):
                        await send(message)
                except TimeoutError:
                    answer.end()

        try:
            await self._app(scope, receive, send_in_time)
        finally:
            self._budget.end(answer)


def _outgoing(scope: Scope, context: RequestContext) -> Outgoing:
    abort = scope.get("state", {}).get(ABORT, lambda: None)
    return Outgoing(lambda: context.client, lambda: context.held() if context.held else (), abort)
