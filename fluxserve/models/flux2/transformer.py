"""The FLUX.2 transformer: as FLUX.1's, with one modulation for all blocks, gated MLPs, no biases and four axes of RoPE.

Follows black-forest-labs/flux2 `src/flux2/model.py` and huggingface/diffusers `transformers/transformer_flux2.py`.
The modulation depends on time (and guidance) alone: `modulation` gives its rows for all steps of a schedule at once.
Shape letters: see `models/family.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.flux2.sizes import Flux2Params
from fluxserve.models.parts.attention import rotary_table
from fluxserve.models.parts.embedders import MLPEmbedder, sinusoidal_embedding
from fluxserve.models.parts.modulation import LastLayer, Modulation
from fluxserve.models.parts.streams import OneStream, TwoStreams
from fluxserve.models.step_cache import BlockCache, Rows, run_others

TIME_DIM = 256
THETA = 2000
REFERENCE_TIME = 10
"""References stand at times 10, 20, ... on the first axis; what is drawn stands at 0."""

STREAM_ROWS, SINGLE_ROWS = 6, 3


class SwiGLU(nn.Module):
    """The first half of the channels, through SiLU, gates the second; in place of the first but for training."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., 2 * hidden). Returns (..., hidden)."""
        gate, value = x.chunk(2, dim=-1)
        return F.silu(gate) * value if torch.is_grad_enabled() else F.silu(gate, inplace=True).mul_(value)


def gated_feed_forward(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(dim, 2 * hidden, bias=False), SwiGLU(), nn.Linear(hidden, dim, bias=False))


class DoubleStreamBlock(TwoStreams):
    def __init__(self, params: Flux2Params) -> None:
        mlp = partial(gated_feed_forward, params.hidden_size, params.mlp_hidden)
        super().__init__(params.hidden_size, params.num_heads, mlp, bias=False)

    forward = TwoStreams.joint


class SingleStreamBlock(OneStream):
    def __init__(self, params: Flux2Params) -> None:
        hidden, mlp = params.hidden_size, params.mlp_hidden
        super().__init__(hidden, params.num_heads, 2 * mlp, mlp, SwiGLU(), bias=False)

    forward = OneStream.joint


class Flux2Transformer(nn.Module):
    """Dimensions come from `params`; parameter names and shapes equal the published BFL files."""

    def __init__(self, params: Flux2Params) -> None:
        super().__init__()
        self.params = params
        hidden = params.hidden_size
        self.img_in = nn.Linear(params.in_channels, hidden, bias=False)
        self.txt_in = nn.Linear(params.context_in_dim, hidden, bias=False)
        self.time_in = MLPEmbedder(TIME_DIM, hidden, bias=False)
        self.guidance_in = MLPEmbedder(TIME_DIM, hidden, bias=False) if params.guidance_embed else None
        self.double_stream_modulation_img = Modulation(hidden, STREAM_ROWS, bias=False)
        self.double_stream_modulation_txt = Modulation(hidden, STREAM_ROWS, bias=False)
        self.single_stream_modulation = Modulation(hidden, SINGLE_ROWS, bias=False)
        self.double_blocks = nn.ModuleList(DoubleStreamBlock(params) for _ in range(params.depth))
        self.single_blocks = nn.ModuleList(SingleStreamBlock(params) for _ in range(params.depth_single_blocks))
        self.final_layer = LastLayer(hidden, params.in_channels, bias=False)

    def modulation(self, t: Tensor, guidance: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Shift, scale and gate rows of all blocks, for one time each: image, text, single blocks, last layer.

        t: (B,) float32 in 1 (noise) .. 0 (image). guidance: (B,) float32, or None for models without.
        Returns (B, M), M = 17 * hidden, in dtype.
        """
        vec = self.time_in(sinusoidal_embedding(t, TIME_DIM, dtype))
        if self.guidance_in is not None:
            assert guidance is not None, "a guidance-distilled model needs guidance"
            vec = vec + self.guidance_in(sinusoidal_embedding(guidance, TIME_DIM, dtype))
        shared = (
            self.double_stream_modulation_img,
            self.double_stream_modulation_txt,
            self.single_stream_modulation,
            self.final_layer.adaLN_modulation,
        )
        return torch.cat([rows(vec) for rows in shared], dim=-1)

    def rope(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Text token i at (0, 0, 0, i); then each grid of (rows, columns) at (its time, row, column, 0).

        grids: what is drawn, then the references. Returns (L, D / 2, 2) float32.
        """
        device = self.img_in.weight.device
        text = torch.zeros(text_tokens, 4, device=device)
        text[:, 3] = torch.arange(text_tokens, device=device)
        images = [_grid_ids(n * REFERENCE_TIME, *grid, device) for n, grid in enumerate(grids)]
        return rotary_table(torch.cat([text, *images]), self.params.axes_dim, THETA)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        modulation: Tensor,
        rope: Tensor,
        caches: Sequence[BlockCache | None] | None = None,
    ) -> Tensor:
        """The velocity at one time a sample, of all image tokens that are given.

        img: (B, I, in_channels). txt: (B, T, context_in_dim). modulation: (B, M). rope: (L, D / 2, 2). caches: of each
        sample, None to run all blocks.
        """
        rows = modulation.unflatten(-1, (-1, 1, self.params.hidden_size)).unbind(1)  # 17 x (B, 1, hidden)
        before, txt = self.img_in(img), self.txt_in(txt)
        img, txt = self.double_blocks[0](before, txt, rows[:6], rows[6:12], rope)

        def others(some: Rows) -> Tensor:
            own = [row[some] for row in rows[:15]]
            image, words = img[some], txt[some]
            for block in self.double_blocks[1:]:
                image, words = block(image, words, own[:6], own[6:12], rope)
            x = torch.cat([words, image], dim=1)  # (B, L, hidden)
            for block in self.single_blocks:
                x = block(x, own[12:], rope)
            return x[:, words.shape[1] :]

        x = others(slice(None)) if caches is None else run_others(before, img, others, caches)
        return self.final_layer(x, torch.cat(rows[15:], dim=-1).squeeze(1))


def _grid_ids(time: int, rows: int, columns: int, device: torch.device) -> Tensor:
    ids = torch.zeros(rows, columns, 4, device=device)
    ids[..., 0] = time
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)
    return ids.flatten(0, 1)
