"""Plans for FLUX.2 [klein] at full size, in bytes of shapes alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fluxserve.errors import DeviceError
from fluxserve.models.flux2.family import FLUX2_FAMILY, Flux2Architecture
from fluxserve.models.flux2.sizes import FULL, FULL_9B, Flux2Sizes
from fluxserve.models.flux2.variants import VARIANTS
from fluxserve.pipeline.cards import readable
from fluxserve.pipeline.networks import Blueprint, work_of
from fluxserve.placement.plan import GIB, make_plan
from fluxserve.weights.checkpoint import Checkpoint
from tests.weights.stored_files import HalfReader


def blueprint(sizes: Flux2Sizes) -> Blueprint:
    architecture = Flux2Architecture(sizes)
    readers = {part: HalfReader(dict(shapes)) for part, shapes in architecture.shapes().items()}
    checkpoint = Checkpoint("klein", FLUX2_FAMILY, VARIANTS["klein"], architecture, readers, {})
    return Blueprint(checkpoint, torch.device("cpu"), torch.bfloat16, "fixed", quant=None, compile=False)


@pytest.mark.parametrize("budget", [3, 4, 6, 8, 12, 16])
def test_klein_4b_fits_small_cards(budget: int) -> None:
    drawn = blueprint(FULL)
    sizes, work = drawn.sizes(), work_of(drawn.checkpoint, torch.bfloat16)
    plan = make_plan(sizes, work, budget * GIB, "cuda")
    assert plan.peak_bytes <= budget * GIB
    assert plan.streamed_bytes == sum(sizes.blocks[i] for i in plan.streamed)
    assert (plan.text_encoder == "resident") == (budget == 16)
    assert not plan.streamed or budget < 12


def test_a_picture_to_draw_by_is_planned_where_there_is_room() -> None:
    """At 3 GiB smaller ones are drawn by: what fits beside the picture drawn, in pixels of both."""
    drawn = blueprint(FULL)
    sizes, work = drawn.sizes(), work_of(drawn.checkpoint, torch.bfloat16)
    assert (work.tokens, replace(work, reference_tokens=0).tokens) == (512 + 8192, 512 + 4096)
    plans = {budget: make_plan(sizes, work, budget * GIB, "cuda") for budget in (3, 4, 6, 8)}
    assert [plans[budget].work.reference_tokens for budget in plans] == [0, 4096, 4096, 4096]
    assert all(plans[budget].max_pixels >= 2 * 1024**2 for budget in (4, 6, 8))
    assert 1024**2 <= plans[3].max_pixels < 2 * 1024**2
    for plan in plans.values():
        assert plan.peak_bytes >= plan.budget_bytes - plan.room_bytes + plan.work.step_bytes
        assert plan.samples_together(512, 512, reference_tokens=1024) >= 1
        assert plan.samples_together(256, 256, 4096) <= plan.samples_together(256, 256)
    read = {budget: readable(VARIANTS["klein"].references, plan) for budget, plan in plans.items()}
    assert [rule.area for rule in read.values() if rule] == [plans[3].max_pixels // 2, *[1024**2] * 3]


def test_what_is_read_of_a_klein_4b() -> None:
    """14.1 GB of the 16.0 GB of files: the text encoder's last nine layers and its head are not."""
    sizes = blueprint(FULL).sizes()
    assert sizes.total == pytest.approx(14.15e9, rel=0.01)
    assert sum(sizes.encoder_blocks) == 27 * 2 * 100_930_816


def test_the_smallest_budget_is_said() -> None:
    drawn = blueprint(FULL_9B)
    with pytest.raises(DeviceError, match=r"the smallest that can work is .*3\.7"):
        make_plan(drawn.sizes(), work_of(drawn.checkpoint, torch.bfloat16), 3 * GIB, "cuda")
