"""A reader that is behind gets the newest previews; one that keeps up gets all."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest

from fluxserve.engine.events import PREVIEW_BYTES, EventLog, PartialImage
from fluxserve.request import GeneratedImage, Progress


@dataclass(frozen=True)
class Preview(PartialImage):
    """Can be weakly referenced, to see whether it is kept."""


def preview(number: int, size: int) -> Preview:
    return Preview(0, number, GeneratedImage(bytes(size), "png", 64, 64, 0, 0))


async def numbers(log: EventLog) -> list[int]:
    return [event.partial_index async for event in log.read() if isinstance(event, PartialImage)]


@pytest.mark.anyio
@pytest.mark.fault(85)
async def test_old_previews_are_dropped_when_they_hold_too_much() -> None:
    log = EventLog()
    kept = []
    for number in range(9):
        event = preview(number, PREVIEW_BYTES // 3)
        kept.append(weakref.ref(event))
        log.append(event)
        log.append(Progress(0, number, 9))
    del event
    gc.collect()
    assert [reference() is not None for reference in kept] == [False] * 6 + [True] * 3
    log.append(preview(9, 2 * PREVIEW_BYTES))
    log.close()
    assert await numbers(log) == [9]
    assert len([event async for event in log.read()]) == 10


@pytest.mark.anyio
async def test_small_previews_all_stay() -> None:
    log = EventLog()
    for number in range(30):
        log.append(preview(number, 1000))
    log.close()
    assert await numbers(log) == list(range(30))
