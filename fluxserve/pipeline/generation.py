"""What one call of `generate` gives back, and the clock that times it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

from fluxserve.request import GeneratedImage, Timings


@dataclass(frozen=True)
class Generation(Sequence[GeneratedImage]):
    """The pictures of one `generate` call, in order, and where its time went."""

    images: tuple[GeneratedImage, ...]
    timings: Timings

    @overload
    def __getitem__(self, index: int) -> GeneratedImage: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[GeneratedImage]: ...
    def __getitem__(self, index: int | slice) -> GeneratedImage | Sequence[GeneratedImage]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)


class Stopwatch:
    """Milliseconds of wall time by stage."""

    def __init__(self) -> None:
        self.spent_ms: dict[str, float] = defaultdict(float)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Adds the time since the last lap to a stage."""
        now = time.perf_counter()
        self.spent_ms[stage] += (now - self._last) * 1000
        self._last = now
