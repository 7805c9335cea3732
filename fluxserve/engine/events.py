"""What a job tells those who wait for it, and the log in which they read it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fluxserve.request import GeneratedImage, Progress, Timings


@dataclass(frozen=True)
class PartialImage:
    """Image `index` as it is predicted on its way. partial_index: from 0, counted for each image."""

    index: int
    partial_index: int
    image: GeneratedImage


@dataclass(frozen=True)
class CompletedImage:
    """One finished image of the job. timings: this image's; queue_ms and total_ms count from the job's submission."""

    image: GeneratedImage
    timings: Timings


@dataclass(frozen=True)
class JobResult:
    """All that a finished job made.

    images: in the order of the request's seeds. truncated_from: the tokens the prompt had when it was longer than
    `max_sequence_length`, else None.
    """

    images: tuple[GeneratedImage, ...]
    timings: Timings
    text_tokens: int
    truncated_from: int | None


PREVIEW_BYTES = 4 * 2**20
"""What the previews of one job may hold for readers that are behind; the newest is kept in any case."""

JobEvent = Progress | PartialImage | CompletedImage | JobResult


class Changes:
    """Wakes those who wait for something to be different. Belongs to one event loop. count: of the changes so far."""

    def __init__(self) -> None:
        self.count = 0
        self._noted = asyncio.Event()

    def note(self) -> None:
        """Something is different."""
        self.count += 1
        self._noted.set()
        self._noted = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Returns once it holds; it is asked now, and whenever something is different."""
        while not condition():
            await self._noted.wait()


class EventLog:
    """Events in order, for any number of readers, until it is closed; old previews are dropped (`PREVIEW_BYTES`).

    Belongs to one event loop.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._events: list[JobEvent | None] = []
        self._previews: deque[tuple[int, int]] = deque()
        self._changed = asyncio.Event()

    def append(self, event: JobEvent) -> None:
        self._events.append(event)
        if isinstance(event, PartialImage):
            self._previews.append((len(self._events) - 1, len(event.image.data)))
            self._drop_previews()
        self._wake()

    def close(self) -> None:
        """Readers end once they have read what is here."""
        self.closed.set()
        self._wake()

    async def read(self) -> AsyncIterator[JobEvent]:
        """Every event that is kept, from the first to the last, as they come."""
        position = 0
        while True:
            changed = self._changed
            while position < len(self._events):
                event = self._events[position]
                position += 1
                if event is not None:
                    yield event
            if self.closed.is_set():
                return
            await changed.wait()

    def _drop_previews(self) -> None:
        held = sum(size for _, size in self._previews)
        while held > PREVIEW_BYTES and len(self._previews) > 1:
            position, size = self._previews.popleft()
            self._events[position] = None
            held -= size

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
