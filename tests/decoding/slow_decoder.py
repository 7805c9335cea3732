"""`python -m tests.decoding.slow_decoder`: the real process, which sleeps or dies for pictures of some widths."""

from __future__ import annotations

import os
import signal
import time

from fluxserve import wire
from fluxserve.decoding.process import serve, shrink
from fluxserve.request import InputImage

FOR_EVER, A_WHILE, DEADLY = 65, 66, 67
"""Widths of pictures."""
A_WHILE_S = 0.6


def slow_shrink(message: wire.Decode) -> tuple[InputImage, InputImage]:
    width = int.from_bytes(message.data[16:20], "big")
    if width == DEADLY:
        os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep({FOR_EVER: 3600.0, A_WHILE: A_WHILE_S}.get(width, 0.0))
    return shrink(message)


if __name__ == "__main__":
    serve(slow_shrink)
