"""What a failure looks like on the command line: its message on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fluxserve.errors import CheckpointError, ConfigError, FluxserveError, InvalidRequest, SourceError

EXIT_CODES: dict[type[FluxserveError], int] = {
    InvalidRequest: 2,
    CheckpointError: 65,
    SourceError: 69,
    ConfigError: 78,
    FluxserveError: 1,
}
"""After sysexits.h; the first class that fits counts."""


def exit_code(error: FluxserveError) -> int:
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))


@contextmanager
def failures_to_exit_codes() -> Iterator[None]:
    """Ends the process with one clear message instead of a traceback."""
    try:
        yield
    except FluxserveError as error:
        print(error.message, file=sys.stderr)
        sys.exit(exit_code(error))
