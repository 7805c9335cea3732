"""What a failure looks like on the command line: its message on stderr and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from fluxserve.errors import FluxserveError
from fluxserve.exit_codes import exit_code


@contextmanager
def failures_to_exit_codes() -> Iterator[None]:
    """Ends the process with one clear message instead of a traceback."""
    try:
        yield
    except FluxserveError as error:
        print(error.message, file=sys.stderr)
        sys.exit(exit_code(error))
