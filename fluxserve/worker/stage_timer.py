"""Times every stage and tells the front: a beat before, the figure after. Knows no jobs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from fluxserve import wire
from fluxserve.scheduling import Pace, Stage
from fluxserve.worker.channel import Channel


class Stages:
    """pace: what has been measured so far; the scheduler judges by it."""

    def __init__(self, channel: Channel) -> None:
        self.pace = Pace()
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
        self.pace.observe(stage, pixels, seconds)
        self._channel.send(wire.Measured(stage, pixels, seconds))
