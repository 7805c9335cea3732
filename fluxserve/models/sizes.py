"""Sizes of a network, asked of its tensors' shapes and its config, which must agree. Builds nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from fluxserve.errors import CheckpointError
from fluxserve.tensors.reader import TensorReader

Config = Mapping[str, int | tuple[int, ...]]
"""The integers and lists of integers of a config.json; nothing else of it is read."""


def integers(config: Mapping[str, Any]) -> Config:
    """What may be read of a config.json: its integers and its lists of integers.

    Where it describes a network of pictures and text, those of its `text_config` go first.
    """
    text = config.get("text_config")
    kept: dict[str, int | tuple[int, ...]] = {}
    for key, value in {**config, **(text if isinstance(text, dict) else {})}.items():
        if type(value) is int:
            kept[key] = value
        elif isinstance(value, list) and value and all(type(item) is int for item in value):
            kept[key] = tuple(value)
    return kept


def count(keys: Collection[str], prefix: str) -> int:
    """How many numbered entries follow `prefix`: one more than the largest number, but no more than there are keys."""
    numbers = {key[len(prefix) :].split(".", 1)[0] for key in keys if key.startswith(prefix)}
    sane = [int(number) for number in numbers if number.isascii() and number.isdigit() and len(number) < 10]
    return min(1 + max(sane, default=-1), len(keys))


class SizeReader:
    """Raises CheckpointError, which names the file, wherever a size is missing or told in two ways."""

    def __init__(self, reader: TensorReader, config: Config) -> None:
        self._reader = reader
        self._config = config

    def error(self, message: str) -> CheckpointError:
        return CheckpointError(f"{self._reader.source}: {message}")

    def shape(self, key: str, rank: int) -> tuple[int, ...]:
        """The shape of a tensor that must be there, with `rank` positive sizes."""
        if key not in self._reader.keys():
            raise self.error(f"missing {key}")
        shape = self._reader.shape(key)
        if len(shape) != rank or min(shape) < 1:
            raise self.error(f"{key} is {shape}, expected {rank} sizes")
        return shape

    def agreed(self, name: str, by_tensors: int) -> int:
        """A size that the tensors tell, and the config must not contradict."""
        by_config = self._config.get(name, by_tensors)
        if by_config != by_tensors:
            raise self.error(f"{name} is {by_config} in its config, {by_tensors} by its tensors")
        return by_tensors

    def told(self, name: str, otherwise: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        """A size that only the config tells."""
        return self._config.get(name, otherwise)

    def divided(self, what: str, width: int, by: int) -> int:
        if width % by:
            raise self.error(f"{what} {width} is no multiple of {by}")
        return width // by

    def rotary_axes(
        self, count: int, head_dim: int, published: tuple[int, ...], named: str = "axes_dims_rope"
    ) -> tuple[int, ...]:
        """How the head dimension is shared among positions; `published` where no config tells. named: there."""
        axes = self.told(named, published if head_dim == sum(published) else None)
        even = isinstance(axes, tuple) and all(axis >= 2 and axis % 2 == 0 for axis in axes)
        if not isinstance(axes, tuple) or not even or len(axes) != count or sum(axes) != head_dim:
            raise self.error(f"{named} {axes} are not {count} even widths that add up to the head width {head_dim}")
        return axes
