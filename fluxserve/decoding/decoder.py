"""The front's side of a decoding process: starts it, waits for it with a limit, kills it. Knows no HTTP."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

from fluxserve import wire
from fluxserve.engine.worker_process import WorkerProcess
from fluxserve.errors import InvalidRequest, QueueFull

log = logging.getLogger(__name__)

DECODE_S = 10.0
"""What one file may take, counted from when its decoding begins."""
START_S = 30.0
"""For the process to start, and to take a file."""
RETRY_AFTER_S = 5.0
ATTEMPTS = 2
LARGE_BODY_BYTES = 8 * 2**20
_TOKEN_BYTES = 24


class Body(Protocol):
    """What a client has sent. size: bytes."""

    size: int

    def chunks(self) -> Iterator[bytes]:
        """All of it, from the beginning."""


class Decoder:
    """At most one process, kept for the next request. One request at a time, between `begin` and `forget`.

    limit_s: for one file, or to read one body. large: shared by several decoders, of which one at a time has a large
    body or decodes a large picture.
    """

    def __init__(self, module: str, limit_s: float, large: asyncio.Lock) -> None:
        self._module = module
        self._limit_s = limit_s
        self._large = large
        self._has_large = False
        self._read: tuple[Body, wire.Read] | None = None
        self._process: WorkerProcess | None = None
        self._messages: AsyncIterator[wire.Message] | None = None
        self._ending: set[asyncio.Task[int | None]] = set()

    async def begin(self, size: int) -> None:
        """A request whose body has `size` bytes is read from now on."""
        if size > LARGE_BODY_BYTES:
            await self._large.acquire()
            self._has_large = True

    def forget(self) -> None:
        """The request is done with it."""
        if self._has_large:
            self._large.release()
        if self._read is not None and self._process is not None:
            self._process.send(wire.Forget())
        self._has_large, self._read = False, None

    async def read(self, body: Body) -> wire.Document:
        """The JSON object in a body, whose pictures stay in the process. Cancelling ends it.

        Raises:
            InvalidRequest: as `HeldPictures.read` does, or it takes too long, or twice ended the process.
            QueueFull: this machine does not get to it.
        """
        message = wire.Read(secrets.token_bytes(_TOKEN_BYTES))
        self._read = body, message
        answer = await self._answered(message)
        assert isinstance(answer, wire.Document)
        return answer

    async def decode(self, message: wire.Decode) -> wire.Decoded:
        """The picture. Cancelling ends the process.

        Raises:
            InvalidRequest: the file is no picture, takes too long, or twice ended the process.
            QueueFull: this machine does not get to it.
        """
        answer = await self._answered(message)
        assert isinstance(answer, wire.Decoded)
        return answer

    async def _answered(self, message: wire.Read | wire.Decode) -> wire.Document | wire.Decoded:
        for _ in range(ATTEMPTS):
            try:
                answer = await self._ask(message)
            except BaseException:
                self.close()
                raise
            if isinstance(answer, wire.Failed):
                raise InvalidRequest(answer.message, param=answer.param, code=answer.code)
            if isinstance(answer, wire.Decoded | wire.Document):
                return answer
            self.close()
        if answer is None:
            raise _unavailable()
        raise _refused(message, "cannot be decoded")

    def close(self) -> None:
        """Kills the process."""
        if self._process is not None:
            self._process.kill()
            ending = asyncio.get_running_loop().create_task(self._process.end(0))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        self._process = self._messages = None

    async def _ask(self, message: wire.Read | wire.Decode) -> wire.Message | None:
        """One attempt. If the process ended without an answer: Began, or None if it had not even begun."""
        if await self._start() and self._read is not None and isinstance(message, wire.Decode):
            await self._tell(self._read[1])  # what another process has read before
        answer = await self._tell(message)
        if isinstance(answer, wire.Large) and not self._has_large:
            async with self._large:
                return await self._go_on(message)
        return await self._go_on(message) if isinstance(answer, wire.Large) else answer

    async def _tell(self, message: wire.Read | wire.Decode) -> wire.Message | None:
        """The first answer. If there is none: Began, or None."""
        assert self._process is not None
        try:
            async with asyncio.timeout(START_S):
                if isinstance(message, wire.Read) and self._read is not None:
                    await self._deliver(self._read[0])
                await self._process.deliver(message)
                began = await self._hear()
        except TimeoutError as error:
            raise _unavailable() from error
        except OSError:  # it ended while it was idle
            return None
        return (await self._hear_in_time(message) or began) if began else None

    async def _deliver(self, body: Body) -> None:
        """A file may be slow to read: it is, in a thread."""
        assert self._process is not None
        chunks = body.chunks()
        while chunk := await asyncio.to_thread(next, chunks, b""):
            await self._process.deliver(wire.Piece(chunk))

    async def _go_on(self, message: wire.Read | wire.Decode) -> wire.Message | None:
        assert self._process is not None
        self._process.send(wire.GoOn())
        return await self._hear_in_time(message) or wire.Began(0)

    async def _hear_in_time(self, message: wire.Read | wire.Decode) -> wire.Message | None:
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._hear()
        except TimeoutError:
            log.warning("an upload takes longer than %g s to decode: its process is ended", self._limit_s)
            raise _refused(message, f"takes longer than {self._limit_s:g} s to decode") from None

    async def _start(self) -> bool:
        """Returns once the process takes files; whether it is a new one."""
        if self._process is not None:
            return False
        try:
            async with asyncio.timeout(START_S):
                self._process = await WorkerProcess.spawn(self._module)
                self._messages = self._process.messages()
                await self._hear()
        except (TimeoutError, OSError) as error:
            raise _unavailable() from error
        return True

    async def _hear(self) -> wire.Message | None:
        """The next message; None when the process has ended."""
        assert self._messages is not None
        return await anext(self._messages, None)


def _unavailable() -> QueueFull:
    return QueueFull("no upload can be decoded now; try again", retry_after_s=RETRY_AFTER_S)


def _refused(message: wire.Read | wire.Decode, why: str) -> InvalidRequest:
    if isinstance(message, wire.Read):
        return InvalidRequest(f"the body {why}", code="invalid_json")
    return InvalidRequest(f"{message.param} {why}", param=message.param, code=f"invalid_{message.param}")
