"""What a finished job leaves, in a form that can be answered again later."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fluxserve.engine.events import JobResult


@dataclass(frozen=True)
class Outcome:
    """What one job made. created: Unix time. names: the pictures' file names in the store, if they are there."""

    created: int
    model: str
    result: JobResult
    names: tuple[str, ...] = ()


def outcome_of(result: JobResult, model: str, names: Sequence[str] = ()) -> Outcome:
    """The outcome of a job that has just finished."""
    return Outcome(int(time.time()), model, result, tuple(names))
