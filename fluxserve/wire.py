"""The messages between the front and the worker, and how they travel.

A frame is the header's length (4 bytes, big-endian), a JSON header, then raw blobs whose lengths stand in the header:

    {"type": "Finished", "fields": {"job_id": 7, "image": {"data": 0, ...}}, "blobs": [51423]}

Every `bytes` field becomes a blob and is replaced by its number. The type hints of the message say how to read a
field, so a frame can make nothing but the dataclasses named in it, and lengths are checked before anything is read.
"""

from __future__ import annotations

import asyncio
import json
import struct
import types
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, BinaryIO, Union, get_args, get_origin, get_type_hints

from fluxserve.config import PipelineConfig
from fluxserve.errors import FluxserveError
from fluxserve.request import GeneratedImage, GenerationRequest, InputImage, MaskMode, ModelCard, Timings
from fluxserve.scheduling import Stage
from fluxserve.sizes import Box

MAX_HEADER_BYTES = 4 * 2**20
MAX_BLOB_BYTES = 256 * 2**20
_LENGTH = struct.Struct(">I")


class WireError(FluxserveError):
    """The other side sent what is no message: too long, cut short, or of the wrong shape."""

    code = "wire_error"


# Front to worker.


@dataclass(frozen=True)
class Load:
    """The first message: what to load. ageing: see `scheduling.rank`.

    threads: how many to compute with, unless the environment says; None: all. shared: the descriptor, inherited, of a
    file in memory in which workers hold weights together; None: there is one worker.
    """

    config: PipelineConfig
    ageing: float
    threads: int | None = None
    shared: int | None = None


@dataclass(frozen=True)
class Describe:
    """The first message to a process that loads nothing: answered by Described or Unusable, and its end."""

    config: PipelineConfig


@dataclass(frozen=True)
class Submit:
    """A job to run. waited_s: how long it has waited in the front's queue."""

    job_id: int
    request: GenerationRequest
    waited_s: float


@dataclass(frozen=True)
class Cancel:
    """Drop the job at the next boundary; answered by nothing."""

    job_id: int


# Front to decoder, and back.


@dataclass(frozen=True)
class Piece:
    """The next bytes of a body that is to be read; answered by nothing."""

    data: bytes


@dataclass(frozen=True)
class Read:
    """The pieces were all: read them as a JSON object. Answered by Began, then Document or Failed.

    token: what stand-ins are made of, unknown to clients.
    """

    token: bytes


@dataclass(frozen=True)
class Document:
    """What was read, as JSON with stand-ins for its pictures, and the body's SHA-256 in hexadecimal digits."""

    rest: bytes
    digest: str


@dataclass(frozen=True)
class Forget:
    """Let go of what was read; answered by nothing."""


@dataclass(frozen=True)
class Decode:
    """Decode this file, or what it stands in for; `param` names it.

    Answered by Began, Large if it is, then Decoded or Failed.
    """

    data: bytes
    param: str
    box: Box
    mask_mode: MaskMode = "alpha"


@dataclass(frozen=True)
class Large:
    """The file to decode holds a large picture: it waits for GoOn."""


@dataclass(frozen=True)
class GoOn:
    """No other large picture is being decoded."""


@dataclass(frozen=True)
class Decoded:
    """See `input_images.shrink_image`."""

    picture: InputImage
    opacity: InputImage


# Worker to front.


