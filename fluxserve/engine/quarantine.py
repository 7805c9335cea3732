"""Request bodies that have crashed workers, remembered for a while so that they are not run again."""

from __future__ import annotations

import time

FORGET_AFTER_S = 600.0
CAPACITY = 256


class Quarantine:
    """Digests of request bodies; the oldest goes when there are too many."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, digest: str) -> None:
        self._until.pop(digest, None)
        self._until[digest] = time.monotonic() + FORGET_AFTER_S
        if len(self._until) > CAPACITY:
            del self._until[next(iter(self._until))]

    def __contains__(self, digest: str) -> bool:
        return self._until.get(digest, 0.0) > time.monotonic()
