"""The parts of a FLUX transformer block. Shape letters: see transformer.py.

Follows black-forest-labs/flux `src/flux/modules/layers.py` and `src/flux/math.py`; rotary positions after
RoFormer (arXiv 2104.09864), adaLN modulation after DiT (arXiv 2212.09748).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


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


def sinusoidal_embedding(t: Tensor, dim: int, dtype: torch.dtype) -> Tensor:
    """t: (B,) float32 time or guidance. Returns (B, dim) in dtype: cosines first, then sines, of 1000 t.

    1000 t is rounded to dtype once, as the published models were trained: 16-bit rounding of t itself would move it.
    """
    half = dim // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = (1000.0 * t).to(dtype).float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype)


class MLPEmbedder(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_dim)
        self.out_layer = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in_dim). Returns (B, hidden_dim)."""
        return self.out_layer(F.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + NORM_EPS)
        return wide.to(x.dtype) * self.scale


class QKNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim)
        self.key_norm = RMSNorm(dim)


class SelfAttention(nn.Module):
    """One stream's projections; the attention itself is joint, in the block."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.norm = QKNorm(dim // num_heads)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T or I, hidden). Returns normed q, k and v, each (B, H, T or I, D)."""
        return split_heads(self.qkv(x), self.num_heads, self.norm)


def split_heads(qkv: Tensor, num_heads: int, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    """qkv: (B, L, 3 * H * D). Returns normed q, k and v, each (B, H, L, D)."""
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, L, 3, H, D) -> 3 x (B, H, L, D)
    return norm.query_norm(q), norm.key_norm(k), v


class Modulation(nn.Module):
    """The only holder of a block's adaLN weights; evaluated for all steps of a request before the first."""

    def __init__(self, dim: int, rows: int) -> None:
        super().__init__()
        self.lin = nn.Linear(dim, rows * dim)

    def forward(self, vec: Tensor) -> Tensor:
        """vec: (B, hidden). Returns (B, rows * hidden)."""
        return self.lin(F.silu(vec))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without own weights, then x * (1 + scale) + shift. x: (B, L, hidden); shift, scale: (B, 1, hidden)."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def feed_forward(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))


def clamp_half(x: Tensor) -> Tensor:
    """float16 alone overflows in these streams: keep it finite there, touch nothing elsewhere."""
    return x.clamp(-65504, 65504) if x.dtype == torch.float16 else x


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
        img = self._add_stream(img, img_out, self.img_attn, self.img_mlp, img_rows)
        txt = self._add_stream(txt, txt_out, self.txt_attn, self.txt_mlp, txt_rows)
        return img, txt

    @staticmethod
    def _add_stream(
        x: Tensor, attended: Tensor, attn: SelfAttention, mlp: nn.Sequential, rows: tuple[Tensor, ...]
    ) -> Tensor:
        _, _, attn_gate, mlp_shift, mlp_scale, mlp_gate = rows
        x = torch.addcmul(x, attn_gate, attn.proj(attended))
        return clamp_half(torch.addcmul(x, mlp_gate, mlp(modulated_norm(x, mlp_shift, mlp_scale))))


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


class LastLayer(nn.Module):
    MODULATION_ROWS = 2

    def __init__(self, hidden_size: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, self.MODULATION_ROWS * hidden_size))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x: (B, I, hidden), modulation: (B, 2 * hidden). Returns (B, I, out_channels)."""
        shift, scale = modulation.unflatten(-1, (self.MODULATION_ROWS, 1, -1)).unbind(1)
        return self.linear(modulated_norm(x, shift, scale))
