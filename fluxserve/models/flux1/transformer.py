"""The FLUX.1 transformer: predicts the velocity of a rectified flow from image tokens, text and time.

Follows black-forest-labs/flux `src/flux/model.py`, with one difference of shape: the adaLN modulation, which depends
on time, guidance and the pooled prompt alone, is computed by `modulation` for all steps of a request at once, and
`forward` takes its rows. That saves a quarter of the weights (27 % in FLUX.1) at every step and changes no value.
Knows nothing of schedules, latents' meaning, or where weights live. Shape letters: see `models/family.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fluxserve.models.flux1.blocks import DoubleStreamBlock, SingleStreamBlock
from fluxserve.models.flux1.sizes import FluxParams
from fluxserve.models.parts.attention import rotary_table
from fluxserve.models.parts.embedders import MLPEmbedder, sinusoidal_embedding
from fluxserve.models.parts.modulation import LastLayer
from fluxserve.models.step_cache import BlockCache, Rows, run_others

TIME_DIM = 256


class FluxTransformer(nn.Module):
    """Dimensions come from `params`; parameter names and shapes equal the published BFL files."""

    def __init__(self, params: FluxParams) -> None:
        super().__init__()
        self.params = params
        hidden, heads = params.hidden_size, params.num_heads
        self.img_in = nn.Linear(params.in_channels, hidden)
        self.time_in = MLPEmbedder(TIME_DIM, hidden)
        self.vector_in = MLPEmbedder(params.vec_in_dim, hidden)
        self.guidance_in = MLPEmbedder(TIME_DIM, hidden) if params.guidance_embed else None
        self.txt_in = nn.Linear(params.context_in_dim, hidden)
        self.double_blocks = nn.ModuleList(
            DoubleStreamBlock(hidden, heads, params.mlp_hidden) for _ in range(params.depth)
        )
        self.single_blocks = nn.ModuleList(
            SingleStreamBlock(hidden, heads, params.mlp_hidden) for _ in range(params.depth_single_blocks)
        )
        self.final_layer = LastLayer(hidden, params.out_channels)

    def modulation(self, t: Tensor, guidance: Tensor | None, pooled: Tensor) -> Tensor:
        """Every block's shift, scale and gate rows, for one time each.

        t: (B,) float32 in 1 (noise) .. 0 (image). guidance: (B,) float32, or None for models without.
        pooled: (B, vec_in_dim) in the compute dtype. Returns (B, M): double blocks, single blocks, last layer.
        """
        vec = self.time_in(sinusoidal_embedding(t, TIME_DIM, pooled.dtype)) + self.vector_in(pooled)
        if self.guidance_in is not None:
            assert guidance is not None, "a guidance-distilled model needs guidance"
            vec = vec + self.guidance_in(sinusoidal_embedding(guidance, TIME_DIM, pooled.dtype))
        rows = [cast(DoubleStreamBlock, block).modulation(vec) for block in self.double_blocks]
        rows += [cast(SingleStreamBlock, block).modulation(vec) for block in self.single_blocks]
        return torch.cat([*rows, self.final_layer.adaLN_modulation(vec)], dim=-1)

    def rope(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Positions (0, 0, 0) for text, then (n, row, column) for the tokens of grid n, of (rows, columns).

        grids: what is drawn, then the references. Returns (L, D / 2, 2) float32.
        """
        device = self.img_in.weight.device
        images = [_grid_ids(n, *grid, device) for n, grid in enumerate(grids)]
        ids = torch.cat([torch.zeros(text_tokens, 3, device=device), *images])
        return rotary_table(ids, self.params.axes_dim, self.params.theta)

    def forward(
        self,
        img: Tensor,
        txt: Tensor,
        modulation: Tensor,
        rope: Tensor,
        caches: Sequence[BlockCache | None] | None = None,
    ) -> Tensor:
        """The velocity at one time a sample.

        img: (B, I, in_channels) packed latents. txt: (B, T, context_in_dim) T5 states. modulation: (B, M) rows of
        this time. rope: (L, D / 2, 2). caches: of each sample, None to run all blocks. Returns (B, I, out_channels).
        """
        double, single, last = modulation.split(self._modulation_split(), dim=-1)
        double_rows, single_rows = (
            rows.chunk(len(blocks), -1) for rows, blocks in ((double, self.double_blocks), (single, self.single_blocks))
        )
        before, txt = self.img_in(img), self.txt_in(txt)
        img, txt = self.double_blocks[0](before, txt, double_rows[0], rope)

        def others(some: Rows) -> Tensor:
            image, words = img[some], txt[some]
            for block, rows in zip(self.double_blocks[1:], double_rows[1:], strict=True):
                image, words = block(image, words, rows[some], rope)
            x = torch.cat([words, image], dim=1)  # (B, L, hidden)
            for block, rows in zip(self.single_blocks, single_rows, strict=True):
                x = block(x, rows[some], rope)
            return x[:, words.shape[1] :]

        x = others(slice(None)) if caches is None else run_others(before, img, others, caches)
        return self.final_layer(x, last)

    def _modulation_split(self) -> list[int]:
        hidden = self.params.hidden_size
        return [
            hidden * DoubleStreamBlock.MODULATION_ROWS * len(self.double_blocks),
            hidden * SingleStreamBlock.MODULATION_ROWS * len(self.single_blocks),
            hidden * LastLayer.MODULATION_ROWS,
        ]


def _grid_ids(n: int, rows: int, columns: int, device: torch.device) -> Tensor:
    ids = torch.full((rows, columns, 3), float(n), device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)
    return ids.flatten(0, 1)
