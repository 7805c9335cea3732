"""The arithmetic of a step against the published counts, and the measured rates against a real step."""

from __future__ import annotations

import pytest
import torch

from fluxserve.flux.params import FLUX1
from fluxserve.placement.plan import Work
from fluxserve.placement.rates import attention_flops, linear_flops, measure_rates


@pytest.mark.parametrize(
    ("side", "text_tokens", "linear", "attention"),
    [(1024, 256, 56.20, 13.27), (1024, 512, 59.51, 14.87), (512, 256, 16.54, 1.15), (2048, 512, 218.2, 200.0)],
)
def test_operations_of_a_step_are_those_counted_on_the_meta_device(
    side: int, text_tokens: int, linear: float, attention: float
) -> None:
    """TFLOP by torch's counter; the blocks alone are within 3 % of the whole transformer."""
    work = Work(side, side, 1, text_tokens, FLUX1.hidden_size, FLUX1.mlp_hidden, 256, 2)
    assert linear_flops(FLUX1, work) / 1e12 == pytest.approx(linear, rel=0.03)
    assert attention_flops(FLUX1, work) / 1e12 == pytest.approx(attention, rel=0.03)


def test_rates_are_those_of_a_machine() -> None:
    rates = measure_rates(FLUX1, torch.device("cpu"), torch.float32)
    assert 1e9 < rates.linear < 1e16
    assert 1e8 < rates.attention < 1e16
    assert 1e8 < rates.copy < 1e13
