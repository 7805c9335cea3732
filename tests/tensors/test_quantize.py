"""Matrices of one byte a value come out as torch would convert them."""

from __future__ import annotations

import pytest
import torch

from fluxserve.tensors.quantize import pack_values

NUMBERS = torch.tensor([code for code in range(256) if code not in (0x7F, 0xFF)], dtype=torch.uint8).expand(3, -1)
"""All e4m3 numbers, without the two codes that are none."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8])
@pytest.mark.parametrize("scale", [None, torch.tensor([0.5, 3.0, 1e-4])])
def test_every_number_is_exact(dtype: torch.dtype, stored: torch.dtype, scale: torch.Tensor | None) -> None:
    values = NUMBERS.contiguous().view(stored)
    wide = values.float() if scale is None else values.float() * scale[:, None]
    assert torch.equal(pack_values(values, scale).unpack(dtype), wide.to(dtype))
