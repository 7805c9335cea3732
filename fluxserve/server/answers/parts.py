"""Large answers: sent in pieces as their client reads them, base64 made on the way, and no byte is copied before."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fluxserve.server.http.context import context_of
from fluxserve.server.http.disconnect import until_gone

PIECE_BYTES = 48 * 1024
"""A multiple of three, so that its base64 needs no padding."""
_PIECES_A_TURN = 16
"""Then others get their turn, however fast the client reads."""


@dataclass(frozen=True)
class Base64:
    """Bytes that are sent as base64."""

    data: bytes

    def __len__(self) -> int:
        return (len(self.data) + 2) // 3 * 4


Part = bytes | Base64


def pieces(parts: Iterable[Part]) -> Iterator[bytes]:
    """All parts as the client gets them, in pieces of about PIECE_BYTES."""
    gathered = bytearray()
    for part in parts:
        for block in _blocks(part):
            gathered += block
            if len(gathered) >= PIECE_BYTES:
                yield bytes(gathered)
                gathered.clear()
    if gathered:
        yield bytes(gathered)


async def send_parts(parts: Iterable[Part], send: Send, gone: asyncio.Future[None]) -> bool:
    """Sends them as a further stretch of the body; whether the client was there to the end."""
    for number, piece in enumerate(pieces(parts)):
        if number % _PIECES_A_TURN == _PIECES_A_TURN - 1:
            await asyncio.sleep(0)
        if gone.done():
            return False
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    return not gone.done()


class PartsAnswer(Response):
    """An answer whose body is these parts. source: where they come from, kept alive for others to share it."""

    def __init__(
        self,
        parts: Sequence[Part],
        media_type: str,
        source: object,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        length = {"content-length": str(sum(map(len, parts)))}
        super().__init__(status_code=status, media_type=media_type, headers={**(headers or {}), **length})
        self.parts, self._source = parts, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context_of(scope).held = lambda: (part.data if isinstance(part, Base64) else part for part in self.parts)
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if await send_parts(self.parts, send, gone):
                await send({"type": "http.response.body", "body": b""})
        finally:
            gone.cancel()


def _blocks(part: Part) -> Iterator[bytes | memoryview]:
    data = memoryview(part.data if isinstance(part, Base64) else part)
    for start in range(0, len(data), PIECE_BYTES):
        block = data[start : start + PIECE_BYTES]
        yield base64.b64encode(block) if isinstance(part, Base64) else block
