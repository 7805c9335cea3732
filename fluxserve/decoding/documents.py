"""JSON bodies with pictures in them: the pictures stay in the process that decodes them, the rest goes to the front."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Any

from fluxserve import wire
from fluxserve.decoding.data_urls import base64_start, decode_base64
from fluxserve.decoding.strict_json import parse_json_object
from fluxserve.errors import InvalidRequest

LONGEST_TEXT = 33_000
"""Characters of a text that goes to the front; longer ones are pictures, or refused for their length."""
LARGEST_REST = 2**20
"""Bytes of a document without its pictures."""
_BEGINNING = re.compile(rb"[A-Za-z0-9+/]{16}")
_DATA = b"data:"
_STAND_IN_BYTES = LONGEST_TEXT // 4 * 3
"""A stand-in's own text is as long as no text that is taken, so that none passes for a prompt."""


class HeldPictures:
    """What the long texts of one document hold; in it each is a stand-in, in base64 as it was.

    A stand-in keeps the head of a data: URL, and how the base64 begins; what follows nobody can guess.
    """

    def __init__(self) -> None:
        self._held: dict[bytes, bytes | None] = {}

    def read(self, body: bytes, token: bytes) -> wire.Document:
        """The document with stand-ins, the same ones for the same body and token. What was held before is let go of.

        Raises:
            InvalidRequest: as `parse_json_object` does, or too much would be left.
        """
        self.clear()
        digest, document = hashlib.sha256(body).hexdigest(), parse_json_object(body.removeprefix(BOM_UTF8))
        del body
        for place, key in list(_long_texts(document)):
            text, place[key] = place[key].encode(), None
            place[key] = self._stand_in(text, token)
        rest = json.dumps(document).encode()
        if len(rest) > LARGEST_REST:
            raise InvalidRequest(
                f"the body may hold at most {LARGEST_REST} bytes beside its pictures", code="request_too_large"
            )
        return wire.Document(rest, digest)

    def file(self, data: bytes, param: str) -> bytes:
        """What a stand-in stands for; data that is none, as it is.

        Raises:
            InvalidRequest: `invalid_{param}`: it was no base64.
        """
        found = self._held.get(data, data)
        if found is None:
            raise InvalidRequest(f"{param} holds no valid base64", param=param, code=f"invalid_{param}")
        return found

    def clear(self) -> None:
        self._held.clear()

    def _stand_in(self, text: bytes, token: bytes) -> str:
        start = base64_start(text) or 0
        beginning = match[0] if (match := _BEGINNING.match(text, start)) else b""
        number = len(self._held).to_bytes(4, "big")
        own = base64.b64encode((token + number).ljust(_STAND_IN_BYTES, b"\0"))
        try:
            content: bytes | None = decode_base64(text, start)
        except binascii.Error:
            content = None
        self._held[decode_base64(beginning + own)] = content
        head = text[: start or len(_DATA)] if text[: len(_DATA)].lower() == _DATA else b""
        return (head + beginning + own).decode()


def _long_texts(place: Any) -> Iterator[tuple[Any, Any]]:
    """(object or list, key or index) of each in a document, however deep."""
    for key in place if isinstance(place, dict) else range(len(place)):
        if isinstance(place[key], dict | list):
            yield from _long_texts(place[key])
        elif isinstance(place[key], str) and len(place[key]) > LONGEST_TEXT:
            yield place, key