@dataclass(frozen=True)
class Loading:
    """Progress of the load: `done` of `total` bytes of `stage` (total 0: not known)."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Ready:
    """Loaded, and a warm-up image was finite. max_batch: how many samples are stepped together."""

    card: ModelCard
    max_batch: int


@dataclass(frozen=True)
class Described:
    """What the model would be, loaded beside nothing else. free_bytes: what the device has to give now."""

    card: ModelCard
    free_bytes: int


@dataclass(frozen=True)
class Unusable:
    """The worker cannot serve this configuration; it exits with `exit_code`, one of `exit_codes.REFUSALS`."""

    exit_code: int
    message: str


@dataclass(frozen=True)
class Beat:
    """A sign of life from the main loop: it now begins `stage` (or goes on with it) for images of `pixels` in all."""

    stage: Stage
    pixels: int


@dataclass(frozen=True)
class Measured:
    """`stage` took `seconds` for images of `pixels` in all (one denoise step; one image's decode)."""

    stage: Stage
    pixels: int
    seconds: float


@dataclass(frozen=True)
class Began:
    """The job is taken up: from here on a death of the worker counts as one of its attempts."""

    job_id: int


@dataclass(frozen=True)
class Prepared:
    """The prompt is encoded. text_tokens: of its encoding; truncated_from: tokens it had before it was cut."""

    job_id: int
    text_tokens: int
    truncated_from: int | None


@dataclass(frozen=True)
class Stepped:
    """Image `index` (among the seeds of the submitted request) has finished `step` of `steps`."""

    job_id: int
    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class Previewed:
    """Preview `partial_index` (from 0) of the image `image.index`."""

    job_id: int
    partial_index: int
    image: GeneratedImage


@dataclass(frozen=True)
class Finished:
    """One image is done."""

    job_id: int
    image: GeneratedImage
    timings: Timings


@dataclass(frozen=True)
class Done:
    """All images of the job have been sent."""

    job_id: int
    timings: Timings


@dataclass(frozen=True)
class Failed:
    """The job ended without its pictures; the worker lives on. code, param: as in `errors`."""

    job_id: int
    code: str
    message: str
    param: str | None


ToWorker = Load | Describe | Submit | Cancel | Piece | Read | Forget | Decode | GoOn
ToFront = (
    Loading
    | Ready
    | Described
    | Unusable
    | Beat
    | Measured
    | Began
    | Prepared
    | Stepped
    | Previewed
    | Finished
    | Done
    | Failed
    | Large
    | Document
    | Decoded
)
Message = ToWorker | ToFront

_MESSAGES: dict[str, type[Any]] = {cls.__name__: cls for cls in get_args(Message)}


def frame(message: Message) -> list[bytes]:
    """The message as buffers to be written one after the other; pictures are not copied.

    Raises:
        WireError: the message is larger than the other side would accept.
    """
    blobs: list[bytes] = []
    plain = _to_plain(message, blobs)
    header = {"type": type(message).__name__, "fields": plain, "blobs": [len(blob) for blob in blobs]}
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    _check_lengths(len(text), header["blobs"])
    return [_LENGTH.pack(len(text)) + text, *blobs]


def read(stream: BinaryIO) -> Message | None:
    """The next message of a blocking stream; None at its end.

    Raises:
        WireError: the stream holds no message, or ends inside one.
    """
    start = stream.read(_LENGTH.size)
    if not start:
        return None
    header = _parse_header(_exactly(stream, _header_length(start)))
    return _to_message(header, [_exactly(stream, length) for length in header["blobs"]])


async def read_async(stream: asyncio.StreamReader) -> Message | None:
    """As `read`, from an asyncio stream."""
    try:
        start = await stream.readexactly(_LENGTH.size)
    except asyncio.IncompleteReadError as end:
        if not end.partial:
            return None
        raise WireError("the stream ended inside a message") from end
    try:
        header = _parse_header(await stream.readexactly(_header_length(start)))
        blobs = [await stream.readexactly(length) for length in header["blobs"]]
    except asyncio.IncompleteReadError as end:
        raise WireError("the stream ended inside a message") from end
    return _to_message(header, blobs)


def _exactly(stream: BinaryIO, length: int) -> bytes:
    data = stream.read(length)
    if len(data) < length:
        raise WireError("the stream ended inside a message")
    return data


def _header_length(start: bytes) -> int:
    if len(start) < _LENGTH.size:
        raise WireError("the stream ended inside a message")
    length = int(_LENGTH.unpack(start)[0])
    _check_lengths(length, [])
    return length


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
        lengths = header["blobs"]
        if header["type"] not in _MESSAGES or not all(type(n) is int and n >= 0 for n in lengths):
            raise WireError("a header names an unknown message or a bad length")
    except (ValueError, KeyError, TypeError) as error:
        raise WireError("a header is not a message") from error
    _check_lengths(len(text), lengths)
    return dict(header)


def _check_lengths(header: int, blobs: Sequence[int]) -> None:
    if header > MAX_HEADER_BYTES or sum(blobs) > MAX_BLOB_BYTES:
        raise WireError(
            f"a message of {header} + {sum(blobs)} bytes; at most {MAX_HEADER_BYTES} + {MAX_BLOB_BYTES} are allowed"
        )


def _to_message(header: dict[str, Any], blobs: list[bytes]) -> Message:
    try:
        message: Message = _read_dataclass(_MESSAGES[header["type"]], header["fields"], blobs)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise WireError(f"a {header['type']} message has the wrong fields") from error
    return message


def _to_plain(value: Any, blobs: list[bytes]) -> Any:
    if is_dataclass(value):
        return {field.name: _to_plain(getattr(value, field.name), blobs) for field in fields(value)}
    if isinstance(value, bytes):
        blobs.append(value)
        return len(blobs) - 1
    if isinstance(value, tuple):
        return [_to_plain(item, blobs) for item in value]
    return value


def _from_plain(hint: Any, plain: Any, blobs: list[bytes]) -> Any:
    if is_dataclass(hint):
        return _read_dataclass(hint, plain, blobs)
    if hint is bytes:
        return blobs[plain]
    origin = get_origin(hint)
    if origin is tuple:
        return tuple(_from_plain(get_args(hint)[0], item, blobs) for item in plain)
    if origin in (Union, types.UnionType):
        return None if plain is None else _from_plain(_without_none(hint), plain, blobs)
    return plain


def _read_dataclass(cls: Any, plain: dict[str, Any], blobs: list[bytes]) -> Any:
    hints = _hints(cls)
    return cls(**{name: _from_plain(hints[name], value, blobs) for name, value in plain.items()})


@cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return get_type_hints(cls)


def _without_none(hint: Any) -> Any:
    """The X of `X | None`, the only kind of union a message holds."""
    return next(arg for arg in get_args(hint) if arg is not types.NoneType)
