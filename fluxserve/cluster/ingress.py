"""The one address of all models: finds out which model a request is for, and passes it on. No torch, no Ray."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from typing import Any, BinaryIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fluxserve.cluster import asgi
from fluxserve.cluster.figures import Figures, figures_of, together
from fluxserve.cluster.served import ServedModel, ServedModels
from fluxserve.config import ServerConfig
from fluxserve.engine import Metrics
from fluxserve.errors import FluxserveError, InvalidRequest, ReplicaLost
from fluxserve.server.contract.body_parser import BodyParser, parse_json_body
from fluxserve.server.contract.multipart import parse_form
from fluxserve.server.http.access.control import AccessControl
from fluxserve.server.http.access.origins import Cors
from fluxserve.server.http.body import BodyReader
from fluxserve.server.http.context import context_of
from fluxserve.server.http.disconnect import while_connected
from fluxserve.server.http.errors import error_body, error_response
from fluxserve.server.http.instrumentation import Instrumentation
from fluxserve.server.http.pacing import Pacing
from fluxserve.server.http.paths import HEALTH_PATHS, IMAGE_REQUESTS, METRICS, MODELS, RESPONSES, draws
from fluxserve.server.http.target import Target
from fluxserve.server.limits.rate_limit import RateLimiter

MOST_REPLICAS = 2
"""That are given one keyed request: a request that kills whom it reaches must come to an end."""
_KEY = "idempotency-key"
_REPLACED = frozenset({"content-length", "transfer-encoding", "x-request-id"})
"""The body is in one piece by then, and the request has its id."""


class Ingress:
    """An ASGI application. name: of this replica, in the figures."""

    def __init__(self, name: str, models: ServedModels, config: ServerConfig) -> None:
        self._name = name
        self._models = models
        self._metrics = Metrics()
        limiter = RateLimiter(config.rate_limit) if config.rate_limit else None
        self._bodies = BodyReader(limiter, _scratch)
        self._parser = BodyParser()
        guarded: ASGIApp = Cors(AccessControl(self._route, config, lambda: None), config.cors_origins)
        self._app = _OneRequestId(Instrumentation(Target(Pacing(guarded)), self._metrics, config.keep_alive_s))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await self._app(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if (answer := await self._own(scope)) is not None:
                await answer(scope, receive, watched)
            else:
                await self._pass_on(scope, receive, watched)
        except ClientDisconnect:
            return
        except FluxserveError as error:
            if begun:
                raise
            await error_response(error, scope)(scope, receive, send)

    async def _own(self, scope: Scope) -> Response | None:
        """The answer to what no replica is asked."""
        path, reading = scope["path"], scope["method"] == "GET"
        if path in HEALTH_PATHS and reading:
            return JSONResponse({"status": "ok"})
        if path == METRICS and reading:
            return Response(together(await self._figures()), media_type=Metrics.content_type)
        if path == MODELS and reading:
            return JSONResponse((await self._models.listing()).model_dump())
        if path.startswith(f"{MODELS}/"):
            return await self._model(path.removeprefix(f"{MODELS}/"), scope["method"])
        return None

    async def _model(self, name: str, method: str) -> Response:
        if method != "GET":
            raise InvalidRequest("replicas are started and ended as they are needed", code="method_not_allowed")
        found = self._models.find(name)
        listed = {entry.id: entry for entry in (await self._models.listing()).data}
        entry = listed.get(name) or next(each for each in listed.values() if found is self._models.find(each.id))
        return JSONResponse(entry.model_dump())

    async def _figures(self) -> list[Figures]:
        replicas = await asyncio.gather(*(model.backend.figures() for model in self._models))
        return [figures_of("", self._name, self._metrics.registry), *(each for own in replicas for each in own)]

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await self._bodies.any(request, counted=draws(scope["path"])) if scope["method"] == "POST" else b""
        model = await self._model_of(request, body)
        await while_connected(receive, self._relay(model, _passed_on(scope, len(body)), body, send))

    async def _model_of(self, request: Request, body: bytes) -> ServedModel:
        """Raises as `ServedModels.find` does."""
        path = request.scope["path"]
        if self._models.only or not (path.startswith(f"{IMAGE_REQUESTS}/") or path == RESPONSES):
            return self._models.default
        content_type = request.headers.get("content-type", "")
        name = await self._parser.run(lambda: _named(body, content_type), len(body))
        return self._models.find(name)

    async def _relay(self, model: ServedModel, scope: Scope, body: bytes, send: Send) -> None:
        """Asks another replica if the one that has a keyed request dies before it has answered.

        Raises:
            ReplicaLost: it died, and nothing was sent yet. QueueFull.
        """
        tries = MOST_REPLICAS if _KEY in Headers(scope=scope) else 1
        while True:
            answer = _Relayed(send)
            tries -= 1
            try:
                await answer.all_of(model.backend.answer(scope, body))
                return
            except ReplicaLost as error:
                if answer.begun:
                    await answer.break_off(error)
                    return
                if not tries:
                    raise


class _Relayed:
    """An answer on its way through. begun: its head is out."""

    def __init__(self, send: Send) -> None:
        self.begun = False
        self._send = send
        self._is_stream = False

    async def all_of(self, messages: AsyncIterator[Message]) -> None:
        async with aclosing(messages) as open_messages:  # type: ignore[type-var]
            async for message in open_messages:
                if message["type"] == "http.response.start":
                    self._is_stream = Headers(raw=message["headers"]).get("content-type", "").startswith(_EVENTS)
                await self._send(message)
                self.begun = True

    async def break_off(self, error: ReplicaLost) -> None:
        """A stream ends with an event that tells why. Anything else is cut, so that nobody takes a part for all.

        Raises:
            ReplicaLost: it is no stream.
        """
        if not self._is_stream:
            raise error
        event = {"type": "error", **error_body(error)}
        await self._send(
            {"type": "http.response.body", "body": b"event: error\ndata: %s\n\n" % json.dumps(event).encode()}
        )


_EVENTS = "text/event-stream"


class _OneRequestId:
    """Wraps an application behind Ray's proxy, which puts the request's id on each answer itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        named = "x-request-id" in Headers(scope=scope)

        async def without(message: Message) -> None:
            if message["type"] == "http.response.start" and named:
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, without)


def _passed_on(scope: Scope, length: int) -> Scope:
    """For a replica, under this request's id."""
    headers = [(name, value) for name, value in scope["headers"] if name.decode("latin-1") not in _REPLACED]
    headers += [(b"x-request-id", context_of(scope).request_id.encode())]
    if scope["method"] == "POST":
        headers += [(b"content-length", b"%d" % length)]
    return {**asgi.plain(scope), "headers": headers}


def _named(body: bytes, content_type: str) -> str | None:
    """The model that a body names. What cannot be read names none: the default's replica says what is wrong with it."""
    with suppress(InvalidRequest):
        if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
            name = parse_form([body], content_type).fields().get("model")
        else:
            name = _of_document(parse_json_body(body)[0])
        return name if isinstance(name, str) else None
    return None


def _of_document(document: dict[str, Any]) -> Any:
    """A tool's model goes before the model that is to call it."""
    match document.get("tools"):
        case [{"model": str(name)}]:
            return name
    return document.get("model")


def _scratch() -> BinaryIO:
    return tempfile.TemporaryFile()


async def _live(receive: Receive, send: Send) -> None:
    """There is nothing to begin and to end: ASGI's lifespan is answered, and that is all."""
    for kind in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{kind}.complete"})
