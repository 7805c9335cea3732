"""Plans for Z-Image at full size, in bytes of shapes alone; and that what a plan streams is what is copied."""

from __future__ import annotations

import pytest
import torch

from fluxserve.completion import complete_request
from fluxserve.errors import DeviceError
from fluxserve.models.zimage.family import ZIMAGE_FAMILY, ZImageArchitecture
from fluxserve.models.zimage.sizes import FULL
from fluxserve.models.zimage.variants import VARIANTS
from fluxserve.pipeline.networks import Blueprint, work_of
from fluxserve.placement.copiers import ThreadCopier
from fluxserve.placement.plan import GIB, make_plan
from fluxserve.placement.stream import BlockSource
from fluxserve.weights.checkpoint import Checkpoint
from tests.conftest import MakeCheckpoint
from tests.models.loading import load
from tests.weights.stored_files import HalfReader

BLOCK = 2 * (4 * 3840**2 + 3 * 3840 * 10240)
"""Bytes of a block's matrices."""


@pytest.fixture(scope="module")
def full() -> Blueprint:
    architecture = ZImageArchitecture(FULL)
    readers = {part: HalfReader(dict(shapes)) for part, shapes in architecture.shapes().items()}
    checkpoint = Checkpoint("zimage-turbo", ZIMAGE_FAMILY, VARIANTS["zimage-turbo"], architecture, readers, {})
    return Blueprint(checkpoint, torch.device("cpu"), torch.bfloat16, "fixed", quant=None, compile=False)


@pytest.mark.parametrize("budget", [3, 4, 6, 8, 12, 16, 24])
def test_it_fits_small_cards(full: Blueprint, budget: int) -> None:
    sizes, work = full.sizes(), work_of(full.checkpoint, torch.bfloat16)
    plan = make_plan(sizes, work, budget * GIB, "cuda")
    assert plan.peak_bytes <= budget * GIB
    assert len(plan.resident) + len(plan.streamed) == 34
    assert plan.streamed_bytes == sum(sizes.blocks[i] for i in plan.streamed)
    assert (plan.text_encoder == "resident") == (budget == 24)
    assert (not plan.streamed) == (budget >= 16)


def test_what_is_read(full: Blueprint) -> None:
    """20.3 GB of the 20.5 GB of files: of the text encoder, neither the last layer nor the head."""
    sizes = full.sizes()
    assert sizes.total == pytest.approx(20.32e9, rel=0.005)
    assert sum(sizes.encoder_blocks) == 35 * 2 * 100_930_816
    assert len(sizes.blocks) == 34
    assert all(BLOCK < block < 1.001 * BLOCK for block in sizes.blocks)
    modulation = 2 * (32 * (256 + 1) * 4 * 3840 + (256 + 1) * 3840)
    assert sizes.host == pytest.approx(modulation + 2 * 151936 * 2560, rel=0.01)


def test_the_smallest_budget_is_said(full: Blueprint) -> None:
    with pytest.raises(DeviceError, match=r"the smallest that can work is .*2\.\d\d GiB"):
        make_plan(full.sizes(), work_of(full.checkpoint, torch.bfloat16), 2 * GIB, "cuda")


class CountingCopier(ThreadCopier):
    counted = 0

    def copy(self, source: BlockSource, slot: int, buffer: torch.Tensor) -> None:
        CountingCopier.counted += source.layout.nbytes
        super().copy(source, slot, buffer)


@pytest.mark.parametrize("guided", [False, True])
def test_a_step_copies_what_the_plan_says(
    tiny_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, guided: bool
) -> None:
    """Once a pass over the weights; prompts of unequal length take two."""
    monkeypatch.setattr("fluxserve.placement.place.ThreadCopier", CountingCopier)
    pipeline = load(tiny_checkpoint("zimage"), offload="stream")
    assert len(pipeline.plan.streamed) == 3 + 2 * 2
    request = complete_request(
        pipeline.card, "a cat", width=64, height=64, num_inference_steps=6, true_cfg_scale=4.0 if guided else 1.0
    )
    (sample,) = pipeline.begin(request)
    pipeline.step([sample])
    before = CountingCopier.counted
    for _ in range(4):
        pipeline.step([sample])
    passes = 4 * (2 if guided else 1)
    assert CountingCopier.counted - before == passes * pipeline.plan.streamed_bytes
