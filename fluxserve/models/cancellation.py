"""Calling back from inside long forward passes, so that they can be watched and stopped. Knows nothing of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def no_checkpoint() -> None:
    """The checkpoint of callers that never stop."""


class Checkpoint:
    """Calls the current callback before each of some modules runs; what it raises ends the forward pass."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._callback: Callable[[], None] = no_checkpoint
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self._callback())

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        self._callback = callback
        try:
            yield
        finally:
            self._callback = no_checkpoint
