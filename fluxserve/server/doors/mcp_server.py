"""The MCP server around the tools, by the official SDK, over stdio or streamable HTTP. Needs the extra `mcp`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version
from typing import Any

from httpx2 import ASGITransport, AsyncClient
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types import CallToolRequestParams, CallToolResult, ListToolsResult
from starlette.types import ASGIApp, Scope

from fluxserve.server.doors.mcp_sessions import MOST_SESSIONS
from fluxserve.server.doors.mcp_tools import Asking, call_tool, tools
from fluxserve.server.http.body import FORM_CAP

Caller = Callable[[Any], AbstractAsyncContextManager[AsyncClient]]
"""From the transport's request to the public API as its sender may use it."""

_INSTRUCTIONS = (
    "Draws pictures with the models of a fluxserve server. Results hold the pictures and their urls; a url can be "
    "given to edit. The same seed and settings draw the same picture again."
)
_HANDED_ON = frozenset({b"authorization", b"host", b"forwarded"})


def make_server(caller: Caller) -> Server[Any]:
    async def list_tools(context: Any, params: Any) -> ListToolsResult:
        return ListToolsResult(tools=tools())

    async def call(context: Any, params: CallToolRequestParams) -> CallToolResult:
        async with caller(context.request) as api:
            asking = Asking(api, context.session.report_progress)
            return await call_tool(params.name, params.arguments or {}, asking)

    return Server(
        "fluxserve",
        version=version("fluxserve"),
        instructions=_INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call,
    )


def over_http(app: ASGIApp) -> StreamableHTTPSessionManager:
    """Sessions whose tools call `app`, the whole application, as the agent's own requests would: nothing is passed by.

    Hosts, origins and keys are checked before it is reached.
    """

    def caller(request: Any) -> AsyncClient:
        return _inside(app, request.scope)

    return StreamableHTTPSessionManager(
        make_server(caller), max_request_body_size=FORM_CAP, max_sessions=2 * MOST_SESSIONS
    )


def _inside(app: ASGIApp, scope: Scope) -> AsyncClient:
    """A client of this process's own application, with its caller's key, address and host."""
    told = [(name, value) for name, value in scope["headers"] if name in _HANDED_ON or name.startswith(b"x-forwarded-")]
    transport = ASGITransport(app=app, client=tuple(scope["client"] or ("", 0)), raise_app_exceptions=False)
    return AsyncClient(transport=transport, base_url=f"{scope['scheme']}://fluxserve", headers=told, timeout=None)


async def over_stdio(url: str, key: str | None) -> None:
    """Serves the agent that started this process, as a client of the server at `url`, until it closes stdin."""
    from mcp.server.stdio import stdio_server

    headers = {"authorization": f"Bearer {key}"} if key else {}
    server = make_server(lambda request: AsyncClient(base_url=url, headers=headers, timeout=60.0, trust_env=False))
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
