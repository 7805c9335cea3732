"""A compiled block computes what an eager one does."""

from __future__ import annotations

import pytest
import torch

from fluxserve.models.parts.attention import apply_rotary, rotary_table


@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own deprecations
def test_compiled_rotation_equals_the_complex_product() -> None:
    rope = rotary_table(torch.randint(0, 60, (12, 3)).float(), (4, 6, 6), 10_000)
    x = torch.randn(2, 3, 12, 16)
    compiled = torch.compile(apply_rotary, backend="eager")
    assert torch.allclose(compiled(x, rope), apply_rotary(x, rope), atol=1e-6)
