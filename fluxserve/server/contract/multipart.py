"""Multipart forms from raw bytes: text fields and files, within bounds."""

from __future__ import annotations

import codecs
import io
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from fluxserve.errors import InvalidRequest
from fluxserve.server.contract.loras import gather_loras, is_lora_field
from fluxserve.server.contract.pictures import role_of
from fluxserve.sizes import MAX_INPUT_IMAGES

MOST_FIELDS, LARGEST_FIELD = 64, 256 * 2**10
MOST_FILES = MAX_INPUT_IMAGES + 1
"""Pictures and a mask."""
_CHARSETS = ("ascii", "utf-8", "utf-16", "iso8859", "cp125", "gb", "big5", "shift_jis", "euc", "koi8")
"""How the names of the codecs begin that text may be in."""


_WEIGHT = re.compile(r"redux(\[[0-9]*\])?")


@dataclass
class Form:
    """texts and files: (name, value) in the order sent."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, bytes]] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The text fields by name, LoRAs put together, and redux' weights as a comma list.

        Raises:
            InvalidRequest: a field is given twice, or the LoRAs cannot be told apart.
        """
        weights = [value for name, value in self.texts if _WEIGHT.fullmatch(name)]
        plain = [pair for pair in self.texts if not is_lora_field(pair[0]) and not _WEIGHT.fullmatch(pair[0])]
        plain += [("redux", ",".join(weights))] if weights else []
        for name, count in Counter(name for name, _ in plain).items():
            if count > 1:
                raise InvalidRequest(f"the field {name[:64]!r} is given {count} times; send it once", param=name[:64])
        fields: dict[str, Any] = dict(plain)
        loras = [item for item in self.texts if is_lora_field(item[0])]
        if loras:
            fields["loras"] = gather_loras(loras)
        return fields


def parse_form(body: Iterable[bytes], content_type: str) -> Form:
    """The form in a `multipart/form-data` body, which comes in pieces.

    Raises:
        InvalidRequest: malformed (`invalid_multipart`), or over a bound (`request_too_large`).
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _malformed("the content type names no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        for piece in body:
            parser.write(piece)
        parser.finalize()
    except FormParserError:
        raise _malformed("its parts do not follow RFC 7578") from None
    if not collector.ended:
        raise _malformed("it ends before its last boundary")
    return collector.form


class _Collector:
    """Gathers the parser's callbacks into a Form, and stops it at the first bound that is passed."""

    def __init__(self) -> None:
        self.form = Form()
        self.ended = False
        self._header: tuple[bytearray, bytearray] = bytearray(), bytearray()
        self._disposition: dict[bytes, bytes] = {}
        self._type: tuple[bytes, dict[bytes, bytes]] = b"", {}
        self._data = io.BytesIO()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._check_counts,
            "on_part_data": self._extend,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._disposition, self._type, self._data = {}, (b"", {}), io.BytesIO()

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = parse_options_header(bytes(value))[1]
        elif name.lower() == b"content-type":
            self._type = parse_options_header(bytes(value))
        self._header = bytearray(), bytearray()

    def _check_counts(self) -> None:
        if b"name" not in self._disposition:
            raise _malformed("a part has no name")
        if len(self.form.files) >= MOST_FILES and self._is_file:
            raise self._too_many_files()
        if len(self.form.texts) >= MOST_FIELDS and not self._is_file:
            raise _too_large(f"at most {MOST_FIELDS} fields")

    def _too_many_files(self) -> InvalidRequest:
        """One picture too many is called that."""
        names = [*(name for name, _ in self.form.files), _text(self._disposition[b"name"])]
        if sum(role_of(name) == "image" for name in names) > MAX_INPUT_IMAGES:
            return InvalidRequest(f"send at most {MAX_INPUT_IMAGES} images", param="image", code="too_many_images")
        return _too_large(f"at most {MOST_FILES} files")

    def _extend(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file and self._data.tell() + end - start > LARGEST_FIELD:
            name = _text(self._disposition[b"name"])[:64]
            raise _too_large(f"at most {LARGEST_FIELD} bytes per field, which {name!r} exceeds")
        self._data.write(memoryview(data)[start:end])

    def _end(self) -> None:
        name = _text(self._disposition[b"name"])
        if self._is_file:
            self.form.files.append((name, self._data.getvalue()))
        else:
            self.form.texts.append((name, _text(self._data.getvalue(), self._type[1].get(b"charset", b"utf-8"))))

    def _finish(self) -> None:
        self.ended = True

    @property
    def _is_file(self) -> bool:
        """By its file name, else by its type or its own name: pictures may come as text, or as bytes without either."""
        declared = self._type[0].lower()
        named = b"filename" in self._disposition or role_of(self._disposition[b"name"].decode("latin-1")) is not None
        return named or declared.startswith(b"image/") or declared == b"application/octet-stream"


def _text(data: bytes, charset: bytes = b"utf-8") -> str:
    """charset: as the part declares it."""
    try:
        codec = codecs.lookup(charset.decode("ascii")).name
        if not codec.startswith(_CHARSETS):
            raise LookupError
        return data.decode(codec)
    except LookupError:
        raise _malformed("a field's charset is unknown") from None
    except UnicodeError:
        raise _malformed("a field is not UTF-8, or not in the charset that it declares") from None


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body must be multipart/form-data: {reason}", code="invalid_multipart")


def _too_large(bound: str) -> InvalidRequest:
    return InvalidRequest(f"a form may contain {bound}", code="request_too_large")
