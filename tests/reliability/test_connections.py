"""What is no request, comes half, comes slowly or is never read: one answer or none, and the connection closed."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fluxserve.server.http import protocol
from tests.reliability.answers import assert_answer, parse
from tests.server import running
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, Server, exchange

POST = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
BODY = b'{"prompt":"a","n":0}'
KEPT_S = 4
"""How long `listening` keeps an answered connection."""
LENGTH = b"Content-Length: %d\r\n" % len(BODY)

BROKEN: dict[str, bytes] = {
    "length and chunks": POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET + b"\r\n",
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + BODY,
    "two lengths": POST + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
    "a signed length": POST + b"Content-Length: +20\r\n\r\n" + BODY,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n",
    "a length in hexadecimal": POST + b"Content-Length: 0x14\r\n\r\n" + BODY,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "a bad chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a bad end of a chunk": POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\n{}  XX\r\n",
    "a space before the colon": GET + b"X-A : b\r\n\r\n",
    "NUL in a value": GET + b"X-A: a\0b\r\n\r\n",
    "NUL in a name": GET + b"X-\0A: b\r\n\r\n",
    "a lone CR": GET + b"X-A: a\rb\r\n\r\n",
    "no colon": GET + b"nonsense\r\n\r\n",
    "two Hosts": GET + b"Host: localhost\r\n\r\n",
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "100 KB of head in one value": GET + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
    "100 KB of head in many values": GET + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 1000) for i in range(100)) + b"\r\n",
    "a head of 40 KB at once": GET + b"X-A: " + b"a" * 40_000 + b"\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64) + b"\r\n\r\n",
}
LEGAL: dict[str, bytes] = {
    "bare LF (RFC 9112, 2.2)": GET.replace(b"\r\n", b"\n") + b"Connection: close\n\n",
    "a folded value (RFC 9112, 5.2)": GET + b"X-A: a\r\n b\r\nConnection: close\r\n\r\n",
}


@pytest.mark.fault(73)
def test_a_body_in_crumbs_is_refused(server: Server) -> None:
    crumbs = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert_answer(73, parse(exchange(server, [crumbs + b"1\r\n \r\n" * 2000])))
    whole = crumbs + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"
    assert b'"param":"n"' in exchange(server, [whole.replace(b"Host:", b"Connection: close\r\nHost:", 1)])


@pytest.mark.fault(22)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_requests_get_one_refusal(server: Server, name: str) -> None:
    response = parse(exchange(server, [BROKEN[name]]))
    assert_answer(22, response)
    assert response.headers["connection"] == "close"


@pytest.mark.fault(22)
@pytest.mark.parametrize("name", LEGAL)
def test_what_the_standard_permits_gets_one_answer(server: Server, name: str) -> None:
    assert parse(exchange(server, [LEGAL[name]])).status_code == 200


@pytest.mark.fault(22)
def test_no_broken_request_is_a_bug_of_the_server(server: Server) -> None:
    log = server.log.read_text()
    assert "Traceback" not in log


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.fault(24)
def test_idle_connections_beyond_the_cap_give_way(guarded: Server) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(guarded)) for _ in range(300)]
        asked = time.monotonic()
        assert guarded.get("/livez").status_code == 200
        assert time.monotonic() - asked < 1
        for connection in idle[:40]:
            assert connection.recv(1) == b"", "the oldest go"
        idle[-1].settimeout(0.2)
        with pytest.raises(TimeoutError):
            idle[-1].recv(1)


@pytest.mark.fault(24)
def test_when_all_connections_are_busy_health_still_answers(start_server: StartServer) -> None:
    server = start_server("--max-connections", "2")
    busy = POST + b"Content-Length: 40\r\n\r\n" + b'{"prompt":"a [slow:step:0.5]","n":1    }'
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(connect(server)).sendall(busy)
        time.sleep(0.5)
        server.http.close()
        for path, crowded in ((b"/livez", False), (b"/readyz", False), (b"/v1/models", True)):
            request = b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % path
            assert_answer(24, parse(exchange(server, [request])), 429 if crowded else 200)


@pytest.mark.fault(82)
def test_idle_connections_give_way_before_a_live_upload(start_server: StartServer) -> None:
    server = start_server("--max-connections", "20")
    form = (
        b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n' % part
            for part in ((b"prompt", b"", b"a"), (b"image", b'; filename="a"', bytes(1_000_000)))
        )
        + b"--b--\r\n"
    )
    head = f"POST {EDITS} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(form)}\r\n"
    server.http.close()
    with ExitStack() as stack:
        upload = stack.enter_context(connect(server))
        upload.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=b\r\n\r\n")
        idle: list[socket.socket] = []
        for start in range(0, len(form), 30_000):
            upload.sendall(form[start : start + 30_000])
            idle += [stack.enter_context(connect(server)) for _ in range(2)]
            time.sleep(0.05)
        answer = b""
        while data := upload.recv(65536):
            answer += data
        assert_answer(82, parse(answer))
        assert len(idle) > 40
        assert idle[0].recv(1) == b"", "the oldest idle go"


@pytest.mark.fault(83)
def test_the_limit_on_open_files_is_not_met(tmp_path: Path) -> None:
    server = running.start([], tmp_path, under=("sh", "-c", 'ulimit -n 128; exec "$@"', "sh")).wait_ready()
    try:
        with ExitStack() as stack:
            server.http.close()
            before = server.log.stat().st_size
            flood = [stack.enter_context(connect(server)) for _ in range(400)]
            for _ in range(20):
                time.sleep(0.1)
                with httpx.Client(base_url=server.url, timeout=10, trust_env=False) as client:
                    assert_answer(83, client.get("/livez"))
                    fields = {"prompt": "a cat", "response_format": "url"}
                    assert_answer(83, client.post(GENERATIONS, json=fields))
            assert server.log.stat().st_size - before < 20_000
            assert "Traceback" not in server.log.read_text()
            assert flood[0].recv(1) == b""
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture
async def listening(monkeypatch: pytest.MonkeyPatch, anyio_backend: str) -> AsyncIterator[int]:
    """The port of a server of large answers, in this process, with deadlines that a test can wait for."""
    for name, seconds in (("HEAD_S", 0.5), ("BODY_S", 1.0), ("WRITE_S", 1.0)):
        monkeypatch.setattr(protocol, name, seconds)

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body"):
            pass
        await Response(bytes(20 * 2**20) if scope["path"] == "/large" else b"small")(scope, receive, send)

    listener = socket.create_server(("127.0.0.1", 0))
    options = uvicorn.Config(
        large,
        http=protocol.bounded(100),
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEPT_S,
    )
    server = uvicorn.Server(options)
    serving = asyncio.create_task(server._serve([listener]))
    yield listener.getsockname()[1]
    server.should_exit = True
    await serving


async def closed_after_s(port: int, *parts: bytes, pause_s: float = 0.0) -> tuple[bytes, float]:
    """What comes back to these parts until the server closes, and when it does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    answer = b""
    with suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer, time.monotonic() - began


UPLOAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"


@pytest.mark.anyio
@pytest.mark.fault(23)
async def test_half_heads_half_bodies_and_silence_are_closed(listening: int) -> None:
    for parts, at_least in (
        ((), 0.4),
        ((b"GET / HT",), 0.4),
        ((b"G", *[b"E"] * 30), 0.4),
        ((UPLOAD,), 0.9),
        ((UPLOAD, *[b"a"] * 30), 0.9),
    ):
        answer, seconds = await closed_after_s(listening, *parts, pause_s=0.1)
        assert answer == b""
        assert at_least <= seconds < 10


@pytest.mark.anyio
@pytest.mark.behaviour(70)
@pytest.mark.fault(23)
async def test_an_answered_connection_waits_for_its_next_request(listening: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", listening)
    for _ in range(3):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"small"), 10)).startswith(b"HTTP/1.1 200")
        await asyncio.sleep(3 * protocol.HEAD_S)
    writer.write(b"GET / HT")
    began = time.monotonic()
    assert await asyncio.wait_for(reader.read(), 20) == b""
    assert protocol.HEAD_S - 0.1 <= time.monotonic() - began < KEPT_S - 1, "a head that has begun has its own time"
    writer.close()
    answer, seconds = await closed_after_s(listening, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer.endswith(b"small")
    assert KEPT_S - 0.5 <= seconds < 15


@pytest.mark.behaviour(70)
def test_keep_alive_is_told_where_it_holds(server: Server) -> None:
    assert server.get("/v1/models").headers["keep-alive"] == "timeout=75"
    assert server.generate(n=0).headers["keep-alive"] == "timeout=75"
    assert "keep-alive" not in server.get("/livez", headers={"connection": "close"}).headers
    assert "keep-alive" not in server.get("/livez", headers={"host": "localhost", "connection": "Close, TE"}).headers
    refused = server.get("/v1/models", headers={"host": "evil.example"}).headers
    assert (refused["connection"], "keep-alive" in refused) == ("close", False)
    assert b"keep-alive" not in exchange(server, [b"GET /livez HTTP/1.0\r\n\r\n"]).lower()


@pytest.mark.anyio
@pytest.mark.fault(23)
async def test_a_body_that_keeps_coming_has_its_time(listening: int) -> None:
    answer, seconds = await closed_after_s(listening, UPLOAD, *[bytes(200_000)] * 5, pause_s=0.4)
    assert answer.endswith(b"small")
    assert seconds > 1.5


@pytest.mark.anyio
@pytest.mark.fault(25)
async def test_a_client_that_does_not_read_is_closed(listening: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "BYTES_A_SECOND", 2**30)
    for head in (b"GET /large HTTP/1.1\r\nHost: a\r\n", b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"):
        with socket.socket() as reader:
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.connect(("127.0.0.1", listening))
            reader.sendall(head + b"\r\n")
            reader.setblocking(False)
            await asyncio.sleep(3)
            got = 0
            with suppress(BlockingIOError, ConnectionError):
                while data := reader.recv(2**20):
                    got += len(data)
            assert got < 20 * 2**20
            with suppress(ConnectionError):
                reader.sendall(b"\r\n")
            await asyncio.sleep(0.1)
            with pytest.raises(ConnectionError):
                reader.sendall(b"\r\n")


@pytest.mark.anyio
@pytest.mark.fault(25)
async def test_a_client_that_reads_slowly_gets_it_all(listening: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", listening, limit=2**16)
    writer.write(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    got = 0
    while data := await reader.read(2**20):
        got += len(data)
        await asyncio.sleep(0.05)
    assert got > 20 * 2**20
    writer.close()


@pytest.mark.fault(93)
def test_offers_of_other_protocols_are_declined_in_silence(start_server: StartServer) -> None:
    server = start_server()
    offers = [b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"]
    offers += [b"Upgrade: %s\r\nConnection: upgrade\r\n" % name for name in (b"websocket", b"TLS/1.0", b"a, b")]
    for offer in offers:
        head = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + offer + b"\r\n"
        last = b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = exchange(server, [head, last])
        assert answer.count(b"HTTP/1.1 200 OK") == 2, answer
    assert server.stop() == 0
    log = server.log.read_text()
    for word in ("pgrade", "pip", "ebSocket", "websockets"):
        assert word not in log


@pytest.mark.fault(22)
def test_what_is_no_http_is_counted(start_server: StartServer) -> None:
    server = start_server()
    for raw in (b"BAD\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        assert_answer(22, parse(exchange(server, [raw])))
    assert 'fluxserve_requests_rejected_total{code="invalid_value"} 3.0' in server.get("/metrics").text
