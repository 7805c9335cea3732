"""What a training picture shows and how it is painted: things of some size at some place on a background.

Knows nothing of words (captions.py puts a scene into them) or tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Layout = Literal["single", "row", "column", "count"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
Colour = tuple[int, int, int]

COLOURS: dict[str, Colour] = {
    "white": (255, 255, 255),
    "black": (16, 16, 18),
    "gray": (140, 142, 146),
    "red": (216, 34, 38),
    "orange": (250, 140, 20),
    "yellow": (252, 220, 50),
    "green": (38, 160, 66),
    "light green": (165, 228, 160),
    "dark green": (10, 78, 40),
    "teal": (20, 150, 150),
    "blue": (34, 90, 220),
    "light blue": (160, 212, 250),
    "dark blue": (18, 32, 100),
    "purple": (128, 50, 170),
    "lavender": (205, 185, 245),
    "pink": (250, 165, 200),
    "brown": (120, 76, 44),
    "beige": (238, 222, 190),
}

CANVASES = ((128, 128), (144, 112), (112, 144), (160, 96), (96, 160), (176, 96), (96, 176))
"""(width, height): about 128 x 128 pixels of area, aspect ratios from 1:2 to 2:1, sides in multiples of 16."""

SIZES = {"tiny": 0.3, "small": 0.45, "normal": 0.8, "large": 0.96}
"""Side of a single thing in units of the canvas's short side."""

PLACES: dict[str, tuple[float, float]] = {
    "left": (0.26, 0.5),
    "right": (0.74, 0.5),
    "top": (0.5, 0.26),
    "bottom": (0.5, 0.74),
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
}
"""Where the middle of a small thing lies, in units of width and height."""


@dataclass(frozen=True)
class Scene:
    """concepts: the things, in reading order. size, place: of a single thing; count: how many of it.

    colour: the background's name; None: nothing is said about it, and it is nearly white.
    """

    concepts: tuple[int, ...]
    layout: Layout
    size: str = "normal"
    place: str | None = None
    count: int = 1
    colour: str | None = None


def random_scene(rng: Random, n_concepts: int, share_single: float) -> Scene:
    """A scene of random things; `share_single` of them show one thing in the middle."""
    colour = rng.choice(list(COLOURS)) if rng.random() < 0.4 else None
    return replace(_random_arrangement(rng, n_concepts, share_single), colour=colour)


def _random_arrangement(rng: Random, n_concepts: int, share_single: float) -> Scene:
    things = tuple(rng.randrange(n_concepts) for _ in range(3))
    if rng.random() < share_single:
        return Scene(things[:1], "single", size="large" if rng.random() < 0.06 else "normal")
    kind = rng.random()
    if kind < 0.65:
        return Scene(things[:2], "row" if rng.random() < 0.7 else "column")
    if kind < 0.8:
        return Scene(things[:1], "count", count=rng.randint(2, 6))
    if kind < 0.94:
        return Scene(things[:1], "single", rng.choice(["tiny", "small"]), rng.choice([None, *PLACES]))
    return Scene(things, "row")


@dataclass(frozen=True)
class Spot:
    """One thing on the canvas: middle and side in pixels."""

    concept: int
    x: float
    y: float
    side: float


def spots(scene: Scene, width: int, height: int) -> list[Spot]:
    """Where each thing lies."""
    short = min(width, height)
    if scene.layout == "single":
        x, y = PLACES[scene.place] if scene.place else (0.5, 0.5)
        return [Spot(scene.concepts[0], x * width, y * height, SIZES[scene.size] * short)]
    if scene.layout == "count":
        things, columns = scene.concepts * scene.count, _columns(scene.count, width, height)
    else:
        things, columns = scene.concepts, len(scene.concepts) if scene.layout == "row" else 1
    return _grid(things, columns, width, height)


def _columns(count: int, width: int, height: int) -> int:
    """Of the ways to lay `count` things in a grid, the one with the largest cells (the wider on a tie)."""
    return max(range(1, count + 1), key=lambda columns: (min(width / columns, height / -(-count // columns)), columns))


def _grid(things: tuple[int, ...], columns: int, width: int, height: int) -> list[Spot]:
    rows = -(-len(things) // columns)
    side = min(0.94 * width / columns, 0.94 * height / rows)
    placed = []
    for i, concept in enumerate(things):
        row, column = divmod(i, columns)
        in_row = min(columns, len(things) - row * columns)
        x = width / 2 + (column - (in_row - 1) / 2) * min(width / columns, side * 1.15)
        y = height / 2 + (row - (rows - 1) / 2) * min(height / rows, side * 1.15)
        placed.append(Spot(concept, x, y, side))
    return placed


def paint(scene: Scene, pictures: NDArray[np.uint8], width: int, height: int, rng: Random) -> NDArray[np.uint8]:
    """(height, width, 3). The background varies a little with `rng`.

    Sizes and places do not: shifted by a pixel a thing has other latents, and each shift would have to be learned.
    """
    pixels = np.array(Image.new("RGB", (width, height), background(scene.colour, rng)))
    for spot in spots(scene, width, height):
        stamp(pixels, pictures[spot.concept], spot.x, spot.y, spot.side)
    return pixels


def background(colour: str | None, rng: Random) -> Colour:
    """A named colour, varied by a few per cent, or nearly white."""
    if colour is None:
        return (rng.randint(242, 255), rng.randint(242, 255), rng.randint(242, 255))
    r, g, b = (max(0, min(255, value + rng.randint(-8, 8))) for value in COLOURS[colour])
    return r, g, b


def stamp(pixels: NDArray[np.uint8], picture: NDArray[np.uint8], x: float, y: float, side: float) -> None:
    """Lays a premultiplied RGBA picture over `pixels` in place, cut at the edges."""
    n = max(4, round(side))
    left, top = round(x - n / 2), round(y - n / 2)
    scaled = np.asarray(Image.fromarray(picture, "RGBa").resize((n, n), Image.Resampling.BILINEAR)).astype(np.uint16)
    y0, y1, x0, x1 = max(0, top), min(pixels.shape[0], top + n), max(0, left), min(pixels.shape[1], left + n)
    part = scaled[y0 - top : y1 - top, x0 - left : x1 - left]
    under = pixels[y0:y1, x0:x1].astype(np.uint16)
    pixels[y0:y1, x0:x1] = np.minimum(255, part[..., :3] + under * (255 - part[..., 3:]) // 255).astype(np.uint8)
