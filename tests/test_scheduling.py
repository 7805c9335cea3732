"""Costs and order: what has been measured is believed, the rest is scaled, and nothing starves."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from fluxserve.request import GenerationRequest, Reference
from fluxserve.scheduling import CostModel, RemainingWork, drawn_pixels, rank
from tests.fake_pipeline import CARD

AREA = 1024 * 1024


def measured_costs() -> CostModel:
    costs = CostModel()
    costs.observe("text", AREA, 0.5)
    costs.observe("denoise", AREA, 2.0)
    costs.observe("vae", AREA, 1.0)
    return costs


def test_what_was_measured_is_believed() -> None:
    costs = measured_costs()
    assert costs.calibrated
    assert costs.measured("denoise", AREA)
    assert costs.seconds("denoise", AREA) == pytest.approx(2.0)
    assert costs.remaining_s(RemainingWork(AREA, False, (4, 4))) == pytest.approx(0.5 + 8 * 2.0 + 2 * 1.0)
    assert costs.remaining_s(RemainingWork(AREA, True, (0,))) == pytest.approx(1.0)


def test_another_size_is_scaled_from_the_nearest() -> None:
    costs = measured_costs()
    costs.observe("denoise", AREA // 16, 0.5)
    assert not costs.measured("denoise", 4 * AREA)
    assert 7 < costs.seconds("denoise", 4 * AREA) < 8
    assert costs.seconds("denoise", AREA // 16) == pytest.approx(0.5)
    assert costs.seconds("vae", AREA // 4) == pytest.approx(0.25)
    assert costs.seconds("text", AREA // 4) == pytest.approx(0.5)


def test_the_average_follows_a_machine_that_slows_down() -> None:
    costs = measured_costs()
    for _ in range(50):
        costs.observe("denoise", AREA, 4.0)
    assert 3.8 < costs.seconds("denoise", AREA) <= 4.0


def test_before_anything_is_measured_more_work_still_takes_longer() -> None:
    costs = CostModel()
    assert not costs.calibrated
    short, long = RemainingWork(AREA, False, (4,)), RemainingWork(AREA, False, (28,))
    assert costs.remaining_s(short) < costs.remaining_s(long)


def test_after_ten_times_its_remaining_time_a_job_outranks_every_newcomer() -> None:
    assert rank(30.0, 301.0, 0.1) < rank(0.001, 0.0, 0.1)
    assert rank(30.0, 200.0, 0.1) > rank(0.001, 0.0, 0.1)


def simulate(ageing: float, jobs: list[tuple[float, float]]) -> list[float]:
    """One server, pre-emption every 0.1 s. jobs: (arrival, work) in seconds. Returns each job's latency."""
    left = {number: work for number, (_, work) in enumerate(jobs)}
    served = dict.fromkeys(left, 0.0)
    latencies = {}
    now = 0.0
    while left:
        here = [number for number in left if jobs[number][0] <= now]
        if not here:
            now = min(jobs[number][0] for number in left)
            continue
        first = min(here, key=lambda job: rank(left[job], now - jobs[job][0] - served[job], ageing))
        spent = min(0.1, left[first])
        now, left[first], served[first] = now + spent, left[first] - spent, served[first] + spent
        if left[first] <= 1e-9:
            del left[first]
            latencies[first] = now - jobs[first][0]
    return [latencies[number] for number in range(len(jobs))]


def test_short_jobs_do_not_queue_behind_long_ones_and_the_long_ones_end() -> None:
    rng = random.Random(3)
    arrivals = [rng.uniform(0, 300) for _ in range(300)]
    jobs = sorted((at, rng.choice([0.3] * 8 + [1.0] * 4 + [8.0])) for at in arrivals)
    in_order, shortest, aged = (simulate(ageing, jobs) for ageing in (1e9, 0.0, 0.1))

    def mean(latencies: list[float]) -> float:
        return sum(latencies) / len(latencies)

    assert mean(aged) < 0.6 * mean(in_order)
    assert max(aged) <= max(shortest) + 1e-6


def test_a_long_job_is_served_under_an_endless_flood_of_short_ones() -> None:
    flood = [(0.45 * i, 0.5) for i in range(600)]
    latencies = simulate(0.1, [(0.0, 5.0), *flood])
    assert latencies[0] < 10 * 5.0 + 10
    assert simulate(0.0, [(0.0, 5.0), *flood])[0] > 200


def test_what_an_image_is_drawn_by_counts_in_every_step() -> None:
    plain = GenerationRequest("a cat", 64, 96, (7, 8), 4, None, 256)
    read = replace(plain, references=(Reference(b"", 128, 64), Reference(b"", 64, 64)))
    pixels, beside = 64 * 96, 128 * 64 + 64 * 64
    assert (plain.work, read.work) == (2 * 4 * pixels, 2 * 4 * (pixels + beside))
    assert (drawn_pixels(plain, CARD), drawn_pixels(read, CARD)) == (pixels, pixels + beside)
    guided = replace(read, true_cfg_scale=4.0)
    assert (guided.work, drawn_pixels(guided, CARD)) == (2 * read.work, 2 * (pixels + beside))


def test_what_an_earlier_process_measured_is_believed_until_it_is_measured_here() -> None:
    costs = CostModel()
    costs.recall(measured_costs().rates)
    assert costs.calibrated
    assert costs.seconds("denoise", AREA) == pytest.approx(2.0)
    assert not costs.measured("denoise", AREA), "a watchdog waits by what this process has seen"
    costs.observe("denoise", AREA, 4.0)
    assert costs.measured("denoise", AREA)
    assert costs.seconds("denoise", AREA) == pytest.approx(4.0)
