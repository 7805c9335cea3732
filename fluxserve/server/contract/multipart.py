"""Multipart forms from raw bytes: text fields and files, within bounds."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from fluxserve.errors import InvalidRequest
from fluxserve.server.contract.strict_json import parse_json

MOST_FILES, MOST_FIELDS, LARGEST_FIELD = 16, 64, 256 * 2**10
_BRACKETS = re.compile(r"loras\[\]\[(name|scale)\]")


@dataclass
class Form:
    """texts and files: (name, value) in the order sent."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, bytes]] = field(default_factory=list)

    def fields(self) -> dict[str, Any]:
        """The text fields by name, LoRAs put together.

        Raises:
            InvalidRequest: a field is given twice, or the LoRAs cannot be told apart.
        """
        plain = [(name, value) for name, value in self.texts if not _BRACKETS.fullmatch(name)]
        for name, count in Counter(name for name, _ in plain).items():
            if count > 1:
                raise InvalidRequest(f"the field {name[:64]!r} is given {count} times; send it once", param=name[:64])
        fields: dict[str, Any] = dict(plain)
        if len(plain) < len(self.texts):
            fields["loras"] = _paired_loras(self.texts)
        elif "loras" in fields:
            fields["loras"] = _json_loras(fields["loras"])
        return fields


def parse_form(body: bytes, content_type: str) -> Form:
    """The form in a `multipart/form-data` body.

    Raises:
        InvalidRequest: malformed (`invalid_multipart`), or over a bound (`request_too_large`).
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise _malformed("the content type names no boundary")
    collector = _Collector()
    try:
        parser = MultipartParser(boundary, collector.callbacks())
        parser.write(body)
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
        self._data = bytearray()

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
        self._disposition, self._data = {}, bytearray()

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = parse_options_header(bytes(value))[1]
        self._header = bytearray(), bytearray()

    def _check_counts(self) -> None:
        if b"name" not in self._disposition:
            raise _malformed("a part has no name")
        if len(self.form.files) >= MOST_FILES and self._is_file:
            raise _too_large(f"at most {MOST_FILES} files")
        if len(self.form.texts) >= MOST_FIELDS and not self._is_file:
            raise _too_large(f"at most {MOST_FIELDS} fields")

    def _extend(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file and len(self._data) + end - start > LARGEST_FIELD:
            raise _too_large(f"at most {LARGEST_FIELD} bytes per field")
        self._data.extend(data[start:end])

    def _end(self) -> None:
        name = _text(self._disposition[b"name"])
        if self._is_file:
            self.form.files.append((name, bytes(self._data)))
        else:
            self.form.texts.append((name, _text(self._data)))

    def _finish(self) -> None:
        self.ended = True

    @property
    def _is_file(self) -> bool:
        return b"filename" in self._disposition


def _text(data: bytes | bytearray) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("a field is not UTF-8") from None


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body must be multipart/form-data: {reason}", code="invalid_multipart")


def _too_large(bound: str) -> InvalidRequest:
    return InvalidRequest(f"a form may contain {bound}", code="request_too_large")


def _json_loras(text: str) -> Any:
    try:
        return parse_json(text.encode())
    except InvalidRequest:
        raise InvalidRequest("loras must be a JSON list", param="loras", code="invalid_type") from None


def _paired_loras(texts: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """LoRAs from bracketed fields: clients group them by key or by object, so they pair by position within a key."""
    names = [value for name, value in texts if name == "loras[][name]"]
    scales = [value for name, value in texts if name == "loras[][scale]"]
    if scales and len(scales) != len(names):
        raise InvalidRequest(
            f"{len(names)} LoRA names and {len(scales)} scales cannot be paired; send loras as JSON text", param="loras"
        )
    if not scales:
        return [{"name": name} for name in names]
    try:
        return [{"name": name, "scale": float(scale)} for name, scale in zip(names, scales, strict=True)]
    except ValueError:
        raise InvalidRequest("loras[][scale] must be a number", param="loras", code="invalid_type") from None
