"""Threads follow from the model and the machine: few for a small model, all for a large one, the same every time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fluxserve import FluxPipeline
from fluxserve.pipeline import threads
from fluxserve.pipeline.threads import OPERATIONS_A_THREAD, settle_threads, threads_that_pay


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.fault(138)
def test_each_thread_has_enough_to_do() -> None:
    given = [threads_that_pay(times * OPERATIONS_A_THREAD, 6) for times in (0.0, 0.5, 1.9, 2.0, 5.0, 6000.0)]
    assert given == [1, 1, 1, 2, 5, 6]
    assert threads_that_pay(1e15, 1) == 1


@pytest.mark.fault(116, 138)
def test_a_small_model_has_one_and_a_large_one_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pipeline = FluxPipeline.from_pretrained("demo")

    def settled(operations: float) -> int:
        torch.set_num_threads(3)
        monkeypatch.setattr(threads, "OPERATIONS_A_THREAD", operations)
        settle_threads(pipeline)
        return torch.get_num_threads()

    assert {settled(OPERATIONS_A_THREAD) for _ in range(5)} == {1}
    assert settled(1.0) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert settled(OPERATIONS_A_THREAD) == 3, "as the operator says"
