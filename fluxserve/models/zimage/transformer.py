"""The Z-Image transformer: image and text are refined apart, then run through one stream of sandwich-normed blocks.

Follows huggingface/diffusers `models/transformers/transformer_z_image.py`; names are those of the published file.
The modulation depends on time alone: `modulation` gives its rows for all steps of a schedule at once.
Shape letters: see `models/family.py`; I' and T' are I and T padded to a multiple of 32 with learned tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.parts.attention import attention, rotary_table, split_heads
from fluxserve.models.parts.embedders import sinusoidal_embedding
from fluxserve.models.parts.norms import clamp_half
from fluxserve.models.step_cache import BlockCache, Rows, run_others
from fluxserve.models.zimage.sizes import ZImageParams

TIME_DIM = 256
THETA = 256
MULTIPLE = 32
NORM_EPS = 1e-5
LAST_NORM_EPS = 1e-6

BLOCK_ROWS = 4
UNMODULATED = (1.0, 1.0, 1.0, 1.0)


def padded_length(tokens: int) -> int:
    return -(-tokens // MULTIPLE) * MULTIPLE


class Attention(nn.Module):
    def __init__(self, params: ZImageParams) -> None:
        super().__init__()
        self.num_heads = params.num_heads
        self.qkv = nn.Linear(params.hidden_size, 3 * params.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(params.head_dim, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(params.head_dim, eps=NORM_EPS)
        self.out = nn.Linear(params.hidden_size, params.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """x: (B, L, hidden), rope: (L, D / 2, 2). Returns (B, L, hidden)."""
        scales = (self.q_norm.weight, self.k_norm.weight)
        return self.out(attention(*split_heads(self.qkv(x), self.num_heads, scales, NORM_EPS, rope)))


class FeedForward(nn.Module):
    def __init__(self, params: ZImageParams) -> None:
        super().__init__()
        self.w1 = nn.Linear(params.hidden_size, params.mlp_hidden, bias=False)
        self.w2 = nn.Linear(params.mlp_hidden, params.hidden_size, bias=False)
        self.w3 = nn.Linear(params.hidden_size, params.mlp_hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, hidden). Returns the same shape."""
        return self.w2(clamp_half(F.silu(self.w1(x)) * self.w3(x)))


class Block(nn.Module):
    """Attention and MLP, each with a norm before and behind it."""

    def __init__(self, params: ZImageParams, modulated: bool = True) -> None:
        super().__init__()
        hidden = params.hidden_size
        self.attention = Attention(params)
        self.feed_forward = FeedForward(params)
        self.attention_norm1 = nn.RMSNorm(hidden, eps=NORM_EPS)
        self.ffn_norm1 = nn.RMSNorm(hidden, eps=NORM_EPS)
        self.attention_norm2 = nn.RMSNorm(hidden, eps=NORM_EPS)
        self.ffn_norm2 = nn.RMSNorm(hidden, eps=NORM_EPS)
        if modulated:
            self.adaLN_modulation = nn.Sequential(nn.Linear(params.time_width, BLOCK_ROWS * hidden))

    def modulation(self, vec: Tensor) -> Tensor:
        """vec: (B, time_width). Returns (B, 4 * hidden): what scales and gates attention, then the MLP."""
        attn_scale, attn_gate, mlp_scale, mlp_gate = self.adaLN_modulation(vec).chunk(BLOCK_ROWS, dim=-1)
        return torch.cat([1 + attn_scale, attn_gate.tanh(), 1 + mlp_scale, mlp_gate.tanh()], dim=-1)

    def forward(self, x: Tensor, rows: Sequence[Tensor | float], rope: Tensor) -> Tensor:
        """x: (B, L, hidden), rows: four of (B, 1, hidden), or `UNMODULATED`. Returns (B, L, hidden)."""
        attn_scale, attn_gate, mlp_scale, mlp_gate = rows
        attended = self.attention(self.attention_norm1(x) * attn_scale, rope)
        x = x + attn_gate * self.attention_norm2(clamp_half(attended))
        changed = self.feed_forward(self.ffn_norm1(x) * mlp_scale)
        return clamp_half(x + mlp_gate * self.ffn_norm2(clamp_half(changed)))


class TimeEmbedder(nn.Module):
    def __init__(self, params: ZImageParams) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_DIM, params.time_hidden), nn.SiLU(), nn.Linear(params.time_hidden, params.time_width)
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """t: (B,) float32. Returns (B, time_width) in dtype; the angles are not rounded to it, as FLUX's are."""
        return self.mlp(sinusoidal_embedding(t, TIME_DIM, torch.float32).to(dtype))


