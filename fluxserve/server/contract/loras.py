"""LoRAs in the spellings that forms, JSON and the clients' serializers give them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fluxserve.decoding.strict_json import parse_json_object
from fluxserve.errors import InvalidRequest

_FIELD = re.compile(r"(loras?)(?:\[([0-9]*)\])?(?:\[(name|scale)\])?")


def is_lora_field(name: str) -> bool:
    """loras, loras[], loras[0], loras[][name], loras[0][scale], and the same of lora."""
    return _FIELD.fullmatch(name) is not None


def gather_loras(items: Iterable[tuple[str, Any]]) -> list[Any]:
    """The LoRAs that the fields of these names and values list: names, objects, JSON text of either, or lists of them.

    Raises:
        InvalidRequest: JSON text that is none, or names and scales that cannot be told apart.
    """
    whole: list[Any] = []
    parts: dict[str, dict[str, list[Any]]] = {}
    for name, value in items:
        match = _FIELD.fullmatch(name)
        assert match is not None
        if match[3] is None:
            whole += _listed(value)
        else:
            parts.setdefault(match[2] or "", {"name": [], "scale": []})[match[3]].append(value)
    return whole + [lora for part in parts.values() for lora in _paired(part["name"], part["scale"])]


def _listed(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    if isinstance(value, list):
        return [lora for item in value for lora in _listed(item)]
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        return _listed(_from_json(value))
    return [value]


def _from_json(text: str) -> Any:
    try:
        return parse_json_object(b'{"loras":%s}' % text.encode())["loras"]
    except InvalidRequest:
        raise InvalidRequest("loras must be names, or JSON", param="loras", code="invalid_type") from None


def _paired(names: list[Any], scales: list[Any]) -> list[dict[str, Any]]:
    """Clients group parts by key or by object, so they pair by position within a key."""
    if scales and len(scales) != len(names):
        raise InvalidRequest(
            f"{len(names)} LoRA names and {len(scales)} scales cannot be paired; send loras as JSON text", param="loras"
        )
    if not scales:
        return [{"name": name} for name in names]
    try:
        return [{"name": name, "scale": float(scale)} for name, scale in zip(names, scales, strict=True)]
    except (TypeError, ValueError):
        raise InvalidRequest("the scale of a LoRA must be a number", param="loras", code="invalid_type") from None
