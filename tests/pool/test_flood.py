"""Three models where two fit, two workers each, killed, evicted and idle: every request has its one right answer."""

from __future__ import annotations

import asyncio

import pytest

from scripts.endurance.goals import Scale
from scripts.endurance.models import models


@pytest.mark.fault(140, 145)
def test_a_flood_over_three_models() -> None:
    """The short form of what scripts/soak runs 10,000 requests of."""
    missed = [goal for goal in asyncio.run(models(Scale(0.05))) if not goal.passed]
    assert not missed, missed
