"""Uploaded pictures: who may have one decoded when, in processes of their own, before a job is made of them."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from fluxserve import wire
from fluxserve.completion import edit_area
from fluxserve.decoding.decoder import DECODE_S, Decoder
from fluxserve.errors import QueueFull
from fluxserve.input_images import EditInputs, Redrawn, pair_inputs
from fluxserve.server.contract.resolve import ServingLimits
from fluxserve.sizes import Box, check_size, parse_size

PROCESSES = 2
MOST_WAITING, MOST_WAITING_BYTES, LONGEST_WAIT_S = 128, 128 * 2**20, 30.0
_MOST_CLIENTS = 1_000


def upload_box(size: str, limits: ServingLimits) -> Box:
    """What the pictures of a request are shrunk to. size: as the client asked for it.

    Raises:
        InvalidRequest: `invalid_size`.
    """
    config, asked = limits.config, None
    if size != "auto":
        asked = parse_size(size)
        check_size(*asked, config.max_pixels)
    most = min(config.max_pixels, limits.card.max_pixels or config.max_pixels)
    return Box(asked, edit_area(limits.card), most, config.max_input_pixels, limits.card.references)


@dataclass(eq=False)
class _Waiting:
    """One request that wants a process. size: bytes it holds."""

    client: str
    size: int
    turn: asyncio.Future[Decoder]


class UploadReader:
    """Reads uploads, of two clients at once and one of each: nobody's files hold all processes.

    The client who was served longest ago goes first. module: what decodes, as a process. limit_s: for one file.
    """

    def __init__(self, module: str = "fluxserve.decoding", limit_s: float = DECODE_S) -> None:
        self._idle = [Decoder(module, limit_s) for _ in range(PROCESSES)]
        self._all = tuple(self._idle)
        self._waiting: list[_Waiting] = []
        self._busy: set[str] = set()
        self._served_at: OrderedDict[str, float] = OrderedDict()
        self._mean_s = 0.5

    async def read_references(
        self,
        images: Sequence[bytes],
        mask: bytes | None,
        box: Box,
        client: str,
        redrawn: Redrawn = "transparent",
    ) -> EditInputs:
        """Uploads as a model with references reads them, and the first one's mask, as small pictures.

        Raises: as `read`.
        """
        async with self._turn(client, sum(map(len, images)) + len(mask or b"")) as decoder:
            decoded = [await decoder.decode(wire.Decode(image, "image", box.of_references)) for image in images]
            first, *others = (each.picture for each in decoded)
            if mask is None and (others or not first.transparent):
                return EditInputs(first, None, tuple(others))
            kept = await decoder.decode(wire.Decode(images[0], "image", box))  # the size drawn may be another
            masked = kept if mask is None else await decoder.decode(wire.Decode(mask, "mask", box, redrawn))
            return replace(pair_inputs(first, masked.opacity, tuple(others)), kept=kept.picture)

    async def read(
        self, image: bytes, mask: bytes | None, box: Box, client: str, redrawn: Redrawn = "transparent"
    ) -> EditInputs:
        """An upload and its mask, as small pictures. redrawn: what of the mask is.

        Raises:
            InvalidRequest: `invalid_image` or `invalid_mask`: no PNG, JPEG or WebP, damaged, too large, too slow to
                decode, or the mask does not fit.
            QueueFull: too many are waiting, or it was not its turn for too long.
        """
        async with self._turn(client, len(image) + len(mask or b"")) as decoder:
            decoded = await decoder.decode(wire.Decode(image, "image", box))
            if mask is None:
                return EditInputs(decoded.picture, decoded.opacity if decoded.picture.transparent else None)
            return pair_inputs(decoded.picture, (await decoder.decode(wire.Decode(mask, "mask", box, redrawn))).opacity)

    def close(self) -> None:
        """Kills the processes."""
        for decoder in self._all:
            decoder.close()

    @asynccontextmanager
    async def _turn(self, client: str, size: int) -> AsyncIterator[Decoder]:
        """A process, once it is the client's turn."""
        decoder = await self._wait(client, size)
        began = time.monotonic()
        try:
            yield decoder
        finally:
            self._mean_s += 0.1 * (time.monotonic() - began - self._mean_s)
            self._free(decoder, client)

    async def _wait(self, client: str, size: int) -> Decoder:
        self._admit(client, size)
        waiting = _Waiting(client, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._hand_out()
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                return await asyncio.shield(waiting.turn)
        except BaseException as error:
            if waiting.turn.done():  # in the moment it was given up
                self._free(waiting.turn.result(), client)
            else:
                self._waiting.remove(waiting)
            if isinstance(error, TimeoutError):
                raise self._full() from None
            raise

    def _admit(self, client: str, size: int) -> None:
        """Half of the room is for others than this client."""
        mine = [waiting for waiting in self._waiting if waiting.client == client]
        for those, share in ((self._waiting, 1.0), (mine, 0.5)):
            held = sum(waiting.size for waiting in those)
            if those and (len(those) >= share * MOST_WAITING or held + size > share * MOST_WAITING_BYTES):
                raise self._full()

    def _full(self) -> QueueFull:
        wait_s = len(self._waiting) * self._mean_s
        return QueueFull("too many uploads wait to be decoded; try again later", retry_after_s=max(1.0, wait_s))

    def _hand_out(self) -> None:
        """Gives free processes to waiting clients that have none."""
        while self._idle:
            free = [waiting for waiting in self._waiting if waiting.client not in self._busy]
            if not free:
                return
            chosen = min(free, key=lambda waiting: self._served_at.get(waiting.client, 0.0))
            self._waiting.remove(chosen)
            self._busy.add(chosen.client)
            chosen.turn.set_result(self._idle.pop())

    def _free(self, decoder: Decoder, client: str) -> None:
        self._idle.append(decoder)
        self._busy.discard(client)
        self._served_at[client] = time.monotonic()
        self._served_at.move_to_end(client)
        if len(self._served_at) > _MOST_CLIENTS:
            self._served_at.popitem(last=False)
        self._hand_out()
