"""The blocks of a FLUX.1 transformer. Shape letters: see `models/family.py`.

Follows black-forest-labs/flux `src/flux/modules/layers.py`; adaLN modulation after DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.parts.attention import SelfAttention, attention, split_heads
from fluxserve.models.parts.modulation import Modulation, add_stream
from fluxserve.models.parts.norms import QKNorm, clamp_half, modulated_norm


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))


class DoubleStreamBlock(nn.Module):
    """Text and image in two streams with own weights and one joint attention."""

    MODULATION_ROWS = 12

    def __init__(self, hidden_size: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.img_mod = Modulation(hidden_size, 6)
        self.img_attn = SelfAttention(hidden_size, num_heads)
        self.img_mlp = feed_forward(hidden_size, mlp_hidden)
        self.txt_mod = Modulation(hidden_size, 6)
        self.txt_attn = SelfAttention(hidden_size, num_heads)
        self.txt_mlp = feed_forward(hidden_size, mlp_hidden)

    def modulation(self, vec: Tensor) -> Tensor:
        """vec: (B, hidden). Returns (B, 12 * hidden): the image's six rows, then the text's."""
        return torch.cat([self.img_mod(vec), self.txt_mod(vec)], dim=-1)

    def forward(self, img: Tensor, txt: Tensor, modulation: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """img: (B, I, hidden), txt: (B, T, hidden), modulation: (B, 12 * hidden). Returns both streams."""
        rows = modulation.unflatten(-1, (self.MODULATION_ROWS, 1, -1)).unbind(1)  # 12 x (B, 1, hidden)
        img_rows, txt_rows = rows[:6], rows[6:]
        txt_q, txt_k, txt_v = self.txt_attn.heads(modulated_norm(txt, txt_rows[0], txt_rows[1]))
        img_q, img_k, img_v = self.img_attn.heads(modulated_norm(img, img_rows[0], img_rows[1]))
        q, k, v = (torch.cat(pair, dim=2) for pair in ((txt_q, img_q), (txt_k, img_k), (txt_v, img_v)))
        txt_out, img_out = attention(q, k, v, rope).split([txt.shape[1], img.shape[1]], dim=1)
        img = add_stream(img, img_out, self.img_attn, self.img_mlp, img_rows)
        txt = add_stream(txt, txt_out, self.txt_attn, self.txt_mlp, txt_rows)
        return img, txt


class SingleStreamBlock(nn.Module):
    """Text and image in one stream, attention and MLP side by side (arXiv 2302.05442)."""

    MODULATION_ROWS = 3

    def __init__(self, hidden_size: int, num_heads: int, mlp_hidden: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.split = [3 * hidden_size, mlp_hidden]
        self.linear1 = nn.Linear(hidden_size, 3 * hidden_size + mlp_hidden)
        self.linear2 = nn.Linear(hidden_size + mlp_hidden, hidden_size)
        self.norm = QKNorm(hidden_size // num_heads)
        self.modulation = Modulation(hidden_size, self.MODULATION_ROWS)

    def forward(self, x: Tensor, modulation: Tensor, rope: Tensor) -> Tensor:
        """x: (B, L, hidden), modulation: (B, 3 * hidden). Returns (B, L, hidden)."""
        shift, scale, gate = modulation.unflatten(-1, (self.MODULATION_ROWS, 1, -1)).unbind(1)
        qkv, mlp = self.linear1(modulated_norm(x, shift, scale)).split(self.split, dim=-1)
        attended = attention(*split_heads(qkv, self.num_heads, self.norm), rope)
        out = self.linear2(torch.cat([attended, F.gelu(mlp, approximate="tanh")], dim=-1))
        return clamp_half(torch.addcmul(x, gate, out))
