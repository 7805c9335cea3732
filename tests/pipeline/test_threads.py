"""Threads are as few as are no slower; large models keep all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fluxserve import FluxPipeline
from fluxserve.pipeline import threads
from fluxserve.pipeline.threads import fewest_threads, settle_threads


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("seconds", "fewest"),
    [
        ({1: 1.0, 2: 0.5, 4: 0.25, 6: 0.2}, 6),
        ({1: 1.0, 2: 0.5, 4: 0.5, 6: 0.48}, 2),
        ({1: 1.0, 2: 1.4, 4: 2.0, 6: 9.0}, 1),
        ({1: 1.05, 2: 1.0, 4: 1.0, 6: 1.0}, 1),
    ],
)
def test_the_fewest_that_are_no_slower(seconds: dict[int, float], fewest: int) -> None:
    torch.set_num_threads(6)
    assert fewest_threads(lambda: seconds[torch.get_num_threads()], 6) == fewest
    assert torch.get_num_threads() == 6


@pytest.mark.fault(116)
def test_a_small_model_is_measured_and_a_large_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    pipeline = FluxPipeline.from_pretrained("demo")
    monkeypatch.setattr(threads, "fewest_threads", lambda time, most: 1)

    def settled(quick_s: float) -> int:
        torch.set_num_threads(3)
        monkeypatch.setattr(threads, "QUICK_S", quick_s)
        settle_threads(pipeline)
        return torch.get_num_threads()

    assert settled(quick_s=60.0) == 1
    assert settled(quick_s=0.0) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert settled(quick_s=60.0) == 3, "as the operator says"
