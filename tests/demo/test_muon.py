"""The optimizer of the demo's training, against torch's own where it has one."""

from __future__ import annotations

import torch
from torch import nn

from scripts.train_demo.muon import Muon, orthogonalise, orthogonalised

SHAPES = ((32, 16), (16, 32), (32, 16), (8, 4, 3, 3))


def drawn() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def test_matrices_of_one_shape_are_made_orthogonal_each_for_itself() -> None:
    directions = drawn()
    together = orthogonalised(directions)
    for direction, update in zip(directions, together, strict=True):
        matrix = direction.flatten(1)
        stretch = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        assert torch.allclose(update.flatten(1), orthogonalise(matrix) * stretch, atol=0.02)
        sizes = torch.linalg.svdvals(update.flatten(1) / stretch)
        assert float(sizes.min()) > 0.5
        assert float(sizes.max()) < 1.3


def test_the_others_take_the_steps_of_adamw() -> None:
    ours, theirs = ([nn.Parameter(tensor.clone()) for tensor in drawn()] for _ in range(2))
    muon = Muon([], ours, lr=0.02, adam_lr=0.01, decay=0.1)
    adamw = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
    for seed in range(5):
        torch.manual_seed(seed)
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        muon.step()
        adamw.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-6)


def test_what_has_no_gradient_stays() -> None:
    still, moving = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4))
    muon = Muon([still, moving], [], lr=0.02, adam_lr=0.01, decay=0.1)
    moving.grad = torch.eye(4)
    muon.step()
    assert torch.equal(still, torch.ones(4, 4))
    assert not torch.equal(moving, torch.ones(4, 4))
