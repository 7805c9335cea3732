"""What the bench beside diffusers counts, and what it says of it; its figures are measured by hand."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest

from scripts import bench_peers
from scripts.bench_peers import Bench, Line, in_turns, table


@pytest.fixture
def bench() -> Bench:
    return Bench(argparse.Namespace(folder="", dtype="bfloat16", sizes=(256,), pairs=2, steps=4, parts=("P1",)))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that the next runs take."""
    left: list[float] = []
    monkeypatch.setattr(bench_peers, "seconds", lambda _: left.pop(0))
    yield left
    assert not left


def test_runs_whose_control_differs_do_not_count(times: list[float]) -> None:
    times += [1.0, 2.0, 1.06, 1.0, 2.0, 1.04, 1.06, 2.0, 1.0, 1.0, 4.0, 1.0]
    runs, tried = in_turns(lambda: None, lambda: None, 2)
    assert ([run.ratio for run in runs], tried) == ([pytest.approx(0.51), 0.25], 4)


def test_where_too_few_count_nothing_is_claimed(bench: Bench, times: list[float]) -> None:
    times += [1.0, 2.0, 1.0] + [1.0, 2.0, 2.0] * 5
    bench.timed("P1", "a step", 0.85, lambda: None, lambda: None)
    (line,) = bench.lines
    assert (line.value, line.verdict) == (None, "not measured")
    assert "5 of 6 discarded" in str(line)


def test_goals_are_met_or_missed(bench: Bench) -> None:
    assert [Line("P1", "", value, 0.85).verdict for value in (0.85, 0.851)] == ["met", "missed"]
    assert [Line("P3", "", value, 28, at_most=False).verdict for value in (28, 27.9)] == ["met", "missed"]


@pytest.mark.parametrize(("difference", "wrong"), [(0.034, False), (0.036, True), (float("nan"), True)])
def test_what_is_not_the_same_is_said_and_fails(bench: Bench, difference: float, wrong: bool) -> None:
    bench.agreed("step", "256", difference)
    assert bench.wrong == wrong
    assert any("NOT THE SAME" in line for line in table(bench)) == wrong
