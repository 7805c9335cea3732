"""One worker process: its start, its pipe, its end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import suppress

from fluxserve import wire

REAP_TIMEOUT_S = 10.0
READ_AHEAD_BYTES = 2**20
_DEFAULTS = {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}
"""Threads that wait for each other sleep: where anybody else computes, one that spins holds up the one it waits for.

torch asks for large pages: to hand out fresh small ones takes the kernel as long as many a kernel of ours runs.
"""
PIECE_BYTES = 256 * 1024


class TailReader(asyncio.StreamReader):
    """Reads to the end what a worker said before it died.

    A death with messages of ours unread resets the connection; asyncio would then drop what is read but not yet taken.
    """

    def set_exception(self, exc: BaseException) -> None:
        self.feed_eof()


async def open_pipe(ours: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The front's end of a socket pair."""
    loop, reader = asyncio.get_running_loop(), TailReader(READ_AHEAD_BYTES)
    transport, protocol = await loop.create_connection(lambda: asyncio.StreamReaderProtocol(reader), sock=ours)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


class WorkerProcess:
    """Started by module name over a socket pair; nothing is forked or pickled. Logs go where the front's go."""

    def __init__(self, process: Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = process.pid
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def spawn(cls, module: str, shared: int | None = None) -> WorkerProcess:
        """Starts `python -m module`. Call it in the main thread: the kernel ends the worker with the calling thread.

        shared: a descriptor that it inherits under the same number.

        The working folder is kept off its module path (-P), so that a folder of weights cannot bring code along.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            reader, writer = await open_pipe(ours)
            fd = theirs.fileno()
            command = (sys.executable, "-P", "-m", module, "--fd", str(fd), "--parent", str(os.getpid()))
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=DEVNULL,
                    pass_fds=(fd,) if shared is None else (fd, shared),
                    start_new_session=True,
                    env=_DEFAULTS | os.environ,
                )
            except BaseException:
                writer.close()
                raise
        return cls(process, reader, writer)

    def send(self, message: wire.ToWorker) -> None:
        """Returns at once. A worker that is gone does not get it, which `messages` will tell."""
        self._writer.writelines(wire.frame(message))

    async def deliver(self, message: wire.ToWorker) -> None:
        """Returns when the process has taken nearly all of it: a large message is never held twice."""
        for part in wire.frame(message):
            for start in range(0, len(part), PIECE_BYTES):
                self._writer.write(part[start : start + PIECE_BYTES])
                await self._writer.drain()

    async def messages(self) -> AsyncIterator[wire.Message]:
        """What the worker says, until it closes its end or says what is no message."""
        with suppress(ConnectionError, wire.WireError):
            while (message := await wire.read_async(self._reader)) is not None:
                yield message

    def kill(self) -> None:
        """SIGKILL; does nothing to a process that has ended."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, grace_s: float) -> int | None:
        """Waits `grace_s` for it to end by itself, then kills it.

        Returns the exit code, negative for a signal, None if the kernel would not let go of it.
        """
        self._writer.close()
        for timeout_s in (grace_s, REAP_TIMEOUT_S):
            with suppress(TimeoutError):
                return await asyncio.wait_for(self._process.wait(), timeout_s)
            self.kill()
        return None
