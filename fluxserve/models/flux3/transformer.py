"""The FLUX.3 transformer: image, references and text each pass blocks of their own, then all of them one stream.

Follows huggingface/diffusers `models/transformers/transformer_flux3.py`; names are those of BFL's file.
The modulation depends on time alone: `modulation` gives its rows for all steps of a schedule at once. References and
text stand at time 0. Shape letters: see `models/family.py`; R reference tokens, L = T + I + R.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxserve.models.flux3.sizes import Flux3Params
from fluxserve.models.parts.attention import attention, rotary_table
from fluxserve.models.parts.embedders import MLPEmbedder, sinusoidal_embedding
from fluxserve.models.parts.modulation import LastLayer, Modulation
from fluxserve.models.parts.norms import QKNorm, clamp_half, modulated_norm
from fluxserve.models.step_cache import BlockCache, Rows, run_others

TIME_DIM = 256
THETA = 10_000
GRID_STEP = 0.5
"""Between the positions of neighbouring image tokens."""

MODES = ("image", "image_cond", "txt")
ORDER = ("txt", "image", "image_cond")
"""In the joint blocks' stream."""
BLOCK_ROWS = 3

M = TypeVar("M", bound=nn.Module)


class OfPictures(nn.Module, Generic[M]):
    """The same of what is drawn and of references."""

    def __init__(self, image: M, image_cond: M) -> None:
        super().__init__()
        self.image = image
        self.image_cond = image_cond


class OfImage(nn.Module):
    """What references have none of."""

    def __init__(self, image: LastLayer) -> None:
        super().__init__()
        self.image = image


