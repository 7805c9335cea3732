"""How fast a client sends or reads: where not all can be kept, the slowest goes first."""

from __future__ import annotations

import math

_MEMORY_S = 2.0
_AT_FIRST = 16 * 1024


class Pace:
    """Bytes a second, those of the last two seconds counting most. A newcomer counts as one of 16 KiB a second.

    now: seconds of any one clock.
    """

    def __init__(self, now: float) -> None:
        self._rate, self._at = float(_AT_FIRST), now

    def add(self, size: int, now: float) -> None:
        """`size` more bytes have passed."""
        self._rate, self._at = self.rate(now) + size / _MEMORY_S, now

    def rate(self, now: float) -> float:
        return self._rate * math.exp((self._at - now) / _MEMORY_S)
