"""Calling back from inside long forward passes, so that they can be watched and stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from torch import nn


def never_cancelled() -> None:
    """The callback of callers that never stop."""


class CancellationPoint:
    """Calls the current callback before each of some modules runs; what it raises ends the forward pass."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._callback: Callable[[], None] = never_cancelled
        for module in modules:
            module.register_forward_pre_hook(lambda *_: self._callback())

    @contextmanager
    def calling(self, callback: Callable[[], None]) -> Iterator[None]:
        self._callback = callback
        try:
            yield
        finally:
            self._callback = never_cancelled
