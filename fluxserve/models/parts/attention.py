"""Joint attention with rotary positions. Shape letters: see `models/family.py`.

Follows black-forest-labs/flux `src/flux/math.py`; rotary positions after RoFormer (arXiv 2104.09864).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.parts.norms import QKNorm


def rotary_table(ids: Tensor, axes_dim: tuple[int, ...], theta: int) -> Tensor:
    """The cosine and sine by which rotary attention turns each pair of channels.

    ids: (L, axes) positions. Returns (L, D / 2, 2) float32, computed in float64 where the device has it.
    """
    wide = torch.float32 if ids.device.type == "mps" else torch.float64
    angles = []
    for axis, dim in enumerate(axes_dim):
        frequency = theta ** (-torch.arange(0, dim, 2, dtype=wide, device=ids.device) / dim)
        angles.append(ids[:, axis, None].to(wide) * frequency)
    angle = torch.cat(angles, dim=-1)
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def apply_rotary(x: Tensor, rope: Tensor) -> Tensor:
    """Turns neighbouring channel pairs. x: (B, H, L, D), rope: (L, D / 2, 2). Returns x's shape and dtype.

    Eagerly by one complex product instead of four real ones: an eighth of the time on a CPU, the same values. Compiled
    by the four, which inductor fuses; it has no code for complex numbers.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, H, L, D / 2, 2)
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), rope.unbind(-1)
        turned = torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope))
    return turned.flatten(-2).to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, rope: Tensor) -> Tensor:
    """Joint attention over text and image tokens, with no mask. q, k, v: (B, H, L, D). Returns (B, L, H * D)."""
    out = F.scaled_dot_product_attention(apply_rotary(q, rope), apply_rotary(k, rope), v)
    return out.transpose(1, 2).flatten(2)  # (B, H, L, D) -> (B, L, H * D)


def split_heads(qkv: Tensor, num_heads: int, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    """qkv: (B, L, 3 * H * D). Returns normed q, k and v, each (B, H, L, D)."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, L, 3, H, D) -> 3 x (B, H, L, D)
    return norm.query_norm(q), norm.key_norm(k), v


class SelfAttention(nn.Module):
    """One stream's projections; the attention itself is joint, in the block."""

    def __init__(self, dim: int, num_heads: int, bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=bias)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T or I, hidden). Returns normed q, k and v, each (B, H, T or I, D)."""
        return split_heads(self.qkv(x), self.num_heads, self.norm)
