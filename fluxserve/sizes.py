"""The rule for picture sizes: WIDTHxHEIGHT in multiples of 16."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from numbers import Integral
from operator import le
from typing import Literal

from fluxserve.errors import InvalidRequest

SIZE_MULTIPLE = 16
MIN_SIDE, MAX_SIDE = 64, 4096
MIN_PIXELS, MAX_PIXELS = MIN_SIDE * MIN_SIDE, MAX_SIDE * MAX_SIDE
MAX_INPUT_IMAGES = 16
"""Pictures of one edit, of any model; the card may allow less."""
LONGEST_REFERENCE = 8
"""Times its width, or its height: FLUX.2's limit."""
SHRINK = 0.995
"""At a time, of a picture that exceeds an area on the grid alone."""
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


Filter = Literal["lanczos", "bicubic"]


@dataclass(frozen=True)
class Frame:
    """How a picture is brought to a size: scaled to `scaled`, of which the middle is kept. Both (width, height).

    Where `scaled` is the smaller, all of it is kept, in the middle of its reflection.
    """

    scaled: tuple[int, int]
    size: tuple[int, int]
    filter: Filter = "lanczos"

    @property
    def reflects(self) -> bool:
        """Whether there is something around the picture."""
        return self.scaled != self.size and all(map(le, self.scaled, self.size))

    @property
    def edges(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) of the middle, on the scaled picture."""
        left, top = (int((whole - kept) / 2) for whole, kept in zip(self.scaled, self.size, strict=True))
        return left, top, left + self.size[0], top + self.size[1]


@dataclass(frozen=True)
class References:
    """How a model reads the pictures that it draws by.

    most: in one request, unless the server allows more, up to `limit`. area: pixels that larger pictures are shrunk to.
    sizes: what each picture is scaled to instead, whichever of them (width, height) is nearest in its proportions.
    whole_area: pixels that a picture is shrunk to which comes alone; no edge of it is cut, but reflected up to the
    grid. None: it is read as one of several.
    """

    most: int
    limit: int
    area: int
    sizes: tuple[tuple[int, int], ...] = ()
    filter: Filter = "lanczos"
    whole_area: int | None = None

    def of(self, pictures: int) -> References:
        """The rule for each of so many pictures."""
        return self if pictures == 1 else replace(self, whole_area=None)

    def frame(self, width: int, height: int, param: str = "image") -> Frame:
        """What becomes of a picture of width x height. param: names it.

        Raises:
            InvalidRequest: `invalid_{param}`: smaller or longer than the model reads.
        """
        if self.sizes:
            nearest = min(self.sizes, key=lambda size: (abs(width / height - size[0] / size[1]), size))
            return Frame(nearest, nearest, self.filter)
        if min(width, height) < MIN_SIDE or max(width, height) > LONGEST_REFERENCE * min(width, height):
            raise InvalidRequest(
                f"{param} must have sides of at least {MIN_SIDE} pixels, the longer at most {LONGEST_REFERENCE} times "
                f"the shorter, for this model; got {width}x{height}",
                param=param,
                code=f"invalid_{param}",
            )
        if self.whole_area is not None:
            return _whole(width, height, self.whole_area)
        scale = min(1.0, math.sqrt(self.area / (width * height)))
        scaled = max(int(width * scale), MIN_SIDE), max(int(height * scale), MIN_SIDE)
        return Frame(scaled, (_floor(scaled[0]), _floor(scaled[1])))

    def frame_of_size(self, size: tuple[int, int], width: int, height: int, param: str = "image") -> Frame:
        """What brings a picture of width x height to the size drawn: cut as the reference is where that has this size.

        What is kept of a picture then lies where the model has seen it.
        """
        if size == (width, height):
            return Frame(size, size)
        frame = self.frame(width, height, param)
        return frame if frame.size == size else Frame(size, size)


@dataclass(frozen=True)
class Box:
    """The size that pictures are shrunk to: the one asked, or what `fit_size` makes of the picture's own.

    max_input_pixels: the largest file that is decoded. references: of a model that reads pictures so; their size then
    is what the first of them has as a reference, within max_pixels.
    """

    asked: tuple[int, ...] | None
    area: int
    max_pixels: int
    max_input_pixels: int
    references: References | None = None

    def frame_of(self, width: int, height: int, param: str) -> Frame:
        """For a picture of width x height. Raises InvalidRequest as `References.frame`."""
        if self.asked is not None:
            size = self.asked[0], self.asked[1]
        elif self.references is not None:
            size = nearest_size(*self.references.frame(width, height, param).size, self.max_pixels)
        else:
            size = fit_size(width, height, self.area, self.max_pixels)
        if self.references is None:
            return Frame(size, size)
        return self.references.frame_of_size(size, width, height, param)

    @property
    def of_references(self) -> Box:
        """For pictures as references, whatever size is drawn."""
        return replace(self, asked=None, max_pixels=MAX_PIXELS)


def image_tokens(width: int, height: int) -> int:
    """Tokens that a picture of this size is made of: one covers 16 x 16 pixels."""
    return math.ceil(width / SIZE_MULTIPLE) * math.ceil(height / SIZE_MULTIPLE)


def _on_grid(side: float) -> int:
    return min(max(math.floor(side / SIZE_MULTIPLE + 0.5) * SIZE_MULTIPLE, MIN_SIDE), MAX_SIDE)


def _whole(width: int, height: int, area: int) -> Frame:
    """A picture's own size, or less: what holds it on the grid has at most `area` pixels."""
    scale = min(1.0, math.sqrt(area / (width * height)), MAX_SIDE / max(width, height))
    while True:
        scaled = round(width * scale), round(height * scale)
        size = _ceil(scaled[0]), _ceil(scaled[1])
        if size[0] * size[1] <= area:
            return Frame(scaled, size)
        scale *= SHRINK


def _ceil(side: int) -> int:
    return max(-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE, MIN_SIDE)


def _floor(side: float) -> int:
    return max(math.floor(side / SIZE_MULTIPLE) * SIZE_MULTIPLE, MIN_SIDE)


def _invalid(rule: str) -> InvalidRequest:
    return InvalidRequest(f"size must be {rule}", param="size", code="invalid_size")
