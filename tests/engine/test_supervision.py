"""When a worker is given up: the watchdog's limits, the restart policy, quarantined bodies."""

from __future__ import annotations

import time

import pytest

from fluxserve import wire
from fluxserve.config import EngineConfig
from fluxserve.engine import quarantine
from fluxserve.engine.quarantine import Quarantine
from fluxserve.engine.restarts import Death, Fatal, RestartPolicy
from fluxserve.engine.watchdog import Watchdog
from fluxserve.scheduling import CostModel

LIMITS = EngineConfig()
AREA = 1024 * 1024

BARREN = Death(-9, was_ready=True, finished_a_job=False)
FRUITFUL = Death(-9, was_ready=True, finished_a_job=True)
STILLBORN = Death(1, was_ready=False, finished_a_job=False)


def pauses(policy: RestartPolicy, *deaths: Death) -> list[float | int]:
    """The pause after each death, or the exit code of the end."""
    outcomes = [policy.after(death) for death in deaths]
    return [outcome.exit_code if isinstance(outcome, Fatal) else outcome for outcome in outcomes]


def test_a_death_after_a_finished_job_is_followed_by_a_restart_at_once() -> None:
    assert pauses(RestartPolicy(LIMITS), *[FRUITFUL] * 50) == [0] * 50


@pytest.mark.fault(35)
def test_barren_deaths_are_backed_off_and_given_up_at_ten() -> None:
    assert pauses(RestartPolicy(LIMITS), *[BARREN] * 10) == [1, 2, 4, 8, 16, 30, 30, 30, 30, 70]


def test_a_finished_job_resets_the_count() -> None:
    assert pauses(RestartPolicy(LIMITS), *[BARREN] * 9, FRUITFUL, *[BARREN] * 9)[-2:] == [30, 30]


def test_five_starts_in_a_row_that_fail_are_a_crash_loop() -> None:
    assert pauses(RestartPolicy(LIMITS), *[STILLBORN] * 5) == [1, 2, 4, 8, 70]
    assert pauses(RestartPolicy(LIMITS), *[STILLBORN] * 4, BARREN, *[STILLBORN] * 4)[-1] == 30


@pytest.mark.parametrize("exit_code", [65, 69, 78])
def test_a_refusal_is_final(exit_code: int) -> None:
    death = Death(exit_code, was_ready=False, finished_a_job=False, refusal="damaged")
    assert RestartPolicy(LIMITS).after(death) == Fatal(exit_code, "damaged")


def test_a_worker_that_cannot_be_reaped_is_the_end() -> None:
    assert pauses(RestartPolicy(LIMITS), Death(None, was_ready=True, finished_a_job=True)) == [70]


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        (Death(1, True, True), "exit"),
        (Death(-11, True, True), "killed"),
        (Death(71, True, True), "device"),
        (Death(-9, True, True, hung=True), "hung"),
    ],
)
def test_deaths_are_told_apart(death: Death, reason: str) -> None:
    assert death.reason == reason


def allowed_s(message: wire.Message, costs: CostModel | None = None) -> float:
    watchdog = Watchdog(LIMITS, costs or CostModel())
    watchdog.hear(message)
    return watchdog.left_s


def test_the_silence_allowed_follows_what_was_begun() -> None:
    costs = CostModel()
    costs.observe("denoise", AREA, 100.0)
    costs.observe("vae", AREA, 0.1)
    assert allowed_s(wire.Beat("idle", 0)) == pytest.approx(10, abs=1)
    assert allowed_s(wire.Beat("denoise", AREA), costs) == pytest.approx(500, abs=1)
    assert allowed_s(wire.Beat("vae", AREA), costs) == pytest.approx(10, abs=1)
    assert allowed_s(wire.Loading("transformer", 1, 2)) == pytest.approx(600, abs=1)


def test_what_was_never_measured_gets_more_time() -> None:
    costs = CostModel()
    costs.observe("denoise", 64 * 64, 20.0)
    assert allowed_s(wire.Beat("denoise", 64 * 64)) == pytest.approx(300, abs=1)
    assert allowed_s(wire.Beat("denoise", AREA), costs) > 1000


def test_only_the_main_loop_proves_that_it_turns() -> None:
    watchdog = Watchdog(EngineConfig(watchdog_floor_s=0.05), CostModel())
    watchdog.hear(wire.Beat("idle", 0))
    time.sleep(0.06)
    watchdog.hear(wire.Measured("encode", AREA, 0.1))
    assert watchdog.left_s < 0
    watchdog.hear(wire.Beat("idle", 0))
    assert watchdog.left_s > 0


def test_a_body_is_quarantined_for_a_while_and_not_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = Quarantine()
    bodies.add("first")
    assert "first" in bodies
    assert "other" not in bodies
    for number in range(quarantine.CAPACITY):
        bodies.add(f"body {number}")
    assert "first" not in bodies
    assert "body 0" in bodies
    monkeypatch.setattr(quarantine, "FORGET_AFTER_S", -1.0)
    bodies.add("body 0")
    assert "body 0" not in bodies