class FinalLayer(nn.Module):
    def __init__(self, params: ZImageParams) -> None:
        super().__init__()
        self.linear = nn.Linear(params.hidden_size, params.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(params.time_width, params.hidden_size))

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        """x: (B, I, hidden), scale: (B, 1, hidden). Returns (B, I, in_channels)."""
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=LAST_NORM_EPS) * scale)


class ZImageTransformer(nn.Module):
    """Dimensions come from `params`. cap_embedder: of text, a norm before it. Padding tokens are vectors."""

    def __init__(self, params: ZImageParams) -> None:
        super().__init__()
        self.params = params
        hidden, refiners = params.hidden_size, range(params.refiner_depth)
        self.x_embedder = nn.Linear(params.in_channels, hidden)
        self.x_pad_token = nn.Parameter(torch.zeros(hidden))
        self.cap_embedder = nn.Sequential(
            nn.RMSNorm(params.context_in_dim, eps=NORM_EPS), nn.Linear(params.context_in_dim, hidden)
        )
        self.cap_pad_token = nn.Parameter(torch.zeros(hidden))
        self.t_embedder = TimeEmbedder(params)
        self.noise_refiner = nn.ModuleList(Block(params) for _ in refiners)
        self.context_refiner = nn.ModuleList(Block(params, modulated=False) for _ in refiners)
        self.layers = nn.ModuleList(Block(params) for _ in range(params.depth))
        self.final_layer = FinalLayer(params)

    def modulation(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the blocks that refine the image, of the joint blocks and of the last layer, for one time each.

        t: (B,) float32 in 1 (noise) .. 0 (image); the network counts it the other way round. Returns (B, M),
        M = (4 * (refiner_depth + depth) + 1) * hidden, in dtype.
        """
        vec = self.t_embedder(1 - t, dtype)
        rows = [block.modulation(vec) for block in (*self.noise_refiner, *self.layers)]
        return torch.cat([*rows, 1 + self.final_layer.adaLN_modulation(vec)], dim=-1)

    def rope(self, text_tokens: int, rows: int, columns: int) -> Tensor:
        """The image at (T' + 1, row, column), what pads it at (0, 0, 0); text token i, padding too, at (1 + i, 0, 0).

        Returns (I' + T', D / 2, 2) float32.
        """
        device, length = self.x_embedder.weight.device, padded_length(text_tokens)
        image = torch.zeros(padded_length(rows * columns), 3, device=device)
        grid = image[: rows * columns].unflatten(0, (rows, columns))
        grid[..., 0] = length + 1
        grid[..., 1] = torch.arange(rows, device=device)[:, None]
        grid[..., 2] = torch.arange(columns, device=device)
        text = torch.zeros(length, 3, device=device)
        text[:, 0] = torch.arange(1, length + 1, device=device)
        return rotary_table(torch.cat([image, text]), self.params.axes_dim, THETA)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        modulation: Tensor,
        rope: Tensor,
        caches: Sequence[BlockCache | None] | None = None,
    ) -> Tensor:
        """What leads from noise to the picture at one time a sample: the velocity's negative.

        img: (B, I, in_channels). txt: (B, T, context_in_dim). modulation: (B, M). rope: (I' + T', D / 2, 2).
        caches: of each sample, None to run all joint blocks. Returns (B, I, in_channels).
        """
        tokens = img.shape[1]
        rows = modulation.unflatten(-1, (-1, 1, self.params.hidden_size)).unbind(1)  # M / hidden x (B, 1, hidden)
        of_block = [rows[i : i + BLOCK_ROWS] for i in range(0, len(rows) - 1, BLOCK_ROWS)]
        img = _padded(self.x_embedder(img), self.x_pad_token)
        txt = _padded(self.cap_embedder(txt), self.cap_pad_token)
        img_rope, txt_rope = rope.split([img.shape[1], txt.shape[1]])
        for block, own in zip(self.noise_refiner, of_block, strict=False):
            img = block(img, own, img_rope)
        for block in self.context_refiner:
            txt = block(txt, UNMODULATED, txt_rope)
        first, *later = of_block[len(self.noise_refiner) :]
        before = torch.cat([img, txt], dim=1)  # (B, I' + T', hidden)
        after = self.layers[0](before, first, rope)

        def others(some: Rows) -> Tensor:
            x = after[some]
            for block, own in zip(self.layers[1:], later, strict=True):
                x = block(x, [row[some] for row in own], rope)
            return x[:, :tokens]

        around = before[:, :tokens], after[:, :tokens]
        x = others(slice(None)) if caches is None else run_others(*around, others, caches)
        return self.final_layer(x, rows[-1])


def _padded(x: Tensor, pad: Tensor) -> Tensor:
    """x: (B, L, hidden), pad: (hidden,). Returns (B, L', hidden)."""
    missing = padded_length(x.shape[1]) - x.shape[1]
    return torch.cat([x, pad.expand(x.shape[0], missing, -1)], dim=1) if missing else x
