"""adaLN modulation (DiT, arXiv 2212.09748): who holds its weights, and the layer that ends a transformer.

Follows black-forest-labs/flux `src/flux/modules/layers.py`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.parts.norms import modulated_norm


class Modulation(nn.Module):
    """The only holder of adaLN weights; evaluated for all steps of a request before the first."""

    def __init__(self, dim: int, rows: int, bias: bool = True) -> None:
        super().__init__()
        self.lin = nn.Linear(dim, rows * dim, bias=bias)

    def forward(self, vec: Tensor) -> Tensor:
        """vec: (B, hidden). Returns (B, rows * hidden)."""
        return self.lin(F.silu(vec))


class LastLayer(nn.Module):
    MODULATION_ROWS = 2

    def __init__(self, hidden_size: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels, bias=bias)
        rows = nn.Linear(hidden_size, self.MODULATION_ROWS * hidden_size, bias=bias)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), rows)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x: (B, I, hidden), modulation: (B, 2 * hidden). Returns (B, I, out_channels)."""
        shift, scale = modulation.unflatten(-1, (self.MODULATION_ROWS, 1, -1)).unbind(1)
        return self.linear(modulated_norm(x, shift, scale))
