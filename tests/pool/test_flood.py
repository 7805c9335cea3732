"""Three models where two fit, two workers each, killed, evicted and idle: every request has its one right answer."""

from __future__ import annotations

import asyncio

import pytest

from scripts.endurance.first_come import Pool, Served, first_come_s, ratios
from scripts.endurance.goals import Scale
from scripts.endurance.models import models

MOST_RATIO = 10.0
"""Of a busy machine; scripts/soak wants 3."""


@pytest.mark.fault(134, 140, 145)
def test_a_flood_over_three_models() -> None:
    """The short form of what scripts/soak runs 10,000 requests of."""
    goals = asyncio.run(models(Scale(0.03)))
    [waits] = [goal for goal in goals if goal.what.startswith("the longest")]
    missed = [goal for goal in goals if not goal.passed and goal is not waits]
    assert not missed, missed
    assert float(waits.figure.split()[0]) <= MOST_RATIO


class TestFirstComeFirstServed:
    """What the soak measures waits by: two models at once, two workers each, 5 s a load, 1 s an image."""

    pool = Pool(models=2, workers=2, load_s=5.0, image_s=1.0)

    def asked(self, model: str, images: int = 1, at: float = 0.0, took: float = 1.0) -> Served:
        return Served(model, images, at, at + took - images, at + took, {"a": 0.0, "b": 0.0})

    def due_s(self, one: Served, *ahead: Served) -> float:
        return first_come_s(one, ahead, self.pool)

    def test_who_is_free_takes_the_next(self) -> None:
        later = self.asked("a", took=9)
        assert self.due_s(later) == 1
        assert self.due_s(later, self.asked("a", took=9)) == 1
        assert self.due_s(later, self.asked("a", took=9), self.asked("a", took=9)) == 2
        assert self.due_s(later, *[self.asked("b", took=9)] * 4) == 2, "begun no earlier than those before"
        assert self.due_s(self.asked("a", images=3, took=9)) == 2

    def test_what_has_begun_is_half_done(self) -> None:
        running = self.asked("a", at=-0.5)
        assert self.due_s(self.asked("a"), running, running) == 1.5

    def test_a_model_that_is_not_there_takes_the_place_of_the_one_that_is_done_first(self) -> None:
        other, third = self.asked("a", took=20), self.asked("c", took=20)
        assert self.due_s(third) == 6
        assert self.due_s(third, other) == 6, "b gives way"
        assert self.due_s(third, other, self.asked("b", took=20)) == 7
        assert self.due_s(other, third) == 6 + 5, "a gave way, and b, which was done by then, gives way to it"

    def test_one_that_others_overtook_is_found(self) -> None:
        starved = self.asked("a", took=40)
        others = [self.asked("a", at=float(second), took=1.0) for second in range(1, 40)]
        assert max(ratios([starved, *others], self.pool, [])) == 40
        assert max(ratios([starved, *others], self.pool, [20.0])) == pytest.approx(40 / 7)
