"""What the training computes in: bfloat16 where the hardware does, else float32, which is then many times faster."""

from __future__ import annotations

from functools import cache

import torch

from fluxserve.placement.device import choose_dtype


@cache
def working_dtype(device: torch.device) -> torch.dtype:
    """Not float16, whose gradients vanish without a scale."""
    chosen = choose_dtype("auto", device).dtype
    return torch.bfloat16 if chosen == torch.bfloat16 else torch.float32


def mixed(device: torch.device, cached: bool = True) -> torch.autocast:
    """Under it matrix products run in the working dtype. cached: whether weights are converted once for all."""
    dtype = working_dtype(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32, cache_enabled=cached)
