"""The process that decodes uploads, one after the other.

Whatever a file does to it, the front and the model live on.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn

from fluxserve import wire
from fluxserve.decoding.documents import HeldPictures
from fluxserve.errors import InvalidRequest
from fluxserve.input_images import open_image, shrink_image
from fluxserve.memory import give_memory_back
from fluxserve.request import InputImage
from fluxserve.worker.channel import Channel
from fluxserve.worker.process import connect

LARGE_PIXELS = 2 * 2**20
"""Decoding takes up to 20 bytes each, and as many processes as there are must not take that at once."""

NICENESS = 5
"""Where there are fewer cores than work, the front goes first: what it does is short, and others wait for it."""

Shrink = Callable[[wire.Decode], tuple[InputImage, InputImage]]


def shrink(message: wire.Decode) -> tuple[InputImage, InputImage]:
    """See `input_images.shrink_image`."""
    return shrink_image(message.data, message.param, message.box, message.mask_mode)


def serve(shrink: Shrink = shrink) -> NoReturn:
    """The whole process; it ends with the front."""
    channel = connect("decoder")
    os.nice(NICENESS)
    give_memory_back()
    warnings.simplefilter("ignore")  # Pillow's, on files that are odd
    channel.send(wire.Beat("idle", 0))
    held, pieces = HeldPictures(), list[bytes]()
    while True:
        message = channel.inbox.get()
        match message:
            case wire.Piece():
                pieces.append(message.data)
            case wire.Forget():
                held.clear()
            case wire.Read():
                channel.send(wire.Began(0))
                _read(channel, message, held, pieces)
            case wire.Decode():
                channel.send(wire.Began(0))
                _answer(channel, message, held, shrink)
        del message  # the file, while it waits for the next


def _joined(pieces: list[bytes]) -> bytes:
    """All of them, which are let go of."""
    body = b"".join(pieces)
    pieces.clear()
    return body


def _read(channel: Channel, message: wire.Read, held: HeldPictures, pieces: list[bytes]) -> None:
    try:
        channel.send(held.read(_joined(pieces), message.token))
    except InvalidRequest as error:
        channel.send(wire.Failed(0, error.code, error.message, error.param))


def _pixels(message: wire.Decode) -> int:
    with open_image(message.data, message.param) as image:
        return image.width * image.height


def _answer(channel: Channel, message: wire.Decode, held: HeldPictures, shrink: Shrink) -> None:
    try:
        message = replace(message, data=held.file(message.data, message.param))
        if _pixels(message) > LARGE_PIXELS:
            channel.send(wire.Large())
            channel.inbox.get()
        picture, opacity = shrink(message)
    except InvalidRequest as error:
        channel.send(wire.Failed(0, error.code, error.message, error.param))
    else:
        channel.send(wire.Decoded(picture, opacity))
