"""POST and DELETE /mcp: the tools for agents over streamable HTTP. The SDK is imported with the first message."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.decoding.strict_json import parse_json
from fluxserve.errors import InvalidRequest
from fluxserve.server.doors.mcp_sessions import SESSION_HEADER, SessionOwners
from fluxserve.server.http.context import context_of
from fluxserve.server.http.paths import MCP
from fluxserve.server.services import Services

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

NEEDED = "agents are served with the extra mcp: pip install 'fluxserve[mcp]'"


class McpDoor:
    """An ASGI endpoint. app: the whole application, once it is put together; the tools call it."""

    def __init__(self, services: Services) -> None:
        self.app: ASGIApp | None = None
        self._services = services
        self._sessions: StreamableHTTPSessionManager | None = None
        self._running: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._owners = SessionOwners()

    @property
    def route(self) -> Route:
        """Without GET: progress and results come in the answers to POSTs, and nothing is left open."""
        return Route(MCP, self, methods=["POST", "DELETE"], include_in_schema=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if find_spec("mcp") is None:
            raise InvalidRequest(NEEDED, code="not_found")
        sessions, client = await self._opened(), context_of(scope).client
        session = Headers(scope=scope).get(SESSION_HEADER)
        if session is not None:
            self._owners.check(session, client)
        body = await self._read(Request(scope, receive))

        async def noting(message: Message) -> None:
            told = Headers(raw=message["headers"]).get(SESSION_HEADER) if "headers" in message else None
            if session is None and told is not None:
                self._owners.opened(told, client)
            await send(message)

        await sessions.asgi_app(scope, body, noting)
        while (old := self._owners.surplus()) is not None:
            await _end(sessions, scope, old)

    async def _read(self, request: Request) -> Receive:
        """Gives the body, which was read within its bounds, once more; then what comes."""
        body = await self._services.bodies.message(request) if request.method == "POST" else b""
        if body:  # the SDK parses on the event loop, whatever it is
            await self._services.parser.run(lambda: parse_json(body), len(body))
        pieces: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pieces.pop() if pieces else await request.receive()

        return replay

    async def _opened(self) -> StreamableHTTPSessionManager:
        """The sessions, which live as long as the event loop. The SDK takes a second to import, in a thread."""
        async with self._opening:
            if self._sessions is None:
                over_http = (await asyncio.to_thread(import_module, "fluxserve.server.doors.mcp_server")).over_http
                started = asyncio.Event()
                sessions: StreamableHTTPSessionManager = over_http(self.app)
                self._running = asyncio.create_task(self._run(sessions, started))
                await started.wait()
                self._sessions = sessions
        return self._sessions

    @staticmethod
    async def _run(sessions: StreamableHTTPSessionManager, started: asyncio.Event) -> None:
        with suppress(asyncio.CancelledError):
            async with sessions.run():
                started.set()
                await asyncio.Event().wait()


async def _end(sessions: StreamableHTTPSessionManager, scope: Scope, session: str) -> None:
    """As its own client would end it. scope: of any request here."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers[SESSION_HEADER] = session

    async def nothing() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def unheard(message: Message) -> None:
        pass

    await sessions.asgi_app({**scope, "method": "DELETE", "headers": headers.raw}, nothing, unheard)
