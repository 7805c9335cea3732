"""Names and shapes of a network's tensors, as the network itself tells them, built on the meta device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fluxserve.tensors.reader import Shapes


def shapes_of(build: Callable[[], nn.Module]) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in build().state_dict().items()}
