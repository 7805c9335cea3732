"""A small HTTP client on asyncio, cheap enough to keep a server busy from the same machine. Knows loopback only."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.server.running import GENERATIONS, Server

HANG_S = 60.0


@dataclass(frozen=True)
class Reply:
    """seconds: from the request's first byte to the answer's last."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The error's code; None for an answer that is none. Raises where an error has not OpenAI's shape."""
        if self.status < 400:
            return None
        error = self.json()["error"]
        if list(error) != ["message", "type", "param", "code"]:
            raise ValueError(f"not OpenAI's shape: {self.body[:200]!r}")
        return str(error["code"])


class Client:
    """One connection, kept alive and made anew when the server has closed it."""

    def __init__(self, server: Server, headers: Mapping[str, str] | None = None) -> None:
        self._host, self._port = server.url.removeprefix("http://").split(":")
        self._headers = {"host": "localhost", **(headers or {})}
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, body: Mapping[str, Any] | bytes, headers: Mapping[str, str] | None = None) -> Reply:
        """POST /v1/images/generations."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send("POST", GENERATIONS, data, {"content-type": "application/json", **(headers or {})})

    async def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Reply:
        """Raises TimeoutError after a minute, ConnectionError when the server hangs up without an answer."""
        lines = {**self._headers, "content-length": str(len(body)), **(headers or {})}
        head = "".join([f"{method} {path} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in lines.items())])
        began = time.monotonic()
        async with asyncio.timeout(HANG_S):
            try:
                status, answer_headers, answer = await self._exchange(head.encode() + b"\r\n" + body)
            except BaseException:
                self.close()
                raise
        if answer_headers.get("connection") == "close":
            self.close()
        return Reply(status, answer_headers, answer, time.monotonic() - began)

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
        self._streams = None

    async def _exchange(self, request: bytes) -> tuple[int, dict[str, str], bytes]:
        """A kept connection that the server has closed in the meantime is replaced once."""
        for fresh in (self._streams is None, True):
            reader, writer = await self._connected(fresh)
            try:
                writer.write(request)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                break
            except (asyncio.IncompleteReadError, ConnectionError):
                if fresh:
                    raise ConnectionError("closed without an answer") from None
        pairs = (line.partition(":") for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        body = await _chunks(reader) if "transfer-encoding" in headers else await _whole(reader, headers)
        return int(head[0].split()[1]), headers, body

    async def _connected(self, fresh: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if fresh or self._streams is None:
            self.close()
            self._streams = await asyncio.open_connection(self._host, int(self._port), limit=2**26)
        return self._streams


async def _whole(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    return await reader.readexactly(int(headers.get("content-length", 0)))


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readline()
    return body
