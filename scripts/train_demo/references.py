"""The pictures of single things on nearly white, in latents: what a drawn one is compared with."""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scripts.train_demo import scenes
from scripts.train_demo.autoencoder import to_pixels
from scripts.train_demo.latents import PatchBasis


def latents(pictures: NDArray[np.uint8], basis: PatchBasis, side: int) -> Tensor:
    """(N, 16, side / 8, side / 8), by number of the thing. side: in pixels."""
    rng = Random(6)
    alone = [scenes.Scene((i,), "single") for i in range(len(pictures))]
    return torch.cat([basis.encode(to_pixels([scenes.paint(s, pictures, side, side, rng)])) for s in alone])
