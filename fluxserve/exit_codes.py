"""What processes end with, after sysexits.h: commands, the server, and its worker, whose refusals it passes on."""

from __future__ import annotations

from collections.abc import Mapping

from fluxserve.errors import CheckpointError, ConfigError, FluxserveError, InvalidRequest, SourceError

UNEXPECTED = 1
GAVE_UP = 70
"""No worker can be kept alive."""
DEVICE_LOST = 71
"""A worker's: the device's context is broken, and only a new process gets a new one."""

EXIT_CODES: Mapping[type[FluxserveError], int] = {
    InvalidRequest: 2,
    CheckpointError: 65,
    SourceError: 69,
    ConfigError: 78,
    FluxserveError: UNEXPECTED,
}
"""The first class that fits counts."""

REFUSALS = frozenset(EXIT_CODES[kind] for kind in (CheckpointError, SourceError, ConfigError))
"""The worker cannot serve what it was given: no restart would help."""


def exit_code(error: FluxserveError) -> int:
    return next(code for kind, code in EXIT_CODES.items() if isinstance(error, kind))
