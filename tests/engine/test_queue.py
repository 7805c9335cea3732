"""Who is next: clients share by work, within one client the rank decides, what comes back goes first."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxserve.config import EngineConfig
from fluxserve.engine.admission import Admission
from fluxserve.engine.job import Job, Part
from fluxserve.engine.queue import JobQueue
from fluxserve.errors import QueueFull, WaitExceedsTimeout
from fluxserve.scheduling import CostModel, Stage
from tests.jobs import request

AREA = 64 * 64
STAGES: tuple[Stage, ...] = ("text", "denoise", "vae", "encode", "preview")


def make(id: int, client: str = "a", steps: int = 4) -> Part:
    """The only part of a job."""
    job = Job(id, request(steps=steps), client=client, pixels=AREA, digest=None, on_end=lambda job: None)
    return Part(job, (0,))


def queue_of(*parts: Part) -> JobQueue:
    """Ranked by steps alone, and counted by work."""
    queue = JobQueue(lambda part: float(part.job.request.num_inference_steps), lambda part: float(part.work))
    for part in parts:
        queue.add(part)
    return queue


def drain(queue: JobQueue) -> list[int]:
    order = []
    while (part := queue.take()) is not None:
        order.append(part.job.id)
    return order


def test_one_client_is_served_by_rank_and_ties_by_arrival() -> None:
    assert drain(queue_of(make(1, steps=9), make(2, steps=4), make(3, steps=4))) == [2, 3, 1]


def test_a_flood_of_one_client_does_not_hold_up_another() -> None:
    queue = queue_of(*(make(id) for id in range(1, 11)), make(11, "b"), make(12, "b"))
    order = drain(queue)
    assert set(order[:4]) == {1, 2, 11, 12}
    assert order[4:] == [3, 4, 5, 6, 7, 8, 9, 10]


def test_shares_are_counted_in_work_not_in_jobs() -> None:
    queue = queue_of(*(make(id, "a", steps=8) for id in range(1, 5)), *(make(id, "b", steps=2) for id in range(5, 15)))
    order = drain(queue)
    assert order[0] == 1
    assert order[1:5] == [5, 6, 7, 8]
    assert order[5] == 2 or order[6] == 2


@pytest.mark.fault(110)
def test_pictures_that_are_written_and_shown_count_as_work() -> None:
    costs, plain, shown = CostModel(), make(1), make(2)
    shown.job.request = replace(shown.job.request, partial_images=3)
    for stage in STAGES:
        costs.observe(stage, AREA, 1.0)
    gate = admission(costs)
    assert gate.cost_of(plain) == pytest.approx(1 + 4 + 1 + 1, rel=0.01)
    assert gate.cost_of(shown) == pytest.approx(gate.cost_of(plain) + 3 * (1 + 1), rel=0.01)
    queue = JobQueue(gate.rank_of, gate.cost_of)
    for id in range(1, 9):
        part = make(id, "shows" if id <= 4 else "draws")
        part.job.request = replace(part.job.request, partial_images=3 if id <= 4 else 0)
        queue.add(part)
    assert drain(queue)[:4] == [1, 5, 6, 2]


def test_who_was_idle_has_saved_nothing_up() -> None:
    queue = queue_of(*(make(id) for id in range(1, 9)))
    for _ in range(4):
        queue.take()
    for id in range(11, 15):
        queue.add(make(id, "late"))
    assert set(drain(queue)[:4]) == {5, 6, 11, 12}


def test_who_went_ahead_stays_charged_while_others_wait() -> None:
    queue = queue_of(make(1, "a"), make(2, "b", steps=100), make(3, "b", steps=4))
    assert queue.take() is not None
    queue.add(make(4, "a"))
    assert drain(queue)[0] == 3


def test_many_clients_that_come_once_are_forgotten() -> None:
    queue = queue_of()
    for id in range(1, 1000):
        queue.add(make(id, f"client {id}"))
        if id % 3 == 0:
            drain(queue)
    assert len(queue._served) < 10


def test_what_comes_back_is_kept_apart_in_its_old_order() -> None:
    queue = queue_of(make(5))
    queue.put_back([make(3)])
    queue.put_back([make(1), make(2)])
    assert [part.job.id for part in queue.returned] == [1, 2, 3]
    assert [part.job.id for part in queue] == [1, 2, 3, 5]
    assert len(queue) == 4


def test_a_discarded_job_is_gone_wherever_it_was() -> None:
    waiting, returned, unknown = make(1), make(2), make(3)
    queue = queue_of(waiting)
    queue.put_back([returned])
    for part in (waiting, returned, unknown):
        queue.discard(part.job)
    assert (len(queue), queue.take()) == (0, None)


def test_only_what_would_overtake_is_taken_out_of_turn() -> None:
    queue = queue_of(make(1, steps=9), make(2, "b", steps=4))
    assert queue.take_below(4) is None
    overtaking = queue.take_below(5)
    assert overtaking is not None
    assert overtaking.job.id == 2
    assert drain(queue) == [1]


def admission(costs: CostModel | None = None, **limits: int) -> Admission:
    return Admission(EngineConfig(**limits), costs or CostModel(), [])


def test_the_bound_counts_all_that_wait() -> None:
    queue = queue_of(make(1), make(2, "b"))
    admission(max_queue=3).check(make(3), queue, None, 0.0)
    with pytest.raises(QueueFull, match="2 requests are waiting") as refusal:
        admission(max_queue=2).check(make(3), queue, None, 7.0)
    assert refusal.value.retry_after_s == 7.0


@pytest.mark.fault(28)
def test_one_client_may_fill_the_queue_only_while_it_is_alone() -> None:
    mine = [make(id) for id in range(1, 7)]
    admission(max_queue=8).check(make(8), queue_of(*mine), None, 0.0)
    with pytest.raises(QueueFull, match="of this client"):
        admission(max_queue=8).check(make(8), queue_of(*mine, make(7, "b")), None, 0.0)
    admission(max_queue=8).check(make(8, "b"), queue_of(*mine, make(7, "b")), None, 0.0)


@pytest.mark.fault(111)
def test_a_full_queue_has_a_place_for_who_holds_less_than_an_equal_share() -> None:
    gate, mine = admission(max_queue=8), [make(id) for id in range(1, 9)]
    for other in range(4):
        gate.check(make(9, "b"), queue_of(*mine, *(make(20 + id, "b") for id in range(other))), None, 0.0)
    with pytest.raises(QueueFull):
        gate.check(make(9, "b"), queue_of(*mine, *(make(20 + id, "b") for id in range(4))), None, 0.0)
    with pytest.raises(QueueFull):
        gate.check(make(9), queue_of(*mine), None, 0.0)
    with pytest.raises(QueueFull, match="16 requests"):
        gate.check(make(99, "new"), queue_of(*(make(id, f"client {id}") for id in range(16))), None, 0.0)


def test_the_wait_is_the_work_ahead_and_the_restart() -> None:
    costs = CostModel()
    costs.observe("denoise", AREA, 1.0)
    queue = queue_of(make(1, steps=10), make(2, steps=90))
    gate = admission(costs)
    assert gate.ahead_s(make(3, steps=20), queue) == pytest.approx(10, abs=0.1)
    gate.check(make(3, steps=20), queue, 15, 0.0)
    with pytest.raises(WaitExceedsTimeout, match="about 30 s") as refusal:
        gate.check(make(3, steps=20), queue, 15, 20.0)
    assert refusal.value.retry_after_s == pytest.approx(15, abs=0.1)
    gate.check(make(3, steps=20), queue, None, 20.0)


def test_nothing_is_refused_on_a_guess() -> None:
    admission().check(make(3), queue_of(make(1, steps=100)), 1e-9, 0.0)


@pytest.mark.fault(28)
def test_each_refused_client_is_told_of_a_place_of_its_own() -> None:
    costs = CostModel()
    costs.observe("denoise", AREA, 1.0)
    full, gate = queue_of(*(make(id, steps=2) for id in range(1, 5))), admission(costs, max_queue=4)

    def told_s() -> float:
        with pytest.raises(QueueFull) as refusal:
            gate.check(make(9), full, None, 1.0)
        return refusal.value.retry_after_s or 0.0

    assert [round(told_s()) for _ in range(5)] == [1, 3, 5, 7, 9]
    assert max(told_s() for _ in range(1000)) <= 60, "clients that ignore it push others no further"
