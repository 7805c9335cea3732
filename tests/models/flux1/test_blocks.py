"""What a block computes in place is what it computes with gradients, whatever else is in its batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fluxserve.models.flux1.blocks import DoubleStreamBlock, SingleStreamBlock
from fluxserve.models.flux2.transformer import SwiGLU
from fluxserve.models.parts.attention import rotary_table
from fluxserve.models.parts.norms import modulated_norm
from fluxserve.models.parts.streams import OneStream

WIDTH, HEADS, TOKENS = 64, 4, 12
MAKERS = {
    "single": lambda: SingleStreamBlock(WIDTH, HEADS, 256),
    "double": lambda: DoubleStreamBlock(WIDTH, HEADS, 256),
    "gated": lambda: OneStream(WIDTH, HEADS, 192, 96, SwiGLU(), bias=False),
}


def _run(kind: str, block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    rope = rotary_table(torch.randint(0, 9, (TOKENS, 3), generator=generator).float(), (4, 6, 6), 10_000)
    rows = torch.randn(1, 12, 1, WIDTH, generator=generator).expand(len(x), -1, -1, -1)
    if kind == "double":
        img, txt = block(x[:, :8], x[:, 8:], rows.flatten(1), rope)
        return torch.cat([img, txt], dim=1)
    if kind == "gated":
        return block.joint(x, rows[:, :3].unbind(1), rope)  # type: ignore[operator, no-any-return]
    return block(x, rows[:, :3].flatten(1), rope)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("batch", [1, 2])
def test_in_place_equals_with_gradients(kind: str, batch: int) -> None:
    torch.manual_seed(0)
    block, x = MAKERS[kind](), torch.randn(batch, TOKENS, WIDTH)
    before = x.clone()
    trained = _run(kind, block, x.requires_grad_())
    trained.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for n, p in block.named_parameters() if "mod" not in n)
    with torch.no_grad():
        drawn = _run(kind, block, x.detach())
    assert torch.equal(x, before), "a block's input is its caller's"
    assert torch.allclose(drawn, trained, atol=1e-5)


def test_a_norm_takes_each_sample_by_its_own_rows() -> None:
    torch.manual_seed(0)
    x, shift, scale = torch.randn(3, TOKENS, WIDTH), torch.randn(3, 1, WIDTH), torch.randn(3, 1, WIDTH)
    plain = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-6).sqrt() * (1 + scale) + shift
    together = modulated_norm(x, shift, scale)
    assert torch.allclose(together, plain, atol=1e-5)
    alone = [modulated_norm(*(part[i : i + 1] for part in (x, shift, scale))) for i in range(3)]
    assert torch.equal(together, torch.cat(alone))
