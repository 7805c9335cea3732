"""The HTTP/1.1 connection: how long each of its phases may last, how many there may be, what is no request at all.

Knows no routes. Stands on uvicorn's H11Protocol, which has no deadline for half a head, half a body or silence, and on
its attributes; RFC 9112 sections 2.2, 5.2 and 6.1 say what may be refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ClassVar

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from fluxserve.errors import InvalidRequest
from fluxserve.server.http.errors import error_body
from fluxserve.server.limits.pace import Pace

HEAD_S = 10.0
"""For a request's head, counted from the connection or, after an answer, from its first byte."""
BODY_S = 30.0
WRITE_S = 60.0
BYTES_A_SECOND = 256 * 1024
"""Bodies and answers get a second more for each of these."""
LONGEST_HEAD = 32 * 1024
FREE_CHUNKS, CHUNK_BYTES = 1_000, 256
"""Of a chunked body: so many chunks of any size, and one more for each of so many bytes: each costs as much to read."""
OVER_CAPACITY = "crowded"
"""In scope["state"]: there are too many connections to serve this one."""
ABORT = "abort"
"""In scope["state"]: ends the connection at once."""
LOST = "lost"
"""In scope["state"]: tells whether the connection has ended."""

BAD_REQUEST = InvalidRequest("the request is not valid HTTP/1.1")
"""What is no HTTP is answered with."""

_RECEIVING = (h11.IDLE, h11.SEND_BODY)


class StrictConnection(h11.Connection):
    """Refuses what h11 lets pass: a length given in two ways, heads beyond the bound, bodies of crumbs."""

    _chunks = 0
    _body_bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._count(event)
        elif isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
            names = {name for name, _ in event.headers}
            if {b"content-length", b"transfer-encoding"} <= names:
                raise h11.RemoteProtocolError("both Content-Length and Transfer-Encoding")
            if len(event.target) + sum(len(name) + len(value) for name, value in event.headers) > LONGEST_HEAD:
                raise h11.RemoteProtocolError("the head is too long")
        return event

    def _count(self, data: h11.Data) -> None:
        self._chunks += data.chunk_start
        self._body_bytes += len(data.data)
        if self._chunks > FREE_CHUNKS + self._body_bytes // CHUNK_BYTES:
            raise h11.RemoteProtocolError("the body's chunks are too small")


class Connection(H11Protocol):
    """One client's connection. most, on_bad_request: see `bounded`."""

    most: ClassVar[int]
    on_bad_request: ClassVar[Callable[[], None]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = StrictConnection(h11.SERVER, LONGEST_HEAD)
        self._phase_began = self.loop.time()
        self._received = 0
        self._lost = asyncio.Event()  # shared with requests, which then hold no connection that has ended
        self._pace = Pace(self._phase_began)
        self._expiry: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn types it
        super().connection_made(transport)
        self.app_state = {**self.app_state, ABORT: transport.abort, LOST: self._lost.is_set}
        if len(self.connections) > self.most and not self._make_room():
            self.app_state = {**self.app_state, OVER_CAPACITY: True}
        self._begin_phase()

    def data_received(self, data: bytes) -> None:
        if self._is_resting:
            self._begin_phase()
        before = self.cycle
        super().data_received(data)
        self._received += len(data)
        self._pace.add(len(data), self.loop.time())
        if self.cycle is not before:
            self._begin_phase()
        else:
            self._set_expiry()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._begin_phase()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin_phase()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._begin_phase()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost.set()
        self._cancel_expiry()

    def shutdown(self) -> None:
        """The server ends: a request that is not here yet is not waited for."""
        if self.conn.their_state is h11.SEND_BODY:
            self.transport.abort()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets one answer in the shape of all errors; nothing, if an answer has begun already."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        type(self).on_bad_request()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            answer = JSONResponse(error_body(BAD_REQUEST), 400)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            head = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
            for event in (head, h11.Data(bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """An offer of another protocol is declined by answering in this one: nothing to log, or to install."""

    def _make_room(self) -> bool:
        """Ends the connection whose client is the slowest to send or to read; whether there was one."""
        waiting = [
            connection
            for connection in self.connections
            if isinstance(connection, Connection) and connection is not self and connection._waits_for_its_client
        ]
        now = self.loop.time()
        slowest = min(waiting, key=lambda connection: connection._pace.rate(now), default=None)
        if slowest is not None:
            self.connections.discard(slowest)
            slowest.transport.abort()
        return slowest is not None

    @property
    def _waits_for_its_client(self) -> bool:
        return self.conn.their_state in _RECEIVING or self.flow.write_paused

    @property
    def _is_resting(self) -> bool:
        """Between an answer and the first byte of the next request: what uvicorn's keep-alive time is for."""
        return self.cycle is not None and self.conn.their_state is h11.IDLE and not self._received

    def _begin_phase(self) -> None:
        self._phase_began, self._received = self.loop.time(), 0
        self._pace = Pace(self._phase_began)
        self._set_expiry()

    def _set_expiry(self) -> None:
        self._cancel_expiry()
        allowed_s = self._allowed_s()
        if allowed_s is not None:
            self._expiry = self.loop.call_at(self._phase_began + allowed_s, self.transport.abort)

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()

    def _allowed_s(self) -> float | None:
        """How long the present phase may last; None: as long as the answer takes."""
        unsent = self.transport.get_write_buffer_size()
        if self.flow.write_paused or (unsent and (self.conn.their_state is h11.IDLE or self.transport.is_closing())):
            return WRITE_S + unsent / BYTES_A_SECOND
        if self.conn.their_state is h11.SEND_BODY:
            return BODY_S + self._received / BYTES_A_SECOND
        if self._is_resting:
            return self.timeout_keep_alive
        return HEAD_S if self.conn.their_state is h11.IDLE else None


def bounded(most: int, on_bad_request: Callable[[], None] = lambda: None) -> type[Connection]:
    """The protocol class for a server that keeps `most` connections; on_bad_request counts what is no HTTP."""
    return type("BoundedConnection", (Connection,), {"most": most, "on_bad_request": staticmethod(on_bad_request)})
