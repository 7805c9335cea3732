"""Uploaded pictures, looked at before a job is made of them.

A file is told by its bytes, never by the name or type it was sent under. Decoding runs in threads of its own.
"""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from PIL import ExifTags, Image

from fluxserve.errors import InvalidRequest

DECODE_TIMEOUT_S = 10.0
_FORMATS = ("PNG", "JPEG", "WEBP")
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap width and height."""
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    KeyError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises on damaged files; its words hold heap addresses and are never repeated."""


@dataclass(frozen=True)
class Upload:
    """A readable upload. width, height: upright, after EXIF. has_alpha: has an alpha channel, or a transparent colour.

    transparent: some pixel is not opaque.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    has_alpha: bool
    transparent: bool


class UploadReader:
    """Reads uploads, two at once. max_pixels: the largest it decodes."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="picture")

    async def read(self, data: bytes, param: str, code: str) -> Upload:
        """The picture that `data` holds.

        Raises:
            InvalidRequest: with `code`: no PNG, JPEG or WebP, damaged, too large, or too slow to decode.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DECODE_TIMEOUT_S):
                return await loop.run_in_executor(self._threads, _inspect, data, self._max_pixels, param, code)
        except TimeoutError:
            raise InvalidRequest(
                f"{param} takes longer than {DECODE_TIMEOUT_S:g} s to decode", param=param, code=code
            ) from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _inspect(data: bytes, max_pixels: int, param: str, code: str) -> Upload:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(image, max_pixels, param, code)
            image.load()
            sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
            has_alpha = image.has_transparency_data
            transparent = has_alpha and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
            width, height = image.size[::-1] if sideways else image.size
            return Upload(data, width, height, has_alpha, transparent)
    except _UNREADABLE:
        raise InvalidRequest(
            f"{param} must be a whole PNG, JPEG or WebP file, got {len(data)} bytes that are none",
            param=param,
            code=code,
        ) from None


def _check_pixels(image: Image.Image, max_pixels: int, param: str, code: str) -> None:
    if image.width * image.height > max_pixels:
        raise InvalidRequest(
            f"{param} must have at most {max_pixels} pixels (--max-input-pixels), got {image.width}x{image.height}",
            param=param,
            code=code,
        )
