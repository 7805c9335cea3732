"""What WebUI's clients list before they draw, and the texts of a PNG."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from fluxserve.engine import Engine
from fluxserve.errors import InvalidRequest
from fluxserve.server.doors.webui_fields import SAMPLER, SCHEDULER

_EMPTY = (
    "sd-vae",
    "embeddings",
    "hypernetworks",
    "face-restorers",
    "realesrgan-models",
    "prompt-styles",
    "latent-upscale-modes",
    "scripts",
)
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_CHUNKS, _MOST_TEXT = 1000, 2**20
"""Of one PNG: chunks that are looked at, and bytes of their texts together, compressed or not."""
_INTERNATIONAL = re.compile(rb"([^\0]{1,79})\0([\0\1])\0[^\0]*\0[^\0]*\0(.*)", re.DOTALL)


def lists(models: Mapping[str, Engine]) -> dict[str, Any]:
    """By route. models: those served, by their names."""
    loras = {name for model in models.values() if model.card for name in model.card.loras}
    return {
        "sd-models": [_checkpoint(name) for name in models],
        "samplers": [{"name": SAMPLER, "aliases": ["euler", "k_euler"], "options": {}}],
        "schedulers": [
            {
                "name": SCHEDULER.lower(),
                "label": SCHEDULER,
                "aliases": None,
                "default_rho": -1.0,
                "need_inner_model": False,
            }
        ],
        "upscalers": [{"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4}],
        "loras": [{"name": name, "alias": name, "path": "", "metadata": {}} for name in sorted(loras)],
        "cmd-flags": {},
        **{name: [] for name in _EMPTY},
    }


def _checkpoint(name: str) -> dict[str, Any]:
    return {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}


def texts_in(png: bytes) -> dict[str, str]:
    """The texts of a PNG by keyword (PNG, 3rd edition, 11.3.3), up to a bound. Pixels are not decoded.

    Raises:
        InvalidRequest: it is no PNG.
    """
    if not png.startswith(_SIGNATURE):
        raise InvalidRequest("image must be a PNG file", param="image", code="invalid_image")
    return dict(_texts(png))


def _texts(png: bytes) -> Iterator[tuple[str, str]]:
    position, room = len(_SIGNATURE), _MOST_TEXT
    for _ in range(_MOST_CHUNKS):
        if position + 12 > len(png) or room <= 0:
            return
        length, kind = struct.unpack_from(">I4s", png, position)
        chunk = png[position + 8 : position + 8 + min(length, room)]
        if kind == b"tEXt" and b"\0" in chunk:
            keyword, _, text = chunk.partition(b"\0")
            room -= len(chunk)
            yield keyword.decode("latin-1"), text.decode("latin-1")
        elif kind == b"iTXt" and (match := _INTERNATIONAL.fullmatch(chunk)):
            content = _inflated(match[3], room) if match[2] == b"\1" else match[3]
            room -= len(content)
            yield match[1].decode("latin-1"), content.decode(errors="replace")
        position += 12 + length


def _inflated(text: bytes, most: int) -> bytes:
    """most: bytes, more than none, after which it is cut."""
    try:
        return zlib.decompressobj().decompress(text, most)
    except zlib.error:
        return b""
