"""The two kinds of blocks of FLUX's transformers, whatever modulates them. Shape letters: see `models/family.py`.

Follows black-forest-labs/flux `src/flux/modules/layers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fluxserve.models.parts.attention import SelfAttention, attention, split_heads
from fluxserve.models.parts.norms import NORM_EPS, QKNorm, clamp_half, modulated_norm


class TwoStreams(nn.Module):
    """Text and image with own weights and one joint attention. mlp: makes one stream's."""

    def __init__(self, dim: int, num_heads: int, mlp: Callable[[], nn.Module], bias: bool = True) -> None:
        super().__init__()
        self.img_attn = SelfAttention(dim, num_heads, bias)
        self.img_mlp = mlp()
        self.txt_attn = SelfAttention(dim, num_heads, bias)
        self.txt_mlp = mlp()

    def joint(
        self, img: Tensor, txt: Tensor, img_rows: Sequence[Tensor], txt_rows: Sequence[Tensor], rope: Tensor
    ) -> tuple[Tensor, Tensor]:
        """img: (B, I, dim), txt: (B, T, dim), rows: six of (B, 1, dim) each. Returns both streams."""
        lengths = [txt.shape[1], img.shape[1]]
        txt_rope, img_rope = rope.split(lengths)
        txt_heads = self.txt_attn.heads(modulated_norm(txt, txt_rows[0], txt_rows[1]), txt_rope)
        img_heads = self.img_attn.heads(modulated_norm(img, img_rows[0], img_rows[1]), img_rope)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(txt_heads, img_heads, strict=True))
        txt_out, img_out = attention(q, k, v).split(lengths, dim=1)
        img = _add(img, img_out, self.img_attn, self.img_mlp, img_rows)
        txt = _add(txt, txt_out, self.txt_attn, self.txt_mlp, txt_rows)
        return img, txt


class OneStream(nn.Module):
    """Text and image as one, attention and MLP side by side (arXiv 2302.05442).

    mlp_in, mlp_out: widths before and after the activation, which but for training leaves what it returns in the first
    columns of what it is given.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_in: int, mlp_out: int, activation: nn.Module, bias: bool = True
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.split = [3 * dim, mlp_in]
        self.behind_keys = slice(2 * dim, 3 * dim + mlp_out)
        self.linear1 = nn.Linear(dim, 3 * dim + mlp_in, bias=bias)
        self.linear2 = nn.Linear(dim + mlp_out, dim, bias=bias)
        self.norm = QKNorm(dim // num_heads)
        self.activation = activation

    def joint(self, x: Tensor, rows: Sequence[Tensor], rope: Tensor) -> Tensor:
        """x: (B, L, dim), rows: three of (B, 1, dim). Returns (B, L, dim)."""
        shift, scale, gate = rows
        both = self.linear1(modulated_norm(x, shift, scale))  # (B, L, q and k and v and mlp_in)
        qkv, mlp = both.split(self.split, dim=-1)
        attended = attention(*split_heads(qkv, self.num_heads, self.norm.scales, NORM_EPS, rope))
        activated = self.activation(mlp)
        if torch.is_grad_enabled():
            joined = torch.cat([attended, activated], dim=-1)
        else:  # v has been read: its place, before the MLP's, is free
            joined = both[..., self.behind_keys]
            joined[..., : x.shape[-1]] = attended
        out = self.linear2(joined.flatten(0, 1)).unflatten(0, x.shape[:2])
        return clamp_half(torch.addcmul(x, gate, out))


def _add(x: Tensor, attended: Tensor, attn: SelfAttention, mlp: nn.Module, rows: Sequence[Tensor]) -> Tensor:
    """A stream with what its attention and its MLP add. x, attended: (B, L, dim); rows: six of (B, 1, dim)."""
    _, _, attn_gate, mlp_shift, mlp_scale, mlp_gate = rows
    x = torch.addcmul(x, attn_gate, attn.proj(attended))
    return clamp_half(torch.addcmul(x, mlp_gate, mlp(modulated_norm(x, mlp_shift, mlp_scale))))
