"""The process's limit on open files: how many connections it allows, and what is said where it is met all the same."""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import time
from contextlib import suppress
from typing import Any

log = logging.getLogger("fluxserve")

_SPARE = 64
"""Open files for everything but clients: pictures, logs, the pipes of processes."""
_EACH = 2
"""A connection, and the file its upload lies in."""
_FEWEST = 4
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


def allow_open_files() -> None:
    """Raises the process's limit as far as it may."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def most_connections(wanted: int) -> int:
    """As many as are wanted, or as the limit allows."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or (allowed := max((limit - _SPARE) // _EACH, _FEWEST)) >= wanted:
        return wanted
    log.warning("at most %d connections instead of %d: the limit on open files is %d", allowed, wanted, limit)
    return allowed


class AcceptErrors:
    """The event loop's handler of exceptions: connections that cannot be accepted are told of once a second."""

    def __init__(self) -> None:
        self._told_at = -1.0

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _EXHAUSTED:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._told_at >= 1:
            self._told_at = time.monotonic()
            log.warning("connections cannot be accepted: %s", error.strerror)
