"""JSON from model files: plain data, strictly read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fluxserve.errors import CheckpointError

MAX_JSON_BYTES = 100_000_000


def read_json(path: Path) -> dict[str, Any]:
    """The object a file holds.

    Raises:
        CheckpointError: it cannot be read, or holds no JSON object, or names a field twice.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: is too large for a JSON file of a model")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def parse_json(raw: bytes, source: str) -> dict[str, Any]:
    """The object in `raw`; `source` is for the message. Raises: as `read_json`."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source}: holds no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: holds no JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a field is named twice")
    return value
