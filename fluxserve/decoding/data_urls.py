"""Pictures in text: base64 as clients write it, alone or in a data: URL. Follows RFC 2397 and RFC 4648."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

LONGEST_HEAD = 256
"""Bytes of a data: URL before its content."""
_BLOCK_BYTES = 2**20
"""Decoded at once: so long do other threads wait."""
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def base64_start(url: bytes) -> int | None:
    """Where the base64 of a data: URL begins; None: it holds none, or is no such URL."""
    head, comma, _ = url[:LONGEST_HEAD].partition(b",")
    is_base64 = comma and head[:5].lower() == b"data:" and head.lower().rstrip().endswith(b";base64")
    return len(head) + 1 if is_base64 else None


def decode_base64(text: bytes, start: int = 0) -> bytes:
    """Also without padding, with white space, percent-encoded, and in the alphabet for URLs. start: of it in the text.

    Raises:
        binascii.Error: it is none.
    """
    decoded, rest, ended = io.BytesIO(), b"", False
    for block in _blocks(text, start):
        block = rest + unquote_to_bytes(block).translate(_URL_SAFE, b" \t\r\n")
        digits = block.rstrip(b"=")
        if ended and digits:
            raise binascii.Error("padding inside")
        ended = ended or len(digits) < len(block)
        whole = len(block) if ended else len(digits) // 4 * 4
        decoded.write(base64.b64decode(_padded(digits[:whole]), validate=True))
        rest = digits[whole:]
    decoded.write(base64.b64decode(_padded(rest), validate=True))
    return decoded.getvalue()


def _blocks(text: bytes, start: int) -> Iterator[bytes]:
    """Parts of the text; none ends inside a percent-encoded byte."""
    while start < len(text):
        end = start + _BLOCK_BYTES
        escape = text.rfind(b"%", end - 2, end)
        end = escape if escape >= 0 else end
        yield text[start:end]
        start = end


def _padded(digits: bytes) -> bytes:
    return digits + b"=" * (-len(digits) % 4)
