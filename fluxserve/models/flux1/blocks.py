"""The blocks of a FLUX.1 transformer, each with the modulation of its own. Shape letters: see `models/family.py`.

Follows black-forest-labs/flux `src/flux/modules/layers.py`; adaLN modulation after DiT (arXiv 2212.09748).
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.parts.modulation import Modulation
from fluxserve.models.parts.streams import OneStream, TwoStreams


class GELU(nn.Module):
    """In its tanh form; in place but for training."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.gelu(x, approximate="tanh")
        return cast(Tensor, torch.ops.aten.gelu_(x, approximate="tanh"))


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), GELU(), nn.Linear(hidden, dim))


class DoubleStreamBlock(TwoStreams):
    MODULATION_ROWS = 12

    def __init__(self, hidden_size: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__(hidden_size, num_heads, partial(feed_forward, hidden_size, mlp_hidden))
        self.img_mod = Modulation(hidden_size, 6)
        self.txt_mod = Modulation(hidden_size, 6)

    def modulation(self, vec: Tensor) -> Tensor:
        """vec: (B, hidden). Returns (B, 12 * hidden): the image's six rows, then the text's."""
        return torch.cat([self.img_mod(vec), self.txt_mod(vec)], dim=-1)

    def forward(self, img: Tensor, txt: Tensor, modulation: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """img: (B, I, hidden), txt: (B, T, hidden), modulation: (B, 12 * hidden). Returns both streams."""
        rows = modulation.unflatten(-1, (self.MODULATION_ROWS, 1, -1)).unbind(1)  # 12 x (B, 1, hidden)
        return self.joint(img, txt, rows[:6], rows[6:], rope)


class SingleStreamBlock(OneStream):
    MODULATION_ROWS = 3

    def __init__(self, hidden_size: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__(hidden_size, num_heads, mlp_hidden, mlp_hidden, GELU())
        self.modulation = Modulation(hidden_size, self.MODULATION_ROWS)

    def forward(self, x: Tensor, modulation: Tensor, rope: Tensor) -> Tensor:
        """x: (B, L, hidden), modulation: (B, 3 * hidden). Returns (B, L, hidden)."""
        rows = modulation.unflatten(-1, (self.MODULATION_ROWS, 1, -1)).unbind(1)  # 3 x (B, 1, hidden)
        return self.joint(x, rows, rope)
