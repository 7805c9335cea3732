"""What several test folders share: tiny checkpoints, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fluxserve.models.synthetic import Layout
from fluxserve.weights.synthetic.write import write_model

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """tiny_checkpoint(variant="schnell", layout="diffusers") -> its folder; each kind is written once."""
    made: dict[tuple[str, Layout], Path] = {}

    def make(variant: str = "schnell", layout: Layout = "diffusers") -> Path:
        if (variant, layout) not in made:
            folder = tmp_path_factory.mktemp("checkpoints") / f"{variant}-{layout}"
            write_model(folder, "tiny", variant, layout, seed=1)
            made[variant, layout] = folder
        return made[variant, layout]

    return make
