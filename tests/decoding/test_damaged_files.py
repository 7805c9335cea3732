"""Files of all formats, damaged in all ways: each is a picture or a refusal that names its parameter, nothing else."""

from __future__ import annotations

import asyncio
import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from fluxserve import wire
from fluxserve.decoding.decoder import DECODE_S, Decoder
from fluxserve.errors import InvalidRequest
from fluxserve.input_images import shrink_image
from fluxserve.sizes import Box

BOX = Box((64, 64), 0, 0, 2**20)
BASE = Image.effect_noise((40, 24), 90).convert("RGB")
ORIENTATION, RATING = 0x0112, 0x4746


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int = 6) -> Image.Exif:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    made[0x010E] = "a picture"
    return made


def valid_files() -> list[bytes]:
    modes = ("1", "L", "LA", "P", "RGB", "RGBA")
    frames = {"save_all": True, "append_images": [BASE.rotate(90), BASE.rotate(180)]}
    pngs = [encoded(BASE.convert(mode), "PNG") for mode in modes]
    pngs += [encoded(BASE.convert("P"), "PNG", transparency=bytes(range(256)), exif=exif())]
    pngs += [encoded(Image.new("I;16", (40, 24), 40_000), "PNG"), encoded(BASE, "PNG", **frames)]
    pngs += [encoded(BASE, "PNG", icc_profile=bytes(200), dpi=(72, 72))]
    jpegs = [encoded(BASE.convert(mode), "JPEG", exif=exif()) for mode in ("L", "RGB", "CMYK")]
    jpegs += [encoded(BASE, "JPEG", progressive=True, comment=b"a", icc_profile=bytes(200))]
    webps = [encoded(BASE.convert("RGBA"), "WEBP", lossless=lossless, exif=exif()) for lossless in (False, True)]
    return [*pngs, *jpegs, *webps, encoded(BASE, "WEBP", **frames)]


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        yield data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        at += length + 12


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return data_of(parts)


def data_of(parts: list[bytes]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def scratched(data: bytes, chance: random.Random) -> bytes:
    """With a few bytes changed, taken out, put in, doubled; or cut."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(damaged) + 1), chance.randint(1, 8)
        match chance.randrange(5):
            case 0:
                damaged[at : at + length] = chance.randbytes(len(damaged[at : at + length]))
            case 1:
                damaged[at : at + 4] = chance.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"])
            case 2:
                del damaged[at : at + length]
            case 3:
                damaged[at:at] = damaged[chance.randrange(len(damaged) + 1) :][: chance.randint(1, 64)]
            case _ if chance.random() < 0.2:
                del damaged[at:]
    return bytes(damaged)


def damaged_files(count: int, seed: int) -> Iterator[bytes]:
    """PNGs in two of three cases in their chunks, with sums that are right again: else the sum alone would tell."""
    chance, files = random.Random(seed), valid_files()
    for _ in range(count):
        data = chance.choice(files)
        if not data.startswith(b"\x89PNG") or chance.random() < 0.3:
            yield scratched(data, chance)
            continue
        chunks = list(png_chunks(data))
        at = chance.randrange(len(chunks))
        kind, inner = chunks[at]
        chunks[at : at + 1] = chance.choice(
            [[(kind, scratched(inner, chance))], [], [chunks[at]] * 2, [chance.choice(chunks), chunks[at]]]
        )
        yield png_of(chunks)


async def outcomes(files: Iterator[bytes]) -> list[str]:
    """How each file ends, in the process that decodes uploads: a size, or the refusal's words."""
    decoder, ends = Decoder("fluxserve.decoding", DECODE_S, asyncio.Lock()), []
    for data in files:
        try:
            decoded = await decoder.decode(wire.Decode(data, "image", BOX))
        except InvalidRequest as error:
            ends.append(error.message if error.param == "image" else "another parameter")
        else:
            assert Image.open(io.BytesIO(decoded.picture.data)).size == (64, 64)
            ends.append("read")
    decoder.close()
    await asyncio.sleep(0.2)  # in which it is reaped
    return ends


def unexpected(ends: list[str]) -> list[str]:
    """Ends that no file may have: the process was ended, or took too long."""
    expected = ("must be a complete", "must have at most")
    return [end for end in ends if end != "read" and not any(words in end for words in expected)]


@pytest.mark.fault(78)
def test_damaged_files_are_pictures_or_refused() -> None:
    ends = asyncio.run(outcomes(damaged_files(500, seed=1)))
    assert len(ends) == 500
    assert 50 < ends.count("read") < 450, "some can be read, some cannot"
    assert not unexpected(ends)


def typed(kind: int, count: int, value: bytes) -> bytes:
    """EXIF that asks for a quarter turn, with one more tag of this type."""
    entries = struct.pack("<HHII", ORIENTATION, 3, 1, 6) + struct.pack("<HHI", RATING, kind, count) + value
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + bytes(4)


@pytest.mark.fault(78)
@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("kind", [*range(14), 255])
@pytest.mark.parametrize("count", [0, 1, 4, 2**31])
def test_exif_with_a_turn_and_a_tag_of_an_odd_type(kind: int, count: int) -> None:
    for name in ("JPEG", "PNG", "WEBP"):
        data = encoded(BASE, name, exif=typed(kind, count, b"\xff\xff\xff\xff"))
        picture, _ = shrink_image(data, "image", BOX)
        assert (picture.width, picture.height) == (24, 40), "stood upright"


@pytest.mark.fault(78)
@pytest.mark.parametrize("param", ["image", "mask"])
@pytest.mark.parametrize("options", [{}, {"transparency": 0}, {"transparency": bytes(range(256))}])
def test_an_indexed_png_without_a_palette(param: str, options: dict[str, Any]) -> None:
    whole = encoded(BASE.convert("P"), "PNG", **options)
    without = png_of([chunk for chunk in png_chunks(whole) if chunk[0] != b"PLTE"])
    with pytest.raises(InvalidRequest, match="must be a complete") as refusal:
        shrink_image(without, param, BOX)
    assert (refusal.value.param, refusal.value.code) == (param, f"invalid_{param}")
