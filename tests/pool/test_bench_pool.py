"""Two workers draw nearly twice as much as one: the short form of scripts/bench_pool."""

from __future__ import annotations

import pytest

from scripts.bench_pool import SLEEPING, gain, pair, short_beside_long
from tests.server.running import FAKE_WORKER


@pytest.mark.behaviour(114)
def test_two_workers_give_nearly_twice_as_much_and_short_requests_wait_no_longer() -> None:
    with pair(FAKE_WORKER) as servers:
        assert gain(servers, {**SLEEPING, "prompt": "a [slow:step:0.05]"}, rounds=3, seconds=2) >= 1.6
        assert short_beside_long(servers, rounds=2, seconds=3) <= 1.3
