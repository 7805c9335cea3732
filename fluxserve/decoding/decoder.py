"""The front's side of a decoding process: starts it, waits for it with a limit, kills it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

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


class Decoder:
    """At most one process, kept for the next file. One file at a time.

    limit_s: for its decoding. large: shared by several decoders, of which one decodes a large picture at a time.
    """

    def __init__(self, module: str, limit_s: float, large: asyncio.Lock) -> None:
        self._module = module
        self._limit_s = limit_s
        self._large = large
        self._process: WorkerProcess | None = None
        self._messages: AsyncIterator[wire.Message] | None = None
        self._ending: set[asyncio.Task[int | None]] = set()

    async def decode(self, message: wire.Decode) -> wire.Decoded:
        """The picture. Cancelling ends the process.

        Raises:
            InvalidRequest: the file is no picture, takes too long, or twice ended the process.
            QueueFull: this machine does not get to it.
        """
        for _ in range(ATTEMPTS):
            try:
                answer = await self._ask(message)
            except BaseException:
                self.close()
                raise
            if isinstance(answer, wire.Failed):
                raise InvalidRequest(answer.message, param=answer.param, code=answer.code)
            if isinstance(answer, wire.Decoded):
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

    async def _ask(self, message: wire.Decode) -> wire.Message | None:
        """One attempt. If the process ended without an answer: Began, or None if it had not even begun."""
        try:
            async with asyncio.timeout(START_S):
                await self._start()
                assert self._process is not None
                await self._process.deliver(message)
                began = await self._hear()
        except (TimeoutError, OSError) as error:
            raise _unavailable() from error
        answer = await self._hear_in_time(message) if began else None
        if isinstance(answer, wire.Large):
            async with self._large:
                self._process.send(wire.GoOn())
                answer = await self._hear_in_time(message)
        return answer or began

    async def _hear_in_time(self, message: wire.Decode) -> wire.Message | None:
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._hear()
        except TimeoutError:
            log.warning("an upload takes longer than %g s to decode: its process is ended", self._limit_s)
            raise _refused(message, f"takes longer than {self._limit_s:g} s to decode") from None

    async def _start(self) -> None:
        """Returns once the process takes files."""
        if self._process is None:
            self._process = await WorkerProcess.spawn(self._module)
            self._messages = self._process.messages()
            await self._hear()

    async def _hear(self) -> wire.Message | None:
        """The next message; None when the process has ended."""
        assert self._messages is not None
        return await anext(self._messages, None)


def _unavailable() -> QueueFull:
    return QueueFull("no upload can be decoded now; try again", retry_after_s=RETRY_AFTER_S)


def _refused(message: wire.Decode, why: str) -> InvalidRequest:
    return InvalidRequest(f"{message.param} {why}", param=message.param, code=f"invalid_{message.param}")
