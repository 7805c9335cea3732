"""One measured goal, and the table of them. Knows nothing of how anything is measured."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """number: as the goals are known by (R1 ...). wanted, figure: for people. passed: the figure is as wanted.

    load: how many processes of the machine wanted a core when the measurement began; more than it has distorts times.
    """

    number: str
    what: str
    wanted: str
    figure: str
    passed: bool
    load: float = 0.0

    @property
    def verdict(self) -> str:
        return "pass" if self.passed else "missed"


@dataclass(frozen=True)
class Scale:
    """How much of each loop is run: 1 is what the goals ask for."""

    part: float

    def of(self, count: int) -> int:
        """That part of `count`, at least 1."""
        return max(1, round(count * self.part))


Part = Callable[[Scale], Awaitable[list[Goal]]]


def at_most(number: str, what: str, figure: float, limit: float, unit: str) -> Goal:
    """A figure that may be `limit` at the highest."""
    return Goal(number, what, f"<= {limit:g} {unit}", f"{figure:.3g} {unit}", figure <= limit)


def none_of(number: str, what: str, found: Sequence[object], of: int) -> Goal:
    """Nothing was found wrong in `of` tries; else the first that was."""
    figure = f"0 of {of:,}" if not found else f"{len(found)} of {of:,}, first: {str(found[0])[:160]}"
    return Goal(number, what, "0", figure.replace("|", "/"), not found)


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile of at least one value."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]
