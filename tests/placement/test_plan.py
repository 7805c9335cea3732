"""Plans for the published sizes, in integers: what fits, what streams, and that no budget is overstepped."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from fluxserve.errors import DeviceError
from fluxserve.models.companions.flux1_autoencoder import FLUX1_AE, autoencoder_shapes
from fluxserve.models.flux1.family import is_modulation
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.sizes import CLIP_L, FLUX1, T5_XXL
from fluxserve.models.flux1.text.names import clip_shapes, t5_shapes
from fluxserve.placement.plan import GIB, ModelBytes, Work, make_plan, resident_plan, spread

BUDGETS_GIB = (3, 4, 6, 8, 12, 16, 24, 40)


def count(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> int:
    return sum(torch.Size(shape).numel() for key, shape in shapes.items() if key.startswith(prefix))


@cache
def full_size(itemsize: int = 2) -> ModelBytes:
    """FLUX.1 [schnell] as published, counted from the shapes of the modules."""
    flux, t5 = transformer_shapes(FLUX1), t5_shapes(T5_XXL)
    steady = {key: shape for key, shape in flux.items() if not is_modulation(key)}
    blocks = [count(steady, f"double_blocks.{i}.") for i in range(19)]
    blocks += [count(steady, f"single_blocks.{i}.") for i in range(38)]
    others = (count(clip_shapes(CLIP_L)), count(autoencoder_shapes(FLUX1_AE)), count(t5, "encoder.final_layer_norm."))
    return ModelBytes(
        blocks=tuple(itemsize * block for block in blocks),
        small=itemsize * (count(steady) - sum(blocks)),
        encoder_blocks=tuple(itemsize * count(t5, f"encoder.block.{i}.") for i in range(24)),
        whole=itemsize * sum(others),
        host=itemsize * (count(flux) - count(steady) + count(t5, "shared.")),
    )


WORK = Work(
    1024,
    1024,
    batch=1,
    text_tokens=256,
    hidden=3072,
    mlp_hidden=12288,
    token_area=256,
    decoder_channels=256,
    itemsize=2,
)


def test_the_blocks_without_modulation_are_what_is_published() -> None:
    model = full_size()
    assert sum(model.blocks) == 2 * 8_608_715_776
    assert model.total > 33_000_000_000


@pytest.mark.parametrize("budget", BUDGETS_GIB)
def test_no_plan_oversteps_its_budget(budget: int) -> None:
    plan = make_plan(full_size(), WORK, budget * GIB, "cuda")
    assert plan.peak_bytes <= budget * GIB
    assert sorted((*plan.resident, *plan.streamed)) == list(range(57))
    assert plan.streamed_bytes == sum(full_size().blocks[i] for i in plan.streamed)


def test_a_larger_budget_never_streams_more() -> None:
    model = full_size()
    streamed = [make_plan(model, WORK, budget * GIB, "cuda").streamed_bytes for budget in BUDGETS_GIB]
    assert streamed == sorted(streamed, reverse=True)
    assert len(set(streamed)) >= 6
    assert streamed[-1] == 0


def test_everything_resident_takes_no_slots_and_streams_nothing() -> None:
    plan = make_plan(full_size(), WORK, 40 * GIB, "cuda")
    assert (plan.streamed, plan.slot_bytes, plan.text_encoder, plan.tiled) == ((), 0, "resident", False)
    assert plan == resident_plan(full_size(), WORK, 40 * GIB, "cuda")


def test_text_streams_before_the_transformer_does() -> None:
    """T5 runs once a prompt, the blocks every step."""
    plan = make_plan(full_size(), WORK, 24 * GIB, "cuda")
    assert (plan.text_encoder, plan.streamed) == ("streamed", ())


def test_a_budget_that_cannot_work_names_the_smallest() -> None:
    with pytest.raises(DeviceError, match="the smallest that can work is"):
        make_plan(full_size(), WORK, 2 * GIB, "cuda")


def test_larger_pictures_leave_less_to_the_weights() -> None:
    small = make_plan(full_size(), WORK, 12 * GIB, "cuda")
    large = make_plan(full_size(), replace(WORK, width=2048, height=2048), 12 * GIB, "cuda")
    assert len(large.resident) < len(small.resident)
    assert large.peak_bytes <= 12 * GIB


@pytest.mark.behaviour(11)
@pytest.mark.parametrize("budget", BUDGETS_GIB)
def test_the_largest_picture_is_the_largest_whose_step_fits(budget: int) -> None:
    plan = make_plan(full_size(), WORK, budget * GIB, "cuda")
    largest = replace(WORK, width=16, height=plan.max_pixels // 16)
    assert largest.step_bytes <= plan.room_bytes < replace(largest, height=largest.height + 16).step_bytes
    assert plan.samples_together(largest.width, largest.height) == 1


@pytest.mark.parametrize("budget", BUDGETS_GIB)
def test_no_batch_oversteps_the_budget(budget: int) -> None:
    plan = make_plan(full_size(), WORK, budget * GIB, "cuda")
    together = plan.samples_together(1024, 1024)
    assert replace(WORK, batch=together).step_bytes <= plan.room_bytes < replace(WORK, batch=together + 1).step_bytes


@pytest.mark.parametrize("chosen", range(0, 58, 5))
def test_resident_blocks_lie_evenly_and_leave_an_even_number(chosen: int) -> None:
    resident = spread(57, chosen)
    assert len(set(resident)) == len(resident) <= chosen
    assert not resident or (57 - len(resident)) % 2 == 0
    gaps = [b - a for a, b in pairwise(resident)]
    assert not gaps or max(gaps) - min(gaps) <= 1
