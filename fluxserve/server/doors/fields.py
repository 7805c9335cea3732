"""What several doors do to the fields they are sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fluxserve.sizes import nearest_size

ROUNDED = "rounded:size"


def rounded_size(width: Any, height: Any, max_pixels: int) -> tuple[dict[str, Any], list[str]]:
    """(size fields, warnings). Other programs' grids are finer: what is off ours is rounded, with a warning.

    What is no pair of positive integers goes on as it is, to be refused.
    """
    if not all(type(side) is int and side > 0 for side in (width, height)):
        return {name: side for name, side in (("width", width), ("height", height)) if side is not None}, []
    nearest = nearest_size(width, height, max_pixels)
    return {"size": f"{nearest[0]}x{nearest[1]}"}, [] if nearest == (width, height) else [ROUNDED]


def ignored(names: Iterable[str]) -> list[str]:
    """The warnings for fields that are known, and mean nothing here."""
    return [f"ignored:{name}" for name in names]
