"""A training run's file on disk: written whole or not at all, and often enough that a killed run loses minutes.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

SAVE_EVERY_S = 90.0


def save(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def load(path: Path) -> dict[str, Any] | None:
    """What `save` wrote, or None. Holds tensors and plain numbers only."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else None


class Stop(Exception):
    """The run was asked to end; everything is on disk."""


class Keeper:
    """Calls `write` every SAVE_EVERY_S seconds, and once more, then raises Stop, after SIGTERM or SIGINT."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._saved_at = time.monotonic()
        self._ending = False
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._end)

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self._ending = True

    def after_step(self) -> None:
        """Call between steps, never inside one."""
        if self._ending or time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self._write()
            self._saved_at = time.monotonic()
        if self._ending:
            raise Stop
