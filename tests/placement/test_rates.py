"""The arithmetic of a step against the published counts, and the measured rates against a real step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fluxserve.models.flux1.family import Flux1Architecture
from fluxserve.models.flux1.sizes import FULL
from fluxserve.models.flux2.family import Flux2Architecture
from fluxserve.models.flux2.sizes import FULL as KLEIN
from fluxserve.placement.plan import GIB, resident_plan, streaming_plan
from fluxserve.placement.rates import (
    Rates,
    attention_flops,
    linear_flops,
    measure_rates,
    packed_sample,
    step_seconds,
)
from fluxserve.placement.weight_format import WeightFormat
from tests.conftest import MakeCheckpoint
from tests.placement.test_plan import WORK, full_size
from tests.weights.stored_files import open_quietly

FLUX1 = Flux1Architecture(FULL).arithmetic


@pytest.mark.parametrize(
    ("side", "text_tokens", "linear", "attention"),
    [(1024, 256, 56.20, 13.27), (1024, 512, 59.51, 14.87), (512, 256, 16.54, 1.15), (2048, 512, 218.2, 200.0)],
)
def test_operations_of_a_step_are_those_counted_on_the_meta_device(
    side: int, text_tokens: int, linear: float, attention: float
) -> None:
    """TFLOP by torch's counter; the blocks alone are within 3 % of the whole transformer."""
    work = replace(WORK, width=side, height=side, text_tokens=text_tokens)
    assert linear_flops(FLUX1, work) / 1e12 == pytest.approx(linear, rel=0.03)
    assert attention_flops(FLUX1, work) / 1e12 == pytest.approx(attention, rel=0.03)


def test_rates_are_those_of_a_machine() -> None:
    rates = measure_rates(FLUX1, torch.device("cpu"), torch.float32)
    assert 1e9 < rates.linear < 1e16
    assert 1e8 < rates.attention < 1e16
    assert 1e8 < rates.copy < 1e13
    assert 1e7 < rates.elementwise < 1e14


def test_what_is_not_a_product_takes_its_time_too() -> None:
    """With rates of an H100's order, the steps that one took (docs/gpu): [schnell] 0.165 s, [klein] 0.080 s."""
    h100 = Rates(linear=7e14, attention=6e14, copy=55e9, elementwise=7e11)
    klein = Flux2Architecture(KLEIN).arithmetic
    for costs, text_tokens, measured in ((FLUX1, 256, 0.165), (klein, 512, 0.080)):
        work = replace(WORK, width=1024, height=1024, text_tokens=text_tokens)
        plan = replace(resident_plan(full_size(), WORK, 40 * GIB, "cuda"), work=work, streamed_bytes=0)
        assert step_seconds(costs, plan, h100) == pytest.approx(measured, rel=0.3)
        assert step_seconds(costs, plan, replace(h100, elementwise=math.inf)) < 0.8 * measured


def test_a_cpu_copies_with_the_cores_that_compute_and_a_gpu_beside_them() -> None:
    resident, streamed = (make(full_size(), WORK, 40 * GIB, "cpu") for make in (resident_plan, streaming_plan))
    cpu, gpu = (Rates(linear=4e11, attention=2e11, copy=8e9, copies_hide=hide) for hide in (False, True))
    compute, copying = step_seconds(FLUX1, resident, gpu), streamed.streamed_bytes / 8e9
    assert compute > copying
    assert step_seconds(FLUX1, streamed, gpu) == compute
    assert step_seconds(FLUX1, streamed, cpu) == pytest.approx(compute + copying)


def test_unpacking_counts_every_value_once_a_step() -> None:
    assert FLUX1.matrix_values == pytest.approx(sum(full_size(1).blocks), rel=0.001)  # but for biases and norms
    plan = resident_plan(full_size(), WORK, 40 * GIB, "cpu")
    plain, packed = (Rates(linear=4e11, attention=2e11, copy=8e9, unpack=rate) for rate in (math.inf, 1e9))
    more = step_seconds(FLUX1, plan, packed) - step_seconds(FLUX1, plan, plain)
    assert more == pytest.approx(FLUX1.matrix_values / 1e9)


def test_packed_weights_are_timed_as_the_blocks_will_have_them(tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint, cpu = open_quietly(tiny_checkpoint()), torch.device("cpu")
    reader, layout = checkpoint.readers["transformer"], checkpoint.denoiser.layout
    assert layout is not None
    resident, streamed = (make(full_size(), WORK, 40 * GIB, "cpu") for make in (resident_plan, streaming_plan))
    plain, packed = WeightFormat(torch.float32), WeightFormat(torch.float32, "int8")
    assert packed_sample(reader, layout, resident, plain, cpu) is None
    assert packed_sample(reader, layout, streamed, packed, cpu) is None  # a CPU streams the file as it is
    sample = packed_sample(reader, layout, resident, packed, cpu)
    assert sample is not None
    assert 1e4 < measure_rates(checkpoint.architecture.arithmetic, cpu, torch.float32, sample).unpack < 1e13
