"""The loss the transformer learns from, and how it draws while it trains.

Rectified flow: x_t = (1 - t) image + t noise, and the network predicts noise - image. Latents come from the linear
basis (latents.py), so that all are made while it trains (batches.py).

In a part of the pictures x_t holds the network's own first guess (its x_0 prediction at t = 1) in place of the image,
as in sampling, and it must predict the velocity that leads to the image (after Self Forcing, arXiv 2506.08009, which
rolls out whole videos). A real x_t shows what the words leave open. What learns from these alone takes noise for
knowledge when it samples: with more steps its pictures became worse, not better.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.models.flux1.variants import linear
from fluxserve.models.parts.attention import rotary_table
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.solvers import euler_step
from scripts.train_demo import sizes
from scripts.train_demo.encoders import TextEncoders
from scripts.train_demo.precision import mixed

LATENTS = PackedLatents(16)

GUESS_SHARE = 0.75
"""Of the pictures at times below 1, those that show the network's own guess."""

EARLIEST_GUESS = 0.2
"""Lowest time of these: below, almost nothing of the guess's errors would be left to mend."""


def untrained() -> FluxTransformer:
    """Gates and output begin at zero, so that every block begins as the identity (arXiv 2212.09748)."""
    model = FluxTransformer(sizes.TRANSFORMER)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
            if name.endswith(("mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear")):
                nn.init.zeros_(module.weight)
    return model


def times(count: int, noisy: int) -> Tensor:
    """Training times; the first `noisy` of them 1. There sampling begins and the words alone decide the picture.

    The strong low components of these latents show through until far above t = 0.5: lower times teach no words.
    """
    t = torch.sigmoid(0.8 + 1.2 * torch.randn(count))
    t[:noisy] = 1
    return t


def rope(model: FluxTransformer, text_tokens: int, rows: int, columns: int, spacing: float) -> Tensor:
    """As model.rope, with image tokens `spacing` apart: a coarse token lies in the middle of those it stands for."""
    ids = torch.zeros(text_tokens + rows * columns, 3)
    grid = ids[text_tokens:].view(rows, columns, 3)
    grid[..., 1] = (torch.arange(rows) * spacing + (spacing - 1) / 2)[:, None]
    grid[..., 2] = torch.arange(columns) * spacing + (spacing - 1) / 2
    return rotary_table(ids, model.params.axes_dim, model.params.theta).to(model.img_in.weight.device)


def velocity(model: FluxTransformer, x: Tensor, t: Tensor, pooled: Tensor, txt: Tensor, table: Tensor) -> Tensor:
    """Computed in the model's dtype, returned in float32. x: (B, I, 64)."""
    dtype = model.img_in.weight.dtype
    modulation = model.modulation(t, None, pooled.to(dtype))
    return model(x.to(dtype), txt.to(dtype), modulation, table).float()  # type: ignore[no-any-return]


def flow_loss(
    model: FluxTransformer,
    latents: Tensor,
    pooled: Tensor,
    txt: Tensor,
    share_noise: float,
    spacing: float = 1.0,
) -> Tensor:
    """Mean squared error of the velocity. latents: (B, 16, h, w) float32.

    The first `share_noise` of the pictures are at t = 1; of the others, at drawn times, the first GUESS_SHARE show a
    guess, and the error counts as that of the image it leads to: times t.
    """
    count, (rows, columns) = len(latents), (side // LATENTS.patch for side in latents.shape[2:])
    table = rope(model, txt.shape[1], rows, columns, spacing)
    noisy = round(share_noise * count)
    guessing = slice(noisy, noisy + round(GUESS_SHARE * (count - noisy)))
    t = times(count, noisy)
    t[guessing] = t[guessing].clamp(min=EARLIEST_GUESS)
    weight = torch.ones(count)
    weight[guessing] = t[guessing].square()
    t, weight = t.to(latents.device), weight.to(latents.device)

    image, noise = LATENTS.pack(latents), LATENTS.pack(torch.randn_like(latents))
    shown, at_first = image.clone(), torch.ones_like(t[guessing])
    with torch.no_grad():
        first = velocity(model, noise[guessing], at_first, pooled[guessing], txt[guessing], table)
        shown[guessing] = noise[guessing] - first
    mixed = torch.lerp(shown, noise, t[:, None, None])
    wanted = (mixed - image) / t[:, None, None]
    errors = (velocity(model, mixed, t, pooled, txt, table) - wanted).square().mean((1, 2))
    return (errors * weight).mean()


@torch.no_grad()
def sample(
    model: FluxTransformer, encoders: TextEncoders, prompts: Sequence[str], steps: int, coarse: bool = False
) -> Tensor:
    """Latents (B, 16, h, w) of the pictures for some prompts, square, the i-th from seed i."""
    width, height = (8, 8) if coarse else (16, 16)
    device = model.img_in.weight.device
    x = torch.stack([LATENTS.noise(i, (height, width)) for i in range(len(prompts))]).to(device)
    schedule = linear(steps, x.shape[1])
    with mixed(device):
        pooled, txt = encoders(prompts)
        table = rope(model, txt.shape[1], height // LATENTS.patch, width // LATENTS.patch, 2.0 if coarse else 1.0)
        for t, t_next in pairwise(schedule):
            now, then = (torch.full((len(prompts),), value, device=device) for value in (t, t_next))
            x = euler_step(x, velocity(model, x, now, pooled, txt, table), now, then)
    return LATENTS.unpack(x, (height, width)).cpu()
