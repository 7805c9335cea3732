"""Parsing beside the event loop, so that a large body holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

AT_ONCE_BYTES = 8 * 2**10
"""Parsed in less time than handing it to a thread takes."""


class BodyParser:
    """One thread: large bodies are parsed one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parser")

    async def run(self, parse: Callable[[], T], size: int) -> T:
        """What `parse` returns or raises. size: bytes it has to go through."""
        if size <= AT_ONCE_BYTES:
            return parse()
        return await asyncio.get_running_loop().run_in_executor(self._thread, parse)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
