"""A layer around Ray's own HTTP proxies: OpenAI's shape for what they say themselves, and bounds for bodies.

Ray puts it there where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=fluxserve.cluster.proxy:layers when a node starts.
"""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.errors import DeadlineExceeded, FluxserveError, InvalidRequest, ModelLoading, QueueFull, ReplicaLost
from fluxserve.server.http.body import FORM_CAP
from fluxserve.server.http.context import CLIENT_ID_CHARACTERS, RequestContext
from fluxserve.server.http.errors import error_response
from fluxserve.server.http.protocol import BODY_S, BYTES_A_SECOND, LONGEST_HEAD

_ID = "x-request-id"
_LONGEST_WORDS = 64 * 1024
"""Of an answer of Ray's that is replaced."""


def layers() -> list[Middleware]:
    """What Ray wraps its proxy in."""
    return [Middleware(ProxyLayer)]


class ProxyLayer:
    """Wraps Ray's proxy. body_s: for a body, and a second more for each 256 KiB of it."""

    def __init__(self, app: ASGIApp, body_s: float = BODY_S) -> None:
        self._app = app
        self._body_s = body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": _harmless(scope), "fluxserve": RequestContext()}
        answer = _Answer(scope, send)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > LONGEST_HEAD:
            await answer.refuse(_too_large("the head is too long"), closing=True)
            return
        body = _Body(receive, self._body_s)
        await self._app(scope, body.receive, answer.send)
        await answer.finish(body.refusal)


class _Body:
    """A body on its way in. refusal: why it was not read to its end; Ray is told that the client has left."""

    def __init__(self, receive: Receive, patience_s: float) -> None:
        self.refusal: FluxserveError | None = None
        self._receive = receive
        self._ends_at = asyncio.get_running_loop().time() + patience_s
        self._received = 0
        self._whole = False

    async def receive(self) -> Message:
        try:
            async with asyncio.timeout_at(None if self._whole else self._ends_at + self._received / BYTES_A_SECOND):
                message = await self._receive()
        except TimeoutError:
            return self._refuse(DeadlineExceeded("the body took too long to arrive"))
        self._received += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._received > FORM_CAP:
            return self._refuse(_too_large(f"the body may be at most {FORM_CAP} bytes long"))
        return message

    def _refuse(self, refusal: FluxserveError) -> Message:
        self.refusal = refusal
        return {"type": "http.disconnect"}


class _Answer:
    """An answer on its way out: ours as it is, Ray's own in OpenAI's shape, and one where there was none."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._begun = False
        self._replaced: Message | None = None
        self._words = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if _is_rays(message):
                self._replaced = message
                return
            self._begun = True
        if self._replaced is None:
            await self._send(message)
        else:
            self._words = (self._words + message.get("body", b""))[:_LONGEST_WORDS]

    async def finish(self, refusal: FluxserveError | None) -> None:
        """Says what is still to be said; a body that was refused goes before what Ray made of its end."""
        if self._begun:
            return
        await self.refuse(refusal or _meant(self._replaced), closing=refusal is not None)

    async def refuse(self, error: FluxserveError, closing: bool) -> None:
        headers = Headers(scope=self._scope)
        given = {_ID: headers[_ID]} if _ID in headers else {}
        if closing:
            given["connection"] = "close"

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        await error_response(error, self._scope, given)(self._scope, receive, self._send)


def _too_large(why: str) -> InvalidRequest:
    return InvalidRequest(why, code="request_too_large")


def _harmless(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The headers without a request id that would not look well in a log: Ray then makes one."""
    wanted = Headers(scope=scope).get(_ID, "")
    harmless = re.fullmatch(CLIENT_ID_CHARACTERS, wanted) is not None
    return [each for each in scope["headers"] if harmless or each[0] != _ID.encode()]


def _is_rays(message: Message) -> bool:
    """fluxserve never puts an error in plain text."""
    kind = Headers(raw=message["headers"]).get("content-type", "")
    return message["status"] >= 400 and not kind.startswith("application/json")


def _meant(rays: Message | None) -> FluxserveError:
    """What an answer of Ray's own amounts to; none at all is what it gives when the ingress dies."""
    status = rays["status"] if rays else 500
    told = Headers(raw=rays["headers"]).get("retry-after", "") if rays else ""
    wait_s = float(told) if re.fullmatch(r"[0-9]{1,6}", told) else 1.0
    match status:
        case 404:
            return ModelLoading("nothing is deployed here yet", retry_after_s=wait_s)
        case 408:
            return DeadlineExceeded("the request took longer than request_timeout_s of Ray's http_options allows")
        case 429:
            return QueueFull("too many requests wait; try again", retry_after_s=wait_s)
    return ReplicaLost("what had the request is gone, or not there yet; try again", retry_after_s=wait_s)
