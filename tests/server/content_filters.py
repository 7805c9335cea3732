"""A content filter, as an operator would write one."""

from __future__ import annotations

import io
import time

from PIL import Image


def no_dogs(prompt: str, image: bytes | None) -> str | None:
    if "bug" in prompt:
        raise RuntimeError("the filter is broken")
    return "no dogs here" if "dog" in prompt else None


def no_red(prompt: str, image: bytes | None) -> str | None:
    """Pictures, told by their first pixel."""
    if image is None:
        return None
    red, *others = Image.open(io.BytesIO(image)).convert("RGB").getpixel((0, 0))
    return "no red pictures here" if red > 200 and max(others) < 50 else None


def slow_about_cats(prompt: str, image: bytes | None) -> str | None:
    time.sleep(4.0 if "cat" in prompt else 0.0)
    return None


def slow(prompt: str, image: bytes | None) -> str | None:
    time.sleep(60)
    return None
