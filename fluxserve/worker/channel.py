"""The worker's end of the pipe: messages out from any thread, messages in as a queue."""

from __future__ import annotations

import os
import queue
import socket
import threading

from fluxserve import wire


class Channel:
    """Reads in a thread of its own. When the front is gone, the process ends there and then: nobody waits for it."""

    def __init__(self, pipe: socket.socket) -> None:
        self.inbox: queue.SimpleQueue[wire.Message] = queue.SimpleQueue()
        self._pipe = pipe
        self._sending = threading.Lock()
        threading.Thread(target=self._read, name="pipe", daemon=True).start()

    def send(self, message: wire.ToFront) -> None:
        """Blocks while the front is behind."""
        try:
            with self._sending:
                for part in wire.frame(message):
                    self._pipe.sendall(part)
        except OSError:
            os._exit(0)

    def receive(self, timeout_s: float) -> wire.Message | None:
        """The next message; None when none came in time. Zero does not wait."""
        try:
            return self.inbox.get(block=timeout_s > 0, timeout=timeout_s or None)
        except queue.Empty:
            return None

    def _read(self) -> None:
        try:
            with self._pipe.makefile("rb") as stream:
                while (message := wire.read(stream)) is not None:
                    self.inbox.put(message)
                    del message  # it may hold a large file, and the next one may be long in coming
        finally:
            os._exit(0)
