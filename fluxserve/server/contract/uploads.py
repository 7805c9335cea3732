"""Uploaded pictures: who may have one decoded when, in processes of their own, before a job is made of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from fluxserve import wire
from fluxserve.completion import edit_area
from fluxserve.decoding.decoder import DECODE_S, Decoder
from fluxserve.input_images import EditInputs, pair_inputs
from fluxserve.request import MaskMode
from fluxserve.server.contract.pictures import Pictures
from fluxserve.server.contract.resolve import ServingLimits
from fluxserve.server.limits.turns import Room, Turns
from fluxserve.sizes import Box, check_size, parse_size

PROCESSES = 3
"""One large picture is decoded, one may wait for that, and there is one for what is small."""
ROOM = Room(128, 512 * 2**20, 30.0, "too many uploads wait to be decoded; try again later")


def upload_box(size: str, limits: ServingLimits, redux: bool = False) -> Box:
    """What the pictures of a request are shrunk to. size: as the client asked for it. redux: for the image encoder.

    Raises:
        InvalidRequest: `invalid_size`.
    """
    config, asked = limits.config, None
    if size != "auto":
        asked = parse_size(size)
        check_size(*asked, config.max_pixels)
    most = min(config.max_pixels, limits.card.max_pixels or config.max_pixels)
    return Box(
        asked,
        edit_area(limits.card),
        most,
        config.max_input_pixels,
        limits.card.redux if redux else limits.card.references,
    )


async def read_pictures(decoder: Decoder, pictures: Pictures, box: Box, mask_mode: MaskMode = "alpha") -> EditInputs:
    """Uploads and the mask of the first, as small pictures.

    Raises:
        InvalidRequest: `invalid_image` or `invalid_mask`: no PNG, JPEG or WebP, damaged, too large, too slow to
            decode, or the mask does not fit.
    """
    if box.references is not None:
        return await _read_references(decoder, pictures, box, mask_mode)
    decoded = await decoder.decode(wire.Decode(pictures.images[0], "image", box))
    if pictures.mask is None:
        own = decoded.picture.transparent
        return EditInputs(decoded.picture, decoded.opacity if own else None, own_mask=own)
    kept = await decoder.decode(wire.Decode(pictures.mask, "mask", box, mask_mode))
    return pair_inputs(decoded.picture, kept.opacity)


async def _read_references(decoder: Decoder, pictures: Pictures, box: Box, mask_mode: MaskMode) -> EditInputs:
    """As a model with references reads them."""
    images, mask = pictures.images, pictures.mask
    assert box.references is not None
    box = replace(box, references=box.references.of(len(images)))
    decoded = [await decoder.decode(wire.Decode(image, "image", box.of_references)) for image in images]
    first, *others = (each.picture for each in decoded)
    if mask is None and (others or not first.transparent):
        return EditInputs(first, None, tuple(others))
    kept = await decoder.decode(wire.Decode(images[0], "image", box))  # the size drawn may be another
    masked = kept if mask is None else await decoder.decode(wire.Decode(mask, "mask", box, mask_mode))
    return replace(pair_inputs(first, masked.opacity, tuple(others)), kept=kept.picture, own_mask=mask is None)


class UploadReader:
    """Reads uploads, of three clients at once and one of each. module: of the processes. limit_s: for one file."""

    def __init__(self, module: str = "fluxserve.decoding", limit_s: float = DECODE_S, room: Room = ROOM) -> None:
        large = asyncio.Lock()
        self._all = tuple(Decoder(module, limit_s, large) for _ in range(PROCESSES))
        self._turns = Turns(self._all, 1, room)

    @asynccontextmanager
    async def turn(self, client: str, size: int) -> AsyncIterator[Decoder]:
        """A process, once it is the client's turn: for as long as its upload is parsed and decoded. size: bytes of it.

        Raises:
            QueueFull: too many are waiting, or it was not its turn for too long.
        """
        decoder = await self._turns.take(client, size)
        try:
            await decoder.begin(size)
            yield decoder
        finally:
            decoder.forget()
            self._turns.give_back(decoder, client)

    def close(self) -> None:
        """Kills the processes."""
        for decoder in self._all:
            decoder.close()
