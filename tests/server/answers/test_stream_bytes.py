"""Answers in pieces as ASGI sends them: pings, the end, clients that leave. No server is needed."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import zipfile
from collections.abc import AsyncIterator

import pytest
from starlette.types import Message

from fluxserve.request import GeneratedImage
from fluxserve.server.answers import sse
from fluxserve.server.answers.images import _zip
from fluxserve.server.answers.parts import PIECE_BYTES, Base64, Part, PartsAnswer, pieces
from fluxserve.server.answers.sse import Event, EventStream
from fluxserve.server.http.context import RequestContext

pytestmark = pytest.mark.anyio


class Client:
    """One end of an ASGI connection, which leaves after so many pieces."""

    def __init__(self, leaves_after: int | None = None) -> None:
        self.bodies: list[bytes] = []
        self.headers: dict[bytes, bytes] = {}
        self.gone = asyncio.Event()
        self._leaves_after = leaves_after

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.headers = dict(message["headers"])
        else:
            self.bodies.append(message["body"])
        if len(self.bodies) == self._leaves_after:
            self.gone.set()


def scope() -> dict[str, object]:
    return {"type": "http", "fluxserve": RequestContext()}


async def told(*chunks: bytes, pause_s: float = 0.0) -> AsyncIterator[Event]:
    for chunk in chunks:
        await asyncio.sleep(pause_s)
        yield (chunk,)


async def run(client: Client, events: AsyncIterator[Event]) -> int:
    """Runs the stream to its end; returns how often it said it was closed."""
    closed: list[int] = []
    stream = EventStream(events, on_close=lambda: closed.append(1), held=tuple)
    await stream(scope(), client.receive, client.send)
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


async def test_a_client_that_leaves_ends_a_large_answer() -> None:
    client = Client(leaves_after=20)
    await PartsAnswer([bytes(500 * PIECE_BYTES)], "image/png", None)(scope(), client.receive, client.send)
    assert 20 <= len(client.bodies) < 50


@pytest.mark.parametrize(
    "sizes", [(), (0,), (1,), (2, 3), (PIECE_BYTES,), (PIECE_BYTES + 1, 5), (3 * PIECE_BYTES - 1,)]
)
async def test_pieces_are_the_parts_in_their_order(sizes: tuple[int, ...]) -> None:
    rng = random.Random(1)
    datas = [rng.randbytes(size) for size in sizes]
    parts: list[Part] = [part for data in datas for part in (b"<", Base64(data), b">", data)]
    expected = b"".join(b"<" + base64.b64encode(data) + b">" + data for data in datas)
    sent = list(pieces(parts))
    assert b"".join(sent) == expected
    assert all(0 < len(piece) <= 3 * PIECE_BYTES for piece in sent)
    client = Client()
    await PartsAnswer(parts, "image/png", None)(scope(), client.receive, client.send)
    assert int(client.headers[b"content-length"]) == len(expected) == len(b"".join(client.bodies))


async def test_a_zip_holds_the_pictures_themselves() -> None:
    images = [GeneratedImage(random.Random(i).randbytes(1000 + i), "png", 64, 64, i, i) for i in range(3)]
    parts = _zip(images, ["a.png", "b.png", "c.png"])
    with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
        assert archive.testzip() is None
        assert [archive.read(name) for name in archive.namelist()] == [image.data for image in images]
        assert all(info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 8 for info in archive.infolist())
    assert all(any(part is image.data for part in parts) for image in images), "nothing is copied"
