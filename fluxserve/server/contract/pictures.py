"""The pictures of an edit or a variation, however a client sends them: as files, or as data: URLs in forms and JSON.

Nothing is ever fetched. Follows openai-python 3.57 `types/image_edit_params.py`, and OpenAI's edits as JSON.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fluxserve.decoding.data_urls import base64_start, decode_base64
from fluxserve.errors import InvalidRequest

Role = Literal["image", "mask", "markup"]

_ROLES: Mapping[str, Role] = {
    "image": "image",
    "images": "image",
    "image_url": "image",
    "mask": "mask",
    "mask_image": "mask",
    "markup": "markup",
}
_FIELD = re.compile(r"([A-Za-z_]+)(?:\[[A-Za-z0-9_]*\])*")
_URL = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True)
class Pictures:
    """Files to start from or to draw by, not yet looked at. images: one at least. mask: of the first."""

    images: tuple[bytes, ...]
    mask: bytes | None


def role_of(name: str) -> Role | None:
    """What a field of this name holds: image, image[], images[0][image_url], Mask and the like; None: no picture."""
    match = _FIELD.fullmatch(name)
    return _ROLES.get(match[1].lower()) if match else None


def choose_pictures(files: Iterable[tuple[str, bytes]], with_mask: bool) -> Pictures:
    """The images and the mask among what was sent by name, as files or data: URLs. An empty mask is none.

    Raises:
        InvalidRequest: no image, several masks, a URL to fetch, an unknown field, or a mask where none is taken.
    """
    found: dict[Role, list[bytes]] = {"image": [], "mask": [], "markup": []}
    unknown = []
    for name, data in files:
        role = role_of(name)
        if role is None:
            unknown.append(name[:64])
        elif data or role == "image":
            found[role].append(_content(data, name[:64], role))
    if not found["image"]:
        came = f"; what came is named {', '.join(unknown)}" if unknown else ""
        raise InvalidRequest(
            f"image is required, as a file or a data: URL{came}", param="image", code="missing_required_parameter"
        )
    _check_others(found, unknown, with_mask)
    return Pictures(tuple(found["image"]), next(iter(found["mask"]), None))


def _check_others(found: Mapping[Role, list[bytes]], unknown: list[str], with_mask: bool) -> None:
    if unknown:
        raise InvalidRequest(
            f"files are taken as image and mask, got one as {unknown[0]}", param=unknown[0], code="unknown_parameter"
        )
    if found["markup"]:
        raise InvalidRequest(
            "markup is not supported: the model reads no drawings on a picture; send a mask",
            param="markup",
            code="unsupported_value",
        )
    if found["mask"] and not with_mask:
        raise InvalidRequest("a variation takes no mask; send an edit", param="mask", code="unsupported_value")
    if len(found["mask"]) > 1:
        raise InvalidRequest("send at most one mask", param="mask", code="invalid_mask")


def take_references(fields: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Takes the pictures out of a JSON body's fields, each by its name: URLs, lists of them, and objects that hold one.

    Raises:
        InvalidRequest: what stands there is no URL.
    """
    for name in [name for name in fields if role_of(name)]:
        for url in _urls(fields.pop(name), name[:64]):
            yield name, url.encode()


def _urls(value: Any, param: str) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _urls(item, param)
    elif isinstance(value, dict):
        inner = next((value[key] for key in ("image_url", "url") if value.get(key) is not None), None)
        if inner is None:
            raise InvalidRequest(
                f"{param} must hold image_url, a data: URL; files are not kept here to be named by file_id",
                param=param,
                code="unsupported_value",
            )
        yield from _urls(inner, param)
    elif isinstance(value, str) and value:
        if value[:5].lower() != "data:" and not _URL.match(value[:64].encode()):
            raise InvalidRequest(
                f"{param} must be a data: URL such as data:image/png;base64,...", param=param, code="unsupported_value"
            )
        yield value
    elif value not in (None, ""):
        raise InvalidRequest(f"{param} must be a data: URL, got {value!r:.40}", param=param, code="invalid_type")


def _content(data: bytes, name: str, role: Role) -> bytes:
    """The file, which is the data itself or what a data: URL holds."""
    if data[:5].lower() == b"data:":
        return _decoded(data, role)
    if _URL.match(data[:64]):
        raise InvalidRequest(
            f"{name} must be sent as a file or a data: URL; other URLs are never fetched",
            param=name,
            code="unsupported_value",
        )
    return data


def _decoded(url: bytes, role: Role) -> bytes:
    start = base64_start(url)
    if start is None:
        raise InvalidRequest(
            f"{role} must be data:image/png;base64,... or the like", param=role, code=f"invalid_{_judged(role)}"
        )
    try:
        return decode_base64(url, start)
    except binascii.Error:
        raise InvalidRequest(
            f"the data: URL of {role} holds no valid base64", param=role, code=f"invalid_{_judged(role)}"
        ) from None


def _judged(role: Role) -> Role:
    return "mask" if role == "mask" else "image"
