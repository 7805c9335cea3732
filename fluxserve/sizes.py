"""The rule for picture sizes: WIDTHxHEIGHT in multiples of 16."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from numbers import Integral

from fluxserve.errors import InvalidRequest

SIZE_MULTIPLE = 16
MIN_SIDE, MAX_SIDE = 64, 4096
MIN_PIXELS, MAX_PIXELS = MIN_SIDE * MIN_SIDE, MAX_SIDE * MAX_SIDE
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})", re.ASCII)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) as written, legal or not.

    Raises:
        InvalidRequest: of another form.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise _invalid(f"WIDTHxHEIGHT such as 1024x1024, or auto, got {text[:64]!r}")
    return int(match[1]), int(match[2])


def check_size(width: int, height: int, max_pixels: int = MAX_PIXELS, most_drawn: int = MAX_PIXELS) -> None:
    """Raises InvalidRequest for a size off the grid, too large or too small; it names the nearest legal size.

    max_pixels: what the server takes. most_drawn: what the model has memory for.
    """
    if not all(isinstance(side, Integral) for side in (width, height)):
        raise _invalid(f"two integers, got {width!r} and {height!r}")
    nearest = "x".join(str(side) for side in nearest_size(width, height, min(max_pixels, most_drawn)))
    got = f"got {width}x{height}; the nearest is {nearest}"
    if any(side % SIZE_MULTIPLE or not MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        raise _invalid(f"WIDTHxHEIGHT in multiples of {SIZE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE}, {got}")
    if width * height > max_pixels:
        raise _invalid(f"at most {max_pixels} pixels in all (--max-pixels), {got}")
    if width * height > most_drawn:
        raise _invalid(f"at most {most_drawn} pixels in all within the memory budget (--memory-budget), {got}")


def nearest_size(width: float, height: float, max_pixels: int) -> tuple[int, int]:
    """The legal size nearest to the one asked, in its proportions where it must shrink as far as they are legal.

    max_pixels: at least MIN_PIXELS.
    """
    sides = _on_grid(width), _on_grid(height)
    area = sides[0] * sides[1]
    if area <= max_pixels:
        return sides
    scale = math.sqrt(max_pixels / area)
    shorter = _floor(min(sides) * scale)
    longer = min(_floor(max(sides) * scale), _floor(max_pixels / shorter))
    return (shorter, longer) if sides[0] < sides[1] else (longer, shorter)


def fit_size(width: int, height: int, area: int, max_pixels: int) -> tuple[int, int]:
    """The size in which to answer a picture of width x height: its own, scaled down to `area` pixels if larger."""
    scale = min(1.0, math.sqrt(area / (width * height)))
    return nearest_size(width * scale, height * scale, max_pixels)


@dataclass(frozen=True)
class Box:
    """The size that pictures are shrunk to: the one asked, or what `fit_size` makes of the picture's own.

    max_input_pixels: the largest file that is decoded.
    """

    asked: tuple[int, ...] | None
    area: int
    max_pixels: int
    max_input_pixels: int

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) for a picture of width x height."""
        if self.asked is None:
            return fit_size(width, height, self.area, self.max_pixels)
        return self.asked[0], self.asked[1]


def image_tokens(width: int, height: int) -> int:
    """Tokens that a picture of this size is made of: one covers 16 x 16 pixels."""
    return math.ceil(width / SIZE_MULTIPLE) * math.ceil(height / SIZE_MULTIPLE)


def _on_grid(side: float) -> int:
    return min(max(math.floor(side / SIZE_MULTIPLE + 0.5) * SIZE_MULTIPLE, MIN_SIDE), MAX_SIDE)


def _floor(side: float) -> int:
    return max(math.floor(side / SIZE_MULTIPLE) * SIZE_MULTIPLE, MIN_SIDE)


def _invalid(rule: str) -> InvalidRequest:
    return InvalidRequest(f"size must be {rule}", param="size", code="invalid_size")
