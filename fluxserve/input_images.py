"""The pictures a request starts from: read, and looked at before anything is made of them.

A file is told by its bytes, never by its name or the type it was sent under.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import ExifTags, Image, ImageOps

from fluxserve.errors import InvalidRequest

ImageSource = bytes | str | Path | Image.Image
"""A PNG, JPEG or WebP file's content, its path, or a picture that Pillow holds."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
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
class InputImage:
    """A readable picture. data: the file. width, height: upright, after EXIF.

    has_alpha: has an alpha channel, or a transparent colour. transparent: some pixel is not opaque.
    """

    data: bytes = field(repr=False)
    width: int
    height: int
    has_alpha: bool
    transparent: bool


@dataclass(frozen=True)
class EditInputs:
    """The pictures of one request. mask: None where the whole picture may change."""

    image: InputImage
    mask: InputImage | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the picture."""
        return self.image.width, self.image.height


def read_inputs(image: ImageSource | None, mask: ImageSource | None = None) -> EditInputs | None:
    """The picture and its mask, from a caller on this machine; None without a picture.

    Raises:
        InvalidRequest: one of them cannot be read, or the mask does not fit.
    """
    if image is None:
        if mask is not None:
            raise InvalidRequest("mask needs an image", param="mask", code="invalid_mask")
        return None
    pictures = [inspect_image(_content(image, "image"), "image")]
    if mask is not None:
        pictures.append(inspect_image(_content(mask, "mask"), "mask"))
    return pair_inputs(*pictures)


def pair_inputs(image: InputImage, mask: InputImage | None = None) -> EditInputs:
    """A picture with its mask; a picture that is transparent somewhere is its own.

    Raises:
        InvalidRequest: `invalid_mask`: of another size, or nowhere transparent.
    """
    if mask is None:
        return EditInputs(image, image if image.transparent else None)
    if (mask.width, mask.height) != (image.width, image.height):
        raise InvalidRequest(
            f"mask must have the image's size {image.width}x{image.height}, got {mask.width}x{mask.height}",
            param="mask",
            code="invalid_mask",
        )
    if not mask.transparent:
        lacks = "no transparent pixel" if mask.has_alpha else "no alpha channel"
        raise InvalidRequest(
            f"mask has {lacks}, so that nothing would change: transparent pixels are redrawn, whatever their colour",
            param="mask",
            code="invalid_mask",
        )
    return EditInputs(image, mask)


@contextmanager
def open_image(data: bytes, param: str) -> Iterator[Image.Image]:
    """The picture, for as long as the context lasts.

    Raises:
        InvalidRequest: `invalid_{param}`: no PNG, JPEG or WebP, or damaged, also if that shows inside the context.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            yield image
    except _UNREADABLE:
        raise InvalidRequest(
            f"{param} must be a complete PNG, JPEG or WebP file; the {len(data)} bytes received are {_kind(data)}",
            param=param,
            code=f"invalid_{param}",
        ) from None


def inspect_image(data: bytes, param: str, max_pixels: int | None = None) -> InputImage:
    """Decodes the whole file. max_pixels: the largest that is decoded; None: as large as Pillow allows.

    Raises:
        InvalidRequest: `invalid_{param}`: no PNG, JPEG or WebP, damaged, or too large.
    """
    with open_image(data, param) as image:
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise InvalidRequest(
                f"{param} must have at most {max_pixels} pixels (--max-input-pixels), got {image.width}x{image.height}",
                param=param,
                code=f"invalid_{param}",
            )
        image.load()
        sideways = image.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        has_alpha = image.has_transparency_data
        transparent = has_alpha and image.convert("RGBA").getchannel("A").getextrema() != (255, 255)
        width, height = image.size[::-1] if sideways else image.size
        return InputImage(data, width, height, has_alpha, transparent)


def _content(source: ImageSource, param: str) -> bytes:
    """The file that the source is, names, or would be."""
    if isinstance(source, bytes):
        return source
    if isinstance(source, Image.Image):
        return _as_png(source)
    try:
        return Path(source).read_bytes()
    except OSError as error:
        raise InvalidRequest(
            f"{param} cannot be read from {str(source)!r}: {error.strerror}", param=param, code=f"invalid_{param}"
        ) from error


def _as_png(picture: Image.Image) -> bytes:
    upright = ImageOps.exif_transpose(picture)
    buffer = io.BytesIO()
    (upright if upright.mode in _PNG_MODES else upright.convert("RGBA")).save(buffer, "PNG")
    return buffer.getvalue()


_BRANDS = {
    b"avif": "an AVIF",
    b"avis": "an AVIF",
    b"heic": "a HEIC",
    b"heix": "a HEIC",
    b"hevc": "a HEIC",
    b"mif1": "a HEIF",
    b"msf1": "a HEIF",
}
"""Of files of ISO base media (ISO/IEC 23008-12), the first that is found among a file's own."""
_BEGINNINGS = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a TIFF",
    b"MM\0+": "a TIFF",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"8BPS": "a Photoshop",
    b"\0\0\1\0": "an ICO",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"<?xml": "an XML or SVG",
    b"iVBOR": "a base64 text, not the",
    b"/9j/": "a base64 text, not the",
    b"UklGR": "a base64 text, not the",
}


def _kind(data: bytes) -> str:
    """What the file is instead, by its first bytes, to end a sentence with."""
    start = data[:64].lstrip()
    brands = data[8:64] if data[4:8] == b"ftyp" else b""
    kind = next((kind for brand, kind in _BRANDS.items() if brand in brands), None)
    kind = kind or next((kind for beginning, kind in _BEGINNINGS.items() if start.startswith(beginning)), None)
    return "not one" if kind is None else f"{kind} file"
