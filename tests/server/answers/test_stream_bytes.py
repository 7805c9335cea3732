"""The event stream as an ASGI answer: pings, the end, and a client that reads nothing. No server is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from fluxserve.server.answers import sse
from fluxserve.server.answers.sse import EventStream

pytestmark = pytest.mark.anyio


class Client:
    """One end of an ASGI connection. blocked: it takes no bytes of the body."""

    def __init__(self, *, blocked: bool = False) -> None:
        self.bodies: list[bytes] = []
        self.gone = asyncio.Event()
        self._blocked = blocked

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.body":
            if self._blocked:
                await asyncio.Event().wait()
            self.bodies.append(message["body"])


async def told(*chunks: bytes, pause_s: float = 0.0) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(pause_s)
        yield chunk


async def run(client: Client, events: AsyncIterator[bytes]) -> int:
    """Runs the stream to its end; returns how often it said it was closed."""
    closed = []
    await EventStream(events, on_close=lambda: closed.append(1))({"type": "http"}, client.receive, client.send)
    return len(closed)


@pytest.mark.behaviour(34)
async def test_silence_is_filled_with_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sse.PING_AFTER_S == 15
    monkeypatch.setattr(sse, "PING_AFTER_S", 0.05)
    client = Client()
    assert await run(client, told(b"a", b"b", pause_s=0.3)) == 1
    assert client.bodies[0] == b": ping\n\n"
    assert client.bodies.count(b": ping\n\n") >= 4
    assert [body for body in client.bodies if body != b": ping\n\n"] == [b"a", b"b", b""]


async def test_a_client_that_leaves_ends_the_stream() -> None:
    client = Client()
    client.gone.set()
    assert await run(client, told(b"a", pause_s=60)) == 1
    assert client.bodies == []


@pytest.mark.fault(25)
async def test_a_client_that_reads_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_WRITE_DEADLINE_S", 0.05)
    assert await run(Client(blocked=True), told(b"a")) == 1
