"""Plans for FLUX.3 image klein at full size, in bytes of shapes alone; and what a step of streamed blocks copies."""

from __future__ import annotations

import pytest
import torch

from fluxserve.completion import complete_request
from fluxserve.errors import DeviceError
from fluxserve.input_images import read_inputs
from fluxserve.models.flux3.family import FLUX3_FAMILY, Flux3Architecture
from fluxserve.models.flux3.sizes import FULL
from fluxserve.models.flux3.variants import VARIANTS
from fluxserve.pipeline.networks import Blueprint, work_of
from fluxserve.placement.copiers import ThreadCopier
from fluxserve.placement.plan import GIB, make_plan
from fluxserve.placement.stream import BlockSource
from fluxserve.weights.checkpoint import Checkpoint
from tests.conftest import MakeCheckpoint
from tests.models.loading import latents, load
from tests.models.sketches import sketch
from tests.weights.stored_files import HalfReader

BLOCK = 2 * (4 * 3072**2 + 3 * 3072 * 9216 + 2 * 128)
"""Bytes of a block."""


@pytest.fixture(scope="module")
def full() -> Blueprint:
    architecture = Flux3Architecture(FULL)
    readers = {part: HalfReader(dict(shapes)) for part, shapes in architecture.shapes().items()}
    checkpoint = Checkpoint("flux3-klein", FLUX3_FAMILY, VARIANTS["flux3-klein"], architecture, readers, {})
    return Blueprint(checkpoint, torch.device("cpu"), torch.bfloat16, "fixed", quant=None, compile=False)


@pytest.mark.parametrize("budget", [5, 8, 16, 24])
def test_it_fits_cards(full: Blueprint, budget: int) -> None:
    sizes, work = full.sizes(), work_of(full.checkpoint, torch.bfloat16)
    plan = make_plan(sizes, work, budget * GIB, "cuda")
    assert plan.peak_bytes <= budget * GIB
    assert len(plan.resident) + len(plan.streamed) == 3 * 5 + 28
    assert plan.streamed_bytes == sum(sizes.blocks[i] for i in plan.streamed)
    assert (plan.text_encoder == "resident") == (budget == 24)
    assert (not plan.streamed) == (budget >= 16)
    assert plan.work.reference_tokens == 4096


def test_what_is_read(full: Blueprint) -> None:
    """Of the text encoder, neither the last four layers nor the head, nor what sees pictures."""
    sizes = full.sizes()
    assert sum(sizes.encoder_blocks) == 32 * 2 * 100_930_816
    assert all(BLOCK <= block < 1.001 * BLOCK for block in sizes.blocks)
    modulation = 2 * (20 * 3072**2 + 2 * (256 * 3072 + 3072**2))
    assert sizes.host == pytest.approx(modulation + 2 * 151936 * 2560, rel=0.01)
    assert sizes.total == pytest.approx(11_097_363_968 + 168_092_230 + 2 * (32 * 100_930_816 + 388_956_160), rel=0.001)


def test_the_smallest_budget_is_said(full: Blueprint) -> None:
    with pytest.raises(DeviceError, match=r"the smallest that can work is .*\d\.\d\d GiB"):
        make_plan(full.sizes(), work_of(full.checkpoint, torch.bfloat16), 2 * GIB, "cuda")


class CountingCopier(ThreadCopier):
    counted = 0

    def copy(self, source: BlockSource, slot: int, buffer: torch.Tensor) -> None:
        CountingCopier.counted += source.layout.nbytes
        super().copy(source, slot, buffer)


@pytest.mark.parametrize("drawn_by", [False, True])
def test_streamed_blocks_draw_the_same_and_are_copied_once_a_step(
    tiny_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, drawn_by: bool
) -> None:
    """Without references their two blocks do not run; no more is copied than with them."""
    monkeypatch.setattr("fluxserve.placement.place.ThreadCopier", CountingCopier)
    plain, streamed = load(tiny_checkpoint("flux3-klein")), load(tiny_checkpoint("flux3-klein"), offload="stream")
    assert len(streamed.plan.streamed) == 3 * 2 + 3
    inputs = read_inputs(sketch(80, 64)) if drawn_by else None
    request = complete_request(
        streamed.card, "a cat", inputs=inputs, width=96, height=64, num_inference_steps=6, seed=5
    )
    assert torch.equal(latents(streamed, inputs=inputs), latents(plain, inputs=inputs))
    (sample,) = streamed.begin(request)
    streamed.step([sample])
    before = CountingCopier.counted
    for _ in range(4):
        streamed.step([sample])
    copied, whole = CountingCopier.counted - before, 4 * streamed.plan.streamed_bytes
    assert copied == whole if drawn_by else copied <= whole
