"""Every attack that is known, at once, for a short while; `scripts/soak adversary` is the long one."""

from __future__ import annotations

import asyncio

import pytest

from scripts.endurance.adversary import DRAIN_S, watched
from scripts.endurance.attacks import ATTACKS
from scripts.endurance.goals import percentile

SECONDS = 15.0
SLACK = 5.0
"""What a busy machine may take longer than the long run allows."""


@pytest.mark.fault(119)
def test_an_honest_client_is_served_beside_an_adversary() -> None:
    quiet, attacked = asyncio.run(watched(SECONDS))
    assert attacked.refused == []
    assert len(attacked.seconds) > 10
    assert percentile(attacked.seconds, 90) < SLACK + 3 * percentile(quiet.seconds, 99)
    assert percentile(attacked.livez, 90) < SLACK / 5
    assert attacked.memory < 500
    assert attacked.deaths == 0
    assert attacked.exit_s < DRAIN_S + 2 + SLACK
    assert len(attacked.done) > len(ATTACKS) / 2
