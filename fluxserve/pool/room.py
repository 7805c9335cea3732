"""Arithmetic of devices: what each has, and what loaded models take of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fluxserve.engine import Engine


class Room:
    """free: bytes of each device with no model loaded, where that is known."""

    def __init__(self) -> None:
        self.free: dict[str, int] = {}

    def fits(self, engine: Engine, loaded: Iterable[Engine]) -> bool:
        """Whether the model fits beside those that are loaded; so does one of which nothing is known yet."""
        taken = sum((_taken(other) for other in (*loaded, engine)), Counter[str]())
        return all(taken[device] <= self.free.get(device, taken[device]) for device in devices_of(engine))


def devices_of(engine: Engine) -> list[str]:
    """Of each worker."""
    card = engine.card
    named = [pipeline.device for pipeline in engine.config.pipelines]
    own = [card.device if card and name == "auto" else name for name in named]
    return ["cuda:0" if name == "cuda" else name for name in own]


def _taken(engine: Engine) -> Counter[str]:
    """Bytes by device."""
    placement = engine.card.placement if engine.card else None
    taken: Counter[str] = Counter()
    for device in devices_of(engine):
        taken[device] += placement.peak_bytes if placement else 0
    return taken
