"""The layer around Ray's proxies: its own answers in OpenAI's shape, ours untouched, bodies within bounds."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import Message, Receive, Scope, Send

from fluxserve.cluster.proxy import ProxyLayer
from fluxserve.server.http.body import FORM_CAP
from tests.cluster.requests import Sent, scope_of, send

pytestmark = pytest.mark.anyio


@pytest.mark.fault(128)
@pytest.mark.parametrize(
    ("rays", "status", "code", "retry_after"),
    [
        (PlainTextResponse("Internal Server Error", 500), 503, "replica_lost", "1"),
        (PlainTextResponse("Request dropped", 429, {"retry-after": "7"}), 429, "queue_full", "7"),
        (PlainTextResponse("Request dropped", 503), 503, "replica_lost", "1"),
        (PlainTextResponse("Request x timed out after 5s.", 408), 504, "deadline_exceeded", None),
        (PlainTextResponse("Path '/' not found.", 404), 503, "model_loading", "1"),
        (Response(b"", 500), 503, "replica_lost", "1"),
        (None, 503, "replica_lost", "1"),
    ],
)
async def test_rays_own_answers_have_our_shape(
    rays: Response | None, status: int, code: str, retry_after: str | None
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if rays is not None:
            await rays(scope, receive, send)

    answer = await send(ProxyLayer(app), "/v1/images/generations", b"{}", headers=[("x-request-id", "mine")])
    assert (answer.status, answer.error["code"]) == (status, code)
    assert list(answer.error) == ["message", "type", "param", "code"]
    assert answer.headers.get("retry-after") == retry_after
    assert answer.headers.getlist("x-request-id") == ["mine"]
    assert answer.headers["content-type"] == "application/json"


async def test_our_answers_pass_as_they_are() -> None:
    for ours in (JSONResponse({"error": {}}, 500), PlainTextResponse("figures"), Response(b"png", 200)):
        answer = await send(ProxyLayer(ours), "/metrics")
        assert (answer.status, answer.body, answer.headers.items()) == (
            ours.status_code,
            ours.body,
            ours.headers.items(),
        )


async def test_an_answer_goes_out_as_it_comes() -> None:
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"last"})

    sent = Sent([b""])
    running = asyncio.ensure_future(ProxyLayer(app)(scope_of("/"), sent.receive, sent.send))
    while len(sent.messages) < 2:
        await asyncio.sleep(0.01)
    assert sent.body == b"first"
    go_on.set()
    await running
    assert sent.body == b"firstlast"


async def _reading(scope: Scope, receive: Receive, send: Send) -> None:
    """As Ray does: reads all, and says 500 when the client leaves."""
    while (message := await receive())["type"] != "http.disconnect":
        if not message.get("more_body"):
            await JSONResponse({})(scope, receive, send)
            return
    await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)


@pytest.mark.fault(131)
async def test_a_body_beyond_all_bounds_is_not_read_on() -> None:
    piece = bytes(FORM_CAP // 4)
    whole = await send(ProxyLayer(_reading), "/", *[piece] * 4)
    assert whole.status == 200
    sent = Sent([piece] * 100)
    await ProxyLayer(_reading)(scope_of("/"), sent.receive, sent.send)
    assert (sent.status, sent.error["code"]) == (413, "request_too_large")
    assert sent.headers["connection"] == "close"
    assert len(sent.pieces) == 95


@pytest.mark.fault(131)
async def test_a_body_that_does_not_come_is_given_up() -> None:
    async def never() -> Message:
        await asyncio.sleep(3600)
        return {}

    sent = Sent([])
    await ProxyLayer(_reading, body_s=0.1)(scope_of("/"), never, sent.send)
    assert (sent.status, sent.error["code"]) == (504, "deadline_exceeded")


async def test_one_who_has_sent_all_may_wait_for_ever() -> None:
    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        leaving = asyncio.ensure_future(receive())
        await asyncio.sleep(0.3)
        assert not leaving.done()
        leaving.cancel()
        await JSONResponse({})(scope, receive, send)

    answer = Sent([b"{}"])
    await ProxyLayer(slow, body_s=0.1)(scope_of("/"), answer.receive, answer.send)
    assert answer.status == 200


async def test_a_harmful_request_id_does_not_reach_ray() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)
        await JSONResponse({})(scope, receive, send)

    for wanted in ("mine-1", "a b", "x" * 65, "<script>"):
        await send(ProxyLayer(app), "/", headers=[("x-request-id", wanted)])
    assert [dict(scope["headers"]).get(b"x-request-id") for scope in seen] == [b"mine-1", None, None, None]


async def test_a_head_that_is_too_long_is_refused() -> None:
    answer = await send(ProxyLayer(_reading), "/", headers=[("x-long", "x" * 40_000)])
    assert (answer.status, answer.error["code"]) == (413, "request_too_large")
