"""The pictures a request starts from or draws by: read, and looked at before anything is made of them.

A file is told by its bytes, never by its name or the type it was sent under.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from PIL import ExifTags, Image, ImageChops

from fluxserve.errors import FluxserveError, InvalidRequest
from fluxserve.request import InputImage, MaskMode
from fluxserve.sizes import Box, Filter, Frame

ImageSource = bytes | str | Path | Image.Image
"""A PNG, JPEG or WebP file's content, its path, or a picture that Pillow holds."""

_FORMATS = ("PNG", "JPEG", "WEBP")
_PNG_MODES = ("1", "L", "LA", "I", "I;16", "P", "RGB", "RGBA")
_BAND_ROWS = 128
_FILTERS: Mapping[Filter, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How each EXIF orientation is stood upright."""


@dataclass(frozen=True)
class EditInputs:
    """The pictures of one request. mask: of the first; None where all of it may change. others: those after the first.

    kept: the first picture again at the size drawn, where it has been shrunk to another. own_mask: the mask is nothing
    but what is transparent in the first picture.
    """

    image: InputImage
    mask: InputImage | None = None
    others: tuple[InputImage, ...] = ()
    kept: InputImage | None = None
    own_mask: bool = False

    @property
    def images(self) -> tuple[InputImage, ...]:
        return (self.image, *self.others)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the first picture."""
        return self.image.width, self.image.height


def read_inputs(
    images: ImageSource | Sequence[ImageSource] | None,
    mask: ImageSource | None = None,
    mask_mode: MaskMode = "alpha",
) -> EditInputs | None:
    """The pictures, or the one, and the mask of the first, from a caller on this machine; None without a picture.

    Raises:
        InvalidRequest: one of them cannot be read, the mask does not fit, or there is none for its mode.
    """
    check_mask_mode(mask_mode, mask is not None)
    given = (images,) if isinstance(images, bytes | str | Path | Image.Image) else images or ()
    if not given:
        if mask is not None:
            raise InvalidRequest("mask needs an image", param="mask", code="invalid_mask")
        return None
    first, *others = (inspect_image(_content(image, "image"), "image") for image in given)
    return pair_inputs(first, None if mask is None else _read_mask(mask, mask_mode), tuple(others))


def _read_mask(mask: ImageSource, mask_mode: MaskMode) -> InputImage:
    data = _content(mask, "mask")
    if mask_mode != "alpha":
        with open_image(data, "mask") as file:
            data = _png(shade_as_clear(upright(file), mask_mode))
    return inspect_image(data, "mask")


def check_mask_mode(mask_mode: MaskMode, has_mask: bool) -> None:
    """Raises InvalidRequest for a mode that is not known, or that needs a mask and has none."""
    if mask_mode not in get_args(MaskMode):
        raise InvalidRequest(
            f"mask_mode must be one of {', '.join(get_args(MaskMode))}, got {str(mask_mode)[:40]!r}", param="mask_mode"
        )
    if mask_mode != "alpha" and not has_mask:
        raise InvalidRequest(f"mask_mode {mask_mode} needs a mask", param="mask_mode", code="conflicting_parameters")


def pair_inputs(image: InputImage, mask: InputImage | None = None, others: tuple[InputImage, ...] = ()) -> EditInputs:
    """Pictures with the mask of the first; a picture that comes alone and is transparent somewhere is its own.

    Raises:
        InvalidRequest: `invalid_mask`: of another size, or repaints nothing.
    """
    if mask is None:
        own = image.transparent and not others
        return EditInputs(image, image if own else None, others, own_mask=own)
    if (mask.width, mask.height) != (image.width, image.height):
        raise InvalidRequest(
            f"mask must have the image's size {image.width}x{image.height}, got {mask.width}x{mask.height}",
            param="mask",
            code="invalid_mask",
        )
    if not mask.transparent:
        lacks = "asks for no pixel" if mask.has_alpha else "has no alpha channel"
        raise InvalidRequest(
            f"mask {lacks}, so that nothing would change: transparent pixels are redrawn, whatever their colour; "
            "with mask_mode white or black, those of that colour",
            param="mask",
            code="invalid_mask",
        )
    return EditInputs(image, mask, others)


@contextmanager
def open_image(data: bytes, param: str) -> Iterator[Image.Image]:
    """The picture, for as long as the context lasts.

    Raises:
        InvalidRequest: `invalid_{param}`: no PNG, JPEG or WebP, or damaged, also if that shows inside the context.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            yield image
    except FluxserveError:
        raise
    except (
        Exception
    ):  # on a client's bytes the library may raise anything; its words hold addresses, so none is repeated
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
        _check_pixels(image, param, max_pixels)
        picture = upright(image)
        has_alpha, transparent = _transparency(picture)
        return InputImage(data, *picture.size, has_alpha, transparent)


def shrink_image(data: bytes, param: str, box: Box, mask_mode: MaskMode = "alpha") -> tuple[InputImage, InputImage]:
    """(the picture as the model will read it, what of it is transparent), each as a small PNG at the size of `box`.

    mask_mode: how the picture is read as a mask. Both give the width, the height and the transparency of the file,
    which is decoded once.

    Raises:
        InvalidRequest: as `inspect_image`.
    """
    with open_image(data, param) as image:
        _check_pixels(image, param, box.max_input_pixels)
        picture = upright(image)
        if mask_mode != "alpha":
            picture = shade_as_clear(picture, mask_mode)
        has_alpha, transparent = _transparency(picture)
        frame = box.frame_of(*picture.size, param)
        alpha = opacity(picture, frame) if transparent else Image.new("L", frame.size, 255)
        drawn, kept = _png(scaled(picture, frame)), _png(Image.merge("LA", (Image.new("L", frame.size), alpha)))
        return (
            InputImage(drawn, *picture.size, has_alpha, transparent),
            InputImage(kept, *picture.size, has_alpha, transparent),
        )


def upright(image: Image.Image) -> Image.Image:
    """Decoded, stood up as EXIF says, 8 bits a channel."""
    image.load()
    if image.mode == "P" and image.palette is None:
        raise ValueError("an indexed picture without a palette")
    picture = _stood_up(image)
    if not picture.mode.startswith("I"):
        return picture
    # 16 bits, which Pillow would clip at 255: divided by 257 and rounded down, as its own arithmetic on integers does.
    return picture.convert("I").point(lambda level: level * (1 / 257) + 0.5 / 257).convert("L")


def _stood_up(image: Image.Image) -> Image.Image:
    """As EXIF says. Nothing else of EXIF is looked at: its other tags may be of any type."""
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def scaled(picture: Image.Image, frame: Frame) -> Image.Image:
    """In RGB, in this frame, without the file's metadata; what is transparent shows white."""
    flat = _flat(picture) if picture.mode != "RGB" or picture.has_transparency_data else picture
    drawn = _placed(flat.resize(frame.scaled, _FILTERS[frame.filter]), frame)
    drawn.info = {}  # profiles and the like, which a PNG would carry on
    return drawn


def _flat(picture: Image.Image) -> Image.Image:
    """In RGB, on white."""
    flat = Image.new("RGB", picture.size)
    for top, band in _bands(picture):
        if band.has_transparency_data:
            clear = band.convert("RGBA")
            band = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
        flat.paste(band.convert("RGB"), (0, top))
    return flat


def shade_as_clear(mask: Image.Image, mode: MaskMode) -> Image.Image:
    """The mask as one whose transparency tells: with `white` the brighter, the clearer; with `black` the darker.

    What was transparent counts as black.
    """
    clear = Image.new("LA", mask.size)
    for top, band in _bands(mask):
        coloured = band.convert("RGBA")
        bright = Image.alpha_composite(Image.new("RGBA", coloured.size, "black"), coloured).convert("L")
        clear.paste(Image.merge("LA", (bright, bright if mode == "black" else ImageChops.invert(bright))), (0, top))
    return clear


def opacity(picture: Image.Image, frame: Frame) -> Image.Image:
    """Its alpha channel in this frame: 0..255, 0 where it is transparent."""
    alpha = Image.new("L", picture.size)
    for top, band in _bands(picture):
        alpha.paste(_alpha(band), (0, top))
    return _placed(alpha.resize(frame.scaled, Image.Resampling.BOX), frame)


def _placed(picture: Image.Image, frame: Frame) -> Image.Image:
    """A scaled picture's middle, or all of it with its reflection around it, in which its edge is not repeated."""
    if not frame.reflects:
        return picture.crop(frame.edges)
    placed = Image.new(picture.mode, frame.size)
    left, top, _, _ = frame.edges
    sideways = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    across, down = picture.width - 1, picture.height - 1
    for y in (-down, down, 0):
        for x, image in ((-across, sideways), (across, sideways), (0, picture)):
            tile = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM) if y else image
            placed.paste(tile, (x - left, y - top))
    return placed


def _alpha(picture: Image.Image) -> Image.Image:
    return picture.convert("RGBA").getchannel("A")


def _bands(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """(first row, its rows): a large picture converted as a whole takes several times its memory."""
    for top in range(0, picture.height, _BAND_ROWS):
        yield top, picture.crop((0, top, picture.width, min(top + _BAND_ROWS, picture.height)))


def _check_pixels(image: Image.Image, param: str, max_pixels: int | None) -> None:
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise InvalidRequest(
            f"{param} must have at most {max_pixels} pixels (--max-input-pixels), got {image.width}x{image.height}",
            param=param,
            code=f"invalid_{param}",
        )


def _transparency(picture: Image.Image) -> tuple[bool, bool]:
    """(whether it has an alpha channel or a transparent colour, whether some pixel is not opaque)."""
    has_alpha = picture.has_transparency_data
    return has_alpha, has_alpha and any(_alpha(band).getextrema() != (255, 255) for _, band in _bands(picture))


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
    turned = _stood_up(picture)
    plain = turned if turned.mode in _PNG_MODES else turned.convert("RGBA")
    return _png(plain)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
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