class Block(nn.Module):
    """Attention and a gated MLP side by side, on the same modulated tokens."""

    def __init__(self, params: Flux3Params) -> None:
        super().__init__()
        hidden = params.hidden_size
        self.num_heads = params.num_heads
        self.q_proj = nn.Linear(hidden, hidden, bias=False)
        self.k_proj = nn.Linear(hidden, hidden, bias=False)
        self.v_proj = nn.Linear(hidden, hidden, bias=False)
        self.norm = QKNorm(params.head_dim)
        self.attn_out = nn.Linear(hidden, hidden, bias=False)
        self.mlp_in = nn.Linear(hidden, 2 * params.mlp_hidden, bias=False)
        self.mlp_out = nn.Linear(params.mlp_hidden, hidden, bias=False)

    def forward(self, x: Tensor, rows: Sequence[Tensor], rope: Tensor) -> Tensor:
        """x: (B, L, hidden), rows: three of (B, 1 or L, hidden), rope: (L, D / 2, 2). Returns (B, L, hidden)."""
        shift, scale, gate = rows
        modulated = modulated_norm(x, shift, scale)
        added = self.attn_out(self._attended(modulated, rope)) + self._fed_forward(modulated)
        return clamp_half(torch.addcmul(x, gate, added))

    def _attended(self, x: Tensor, rope: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (project(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project in projections)
        return attention(self.norm.query_norm(q), self.norm.key_norm(k), v, rope)

    def _fed_forward(self, x: Tensor) -> Tensor:
        """The first half of the channels, through SiLU, gates the second."""
        gate, value = self.mlp_in(x).chunk(2, dim=-1)
        return self.mlp_out(clamp_half(F.silu(gate) * value))


class Flux3Transformer(nn.Module):
    """Dimensions come from `params`; parameter names and shapes equal the published BFL files."""

    def __init__(self, params: Flux3Params) -> None:
        super().__init__()
        self.params = params
        hidden = params.hidden_size
        self.emb_in = OfPictures(*(nn.Linear(params.in_channels, hidden, bias=False) for _ in range(2)))
        self.txt_in = nn.Linear(params.context_in_dim, hidden, bias=False)
        self.time_in = MLPEmbedder(TIME_DIM, hidden, bias=False)
        self.ref_time_in = MLPEmbedder(TIME_DIM, hidden, bias=False) if params.flow_map else None
        self.early_stream_modulations = _modulations(hidden)
        self.single_stream_modulations = _modulations(hidden)
        self.content_mode_blocks = OfPictures(*(_blocks(params, params.depth) for _ in range(2)))
        self.txt_mode_blocks = _blocks(params, params.depth)
        self.single_blocks = _blocks(params, params.depth_single_blocks)
        self.final_layer = OfImage(LastLayer(hidden, params.in_channels, bias=False))

    def modulation(self, t: Tensor, t_next: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the blocks of each mode, of the joint blocks for each mode, and of the last layer.

        t, t_next: (B,) float32 in 1 (noise) .. 0 (image): where a step starts and where it leads, which a flow map
        reads too. Returns (B, M), M = 20 * hidden, in dtype.
        """
        image, given = (self._embedded(times, t_next, dtype) for times in (t, torch.zeros_like(t)))
        rows = [
            modulations[mode](image if mode == "image" else given)
            for modulations in (self.early_stream_modulations, self.single_stream_modulations)
            for mode in MODES
        ]
        return torch.cat([*rows, self.final_layer.image.adaLN_modulation(image)], dim=-1)

    def _embedded(self, t: Tensor, t_next: Tensor, dtype: torch.dtype) -> Tensor:
        vec = self.time_in(sinusoidal_embedding(t, TIME_DIM, dtype))
        return (
            vec if self.ref_time_in is None else vec + self.ref_time_in(sinusoidal_embedding(t_next, TIME_DIM, dtype))
        )

    def rope(self, text_tokens: int, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Text token i at (0, 0, 0, i); then of grid n (rows, columns) each token at (0, row / 2, column / 2, -n).

        grids: what is drawn, n = 0, then the references. Returns (L, D / 2, 2) float32.
        """
        device = self.txt_in.weight.device
        text = torch.zeros(text_tokens, 4, device=device)
        text[:, 3] = torch.arange(text_tokens, device=device)
        images = [_grid_ids(*grid, -number, device) for number, grid in enumerate(grids)]
        return rotary_table(torch.cat([text, *images]), self.params.axes_dim, THETA)

    def forward(
        self,
        img: Tensor,
        references: Tensor | None,
        txt: Tensor,
        modulation: Tensor,
        rope: Tensor,
        caches: Sequence[BlockCache | None] | None = None,
    ) -> Tensor:
        """The velocity of the image tokens at one time a sample.

        img: (B, I, in_channels). references: (B, R, in_channels) or None. txt: (B, T, context_in_dim). modulation:
        (B, M). rope: (L, D / 2, 2). caches: of each sample, None to run all blocks. Returns (B, I, in_channels).
        """
        rows = modulation.unflatten(-1, (-1, 1, self.params.hidden_size)).unbind(1)  # 20 x (B, 1, hidden)
        text_rope, img_rope, ref_rope = rope.tensor_split([txt.shape[1], txt.shape[1] + img.shape[1]])
        first, *later = self.content_mode_blocks.image
        before = self.emb_in.image(img)
        after = first(before, rows[:3], img_rope)

        def others(some: Rows) -> Tensor:
            early = [[row[some] for row in rows[i : i + BLOCK_ROWS]] for i in range(0, 9, BLOCK_ROWS)]
            modes = {"image": _run(later, after[some], early[0], img_rope)}
            if references is not None:
                seen = self.emb_in.image_cond(references[some])
                modes["image_cond"] = _run(self.content_mode_blocks.image_cond, seen, early[1], ref_rope)
            modes["txt"] = _run(self.txt_mode_blocks, self.txt_in(txt[some]), early[2], text_rope)
            return self._joint(modes, [row[some] for row in rows[9:18]], rope)

        x = others(slice(None)) if caches is None else run_others(before, after, others, caches)
        return self.final_layer.image(x, torch.cat(rows[18:], dim=-1).squeeze(1))

    def _joint(self, modes: dict[str, Tensor], rows: Sequence[Tensor], rope: Tensor) -> Tensor:
        """The image tokens behind the joint blocks. modes: tokens by mode. rows: three for each of `MODES`."""
        order = [mode for mode in ORDER if mode in modes]
        of_tokens = [
            torch.cat([rows[BLOCK_ROWS * MODES.index(m) + kind].expand_as(modes[m]) for m in order], dim=1)
            for kind in range(BLOCK_ROWS)
        ]  # three of (B, L, hidden)
        x = _run(self.single_blocks, torch.cat([modes[mode] for mode in order], dim=1), of_tokens, rope)
        begin = modes["txt"].shape[1]
        return x[:, begin : begin + modes["image"].shape[1]]


def _modulations(hidden: int) -> nn.ModuleDict:
    return nn.ModuleDict({mode: Modulation(hidden, BLOCK_ROWS, bias=False) for mode in MODES})


def _blocks(params: Flux3Params, depth: int) -> nn.ModuleList:
    return nn.ModuleList(Block(params) for _ in range(depth))


def _run(blocks: Iterable[nn.Module], x: Tensor, rows: Sequence[Tensor], rope: Tensor) -> Tensor:
    for block in blocks:
        x = block(x, rows, rope)
    return x


def _grid_ids(rows: int, columns: int, picture: int, device: torch.device) -> Tensor:
    ids = torch.zeros(rows, columns, 4, device=device)
    ids[..., 1] = GRID_STEP * torch.arange(rows, device=device)[:, None]
    ids[..., 2] = GRID_STEP * torch.arange(columns, device=device)
    ids[..., 3] = picture
    return ids.flatten(0, 1)
