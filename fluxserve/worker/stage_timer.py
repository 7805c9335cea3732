"""Times every stage and tells the front: a beat before, the figure after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from fluxserve import wire
from fluxserve.scheduling import CostModel, Stage
from fluxserve.worker.channel import Channel


class StageTimer:
    """costs: what has been measured so far; the scheduler decides by it."""

    def __init__(self, channel: Channel) -> None:
        self.costs = CostModel()
        self._channel = channel

    def beat(self, stage: Stage, pixels: int) -> None:
        """The main loop is alive, and in `stage` for images of `pixels` in all."""
        self._channel.send(wire.Beat(stage, pixels))

    @contextmanager
    def run(self, stage: Stage, pixels: int) -> Iterator[None]:
        """Measures the block; a block that fails is not measured."""
        self.beat(stage, pixels)
        start = perf_counter()
        yield
        self.measured(stage, pixels, perf_counter() - start)

    def measured(self, stage: Stage, pixels: int, seconds: float) -> None:
        self.costs.observe(stage, pixels, seconds)
        self._channel.send(wire.Measured(stage, pixels, seconds))
