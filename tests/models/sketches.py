"""Pictures to draw by, with something to see at every place."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def sketch(width: int, height: int, seed: int = 1) -> Image.Image:
    """Soft patches of colour, as (height, width) RGB."""
    levels = np.random.default_rng(seed).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def as_png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def with_hole(picture: Image.Image, left: float = 0.5) -> Image.Image:
    """The picture, transparent from the part `left` of its width on."""
    clear = picture.convert("RGBA")
    clear.paste((0, 0, 0, 0), (round(left * picture.width), 0, picture.width, picture.height))
    return clear
