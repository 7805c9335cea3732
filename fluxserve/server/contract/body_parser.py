"""Parsing beside the event loop, and of what is large in another process, so that a large body holds up nobody else."""

from __future__ import annotations

import asyncio
import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fluxserve.decoding.decoder import Decoder
from fluxserve.decoding.strict_json import parse_json_object
from fluxserve.server.http.spool import Spool

T = TypeVar("T")

AT_ONCE_BYTES = 8 * 2**10
"""Parsed in less time than handing it to a thread takes."""
IN_FRONT_BYTES = 256 * 2**10
"""Of a document with pictures: in a few milliseconds, for which other threads wait."""


class BodyParser:
    """One thread: large bodies are parsed one after the other."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="parser")

    async def run(self, parse: Callable[[], T], size: int) -> T:
        """What `parse` returns or raises. size: bytes it has to go through."""
        if size <= AT_ONCE_BYTES:
            return parse()
        return await asyncio.get_running_loop().run_in_executor(self._thread, parse)

    async def document(self, body: Spool, decoder: Decoder) -> tuple[dict[str, Any], str]:
        """(the JSON object in a body that may hold pictures, the body's digest).

        The pictures of a large one stay with the decoder: what stands in their places is for it alone.

        Raises:
            InvalidRequest: as `parse_json_object` and `Decoder.read` do. QueueFull: as `Decoder.read` does.
        """
        if body.size <= IN_FRONT_BYTES:
            return await self.run(lambda: parse_json_body(body.read()), body.size)
        document = await decoder.read(body)
        return await self.run(lambda: json.loads(document.rest), len(document.rest)), document.digest

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


def parse_json_body(body: bytes) -> tuple[dict[str, Any], str]:
    """(the object, with or without a byte order mark before it; the body's digest).

    Raises:
        InvalidRequest: as `parse_json_object` does.
    """
    return parse_json_object(body.removeprefix(BOM_UTF8)), hashlib.sha256(body).hexdigest()
