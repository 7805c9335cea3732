"""The outermost layer: each request's context, the headers that every answer has, metrics and the log's line."""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.engine import Metrics
from fluxserve.logs import FIELDS
from fluxserve.server.http.context import CLIENT_ID_CHARACTERS, RequestContext
from fluxserve.server.http.paths import HEALTH_PATHS, METRICS
from fluxserve.server.http.request_log import request_fields

log = logging.getLogger("fluxserve.http")

WARNING_HEADER = "x-fluxserve-warning"
CLIENT_GONE = 499
"""The status noted for a client that left before its answer; nginx's."""
_POLLED = HEALTH_PATHS | {METRICS}
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


class Instrumentation:
    """Wraps the whole application. The client's x-request-id is kept if it is harmless."""

    def __init__(self, app: ASGIApp, metrics: Metrics, keep_alive_s: float) -> None:
        self._app = app
        self._keep_alive = f"timeout={int(keep_alive_s)}"
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = scope["fluxserve"] = RequestContext()
        wanted = Headers(scope=scope).get("x-request-id", "")
        if re.fullmatch(CLIENT_ID_CHARACTERS, wanted):
            context.request_id = wanted
        if _may_last(scope):
            context.headers["keep-alive"] = self._keep_alive
        answer = _Answer(send, context)
        try:
            await self._app(scope, receive, answer.send)
        finally:
            self._note(scope, context, answer)

    def _note(self, scope: Scope, context: RequestContext, answer: _Answer) -> None:
        gone = answer.status == CLIENT_GONE or not answer.complete
        if context.accepted:
            (self._metrics.request_cancelled if gone else self._metrics.request_answered)()
        elif context.error_code is not None:
            self._metrics.rejected.labels(context.error_code).inc()
        if context.operation:
            self._metrics.request_duration.labels(
                context.operation, context.model, "client_gone" if gone else context.error_code or ""
            ).observe(time.monotonic() - context.started)
        path = _UNPRINTABLE.sub("?", scope["path"])[:200]
        ending = " (client left)" if gone else f" {context.error_code}" if context.error_code else ""
        if context.refused is not None:
            ending += f" {context.refused!r}"
        if context.prompt is not None:
            ending += f" {context.prompt!r}"  # repr escapes what could move a terminal's cursor
        level = logging.DEBUG if scope["path"] in _POLLED and answer.status == 200 else logging.INFO
        fields = request_fields(scope, context, answer.status, path)
        what = (scope["method"], path, answer.status, context.elapsed_ms, ending)
        log.log(level, "%s %s %d, %d ms%s", *what, extra={FIELDS: fields})


def _may_last(scope: Scope) -> bool:
    """Whether the connection may outlive this answer."""
    return bool(scope["http_version"] == "1.1") and "close" not in Headers(scope=scope).get("connection", "").lower()


@dataclass
class _Answer:
    """The sending side, watched: which status went out, and whether the last byte did."""

    transport: Send
    context: RequestContext
    status: int = 500
    complete: bool = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            _add_headers(MutableHeaders(scope=message), self.context)
        await self.transport(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True


def _add_headers(headers: MutableHeaders, context: RequestContext) -> None:
    headers["x-request-id"] = context.request_id
    headers["openai-processing-ms"] = str(context.elapsed_ms)
    if context.warnings:
        headers[WARNING_HEADER] = _UNPRINTABLE.sub("", ", ".join(context.warnings))
    for name, value in context.headers.items():
        headers[name] = value
    if headers.get("connection") == "close":
        del headers["keep-alive"]
