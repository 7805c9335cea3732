"""The codes that the demo's CLIP and transformer are taught with: a scene in numbers, and back by a linear map."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from scripts.train_demo import codes
from scripts.train_demo.scenes import Scene

THINGS, RANK = 1000, 100


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """(THINGS, 16, 8, 8), mixtures of RANK patterns, the later ones weaker."""
    torch.manual_seed(0)
    strengths = torch.linspace(1, 0.1, RANK)
    return (torch.randn(THINGS, RANK) * strengths @ torch.randn(RANK, 16 * 64)).view(THINGS, 16, 8, 8)


@pytest.fixture(scope="module")
def fitted(pictures: Tensor) -> codes.Codes:
    return codes.fit(pictures)


def test_codes_are_what_clips_last_layer_can_give(fitted: codes.Codes) -> None:
    alone = fitted.alone()
    assert alone.shape == (THINGS, 192)
    assert torch.allclose(alone.mean(-1), torch.zeros(THINGS), atol=1e-5)
    assert torch.allclose(alone.var(-1, unbiased=False), torch.ones(THINGS), atol=1e-3)


def test_a_linear_map_reads_the_picture_from_the_code(fitted: codes.Codes, pictures: Tensor) -> None:
    known, wanted = with_one(fitted.alone()), pictures.flatten(1)
    seen, unseen = slice(0, THINGS // 2), slice(THINGS // 2, None)
    reading = torch.linalg.lstsq(known[seen], wanted[seen], driver="gelsd").solution
    error = (known[unseen] @ reading - wanted[unseen]).square().sum()
    assert error < 0.1 * (wanted[unseen] - wanted[unseen].mean(0)).square().sum()


def with_one(vectors: Tensor) -> Tensor:
    return torch.cat([vectors, torch.ones(len(vectors), 1)], dim=1)


@pytest.mark.parametrize(
    "other",
    [
        Scene((2, 1), "row"),
        Scene((1, 2), "column"),
        Scene((1, 2, 3), "row"),
        Scene((1, 2), "row", colour="red"),
        Scene((1,), "count", count=2),
        Scene((1,), "single", "tiny", "top left"),
    ],
)
def test_another_arrangement_has_another_code(fitted: codes.Codes, other: Scene) -> None:
    here, there = fitted([Scene((1, 2), "row"), other])
    assert (here - there).square().mean() > 0.01


def test_kept_in_a_file(fitted: codes.Codes, tmp_path: Path) -> None:
    fitted.save(tmp_path / codes.FILE)
    asked = [Scene((5,), "single"), Scene((7, 8), "column", colour="teal")]
    assert torch.allclose(codes.Codes.load(tmp_path / codes.FILE)(asked), fitted(asked), atol=1e-2)
