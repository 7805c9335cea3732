"""One request through an ASGI application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message


@dataclass
class Sent:
    """A request's body in pieces, and what came back. gone: set when the client leaves."""

    pieces: list[bytes]
    messages: list[Message] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> Headers:
        return Headers(raw=self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def error(self) -> Any:
        return json.loads(self.body)["error"]

    async def receive(self) -> Message:
        if self.pieces:
            return {"type": "http.request", "body": self.pieces.pop(0), "more_body": bool(self.pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.messages.append(message)


def scope_of(path: str, method: str = "POST", headers: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    given = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1"), *given],
        "client": ("junk", 0),
        "server": ("127.0.0.1", 8000),
    }


async def send(
    app: ASGIApp,
    path: str,
    *pieces: bytes,
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (),
) -> Sent:
    sent = Sent(list(pieces) or [b""])
    await app(scope_of(path, method, headers), sent.receive, sent.send)
    return sent


async def send_json(app: ASGIApp, path: str, headers: Sequence[tuple[str, str]] = (), **fields: Any) -> Sent:
    return await send(app, path, json.dumps(fields).encode(), headers=[("content-type", "application/json"), *headers])
