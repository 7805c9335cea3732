"""The words both processes speak: what is asked, what comes back, what the model is. Knows no HTTP and no torch."""

from __future__ import annotations

import base64
import io
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fluxserve.errors import InvalidRequest

OutputFormat = Literal["png", "jpeg", "webp"]

SEED_SPACE = 2**63
"""Seeds are 0 .. 2**63 - 1; image i of a request has seed + i, modulo this."""


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA that the model has been loaded with, by name, and how strongly it acts (-4 .. 4)."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class GenerationRequest:
    """One request, complete: every default is already filled in.

    seeds: one an image, so that a rerun can ask for the missing ones alone.
    guidance_scale: the embedded guidance of dev models; None for models without.
    image, mask: encoded PNG, JPEG or WebP bytes of the picture to start from (None: from noise). Transparent mask
    pixels are repainted. strength: 1 ignores the picture, near 0 keeps it; means nothing without one.
    output_compression: 0..100, the encoder's quality for jpeg and webp.
    partial_images: how many previews each image sends on its way.
    loras: what acts beside the model's weights in this request; each one of the card's.
    """

    prompt: str
    width: int
    height: int
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float | None
    max_sequence_length: int
    negative_prompt: str = ""
    true_cfg_scale: float = 1.0
    image: bytes | None = None
    mask: bytes | None = None
    strength: float = 1.0
    partial_images: int = 0
    output_format: OutputFormat = "png"
    output_compression: int = 95
    metadata: bool = True
    loras: tuple[LoraChoice, ...] = ()

    @property
    def work(self) -> int:
        """Pixel-steps, the unit of admission: images x width x height x steps, doubled by true CFG."""
        passes = 2 if self.true_cfg_scale > 1 else 1
        return len(self.seeds) * self.width * self.height * self.num_inference_steps * passes


def consecutive_seeds(first: int, n: int) -> tuple[int, ...]:
    """The seeds of n images whose first has seed `first` (0 .. 2**63 - 1)."""
    return tuple((first + i) % SEED_SPACE for i in range(n))


@dataclass(frozen=True)
class Progress:
    """Image `index` of the request has finished `step` of `steps`."""

    index: int
    step: int
    steps: int


@dataclass(frozen=True)
class Timings:
    """Where the time of one request went, in milliseconds of wall time."""

    queue_ms: float = 0.0
    text_ms: float = 0.0
    denoise_ms: float = 0.0
    decode_ms: float = 0.0
    encode_ms: float = 0.0
    total_ms: float = 0.0
    steps: int = 0
    prompt_cached: bool = False
    native_size: str | None = None
    """The size the model drew at, when the picture was resampled to the size asked."""


@dataclass(frozen=True)
class GeneratedImage:
    """One finished picture. data: encoded in output_format. index: its place in the request."""

    data: bytes = field(repr=False)
    output_format: OutputFormat
    width: int
    height: int
    seed: int
    index: int

    def to_base64(self) -> str:
        """Bare base64 of the encoded picture, as the API's `b64_json`."""
        return base64.b64encode(self.data).decode("ascii")

    def save(self, path: str | Path) -> None:
        """Writes the picture; a suffix of another format re-encodes it.

        Raises:
            ValueError: Pillow knows no format for the suffix.
        """
        target = Path(path)
        suffix = target.suffix.lower().lstrip(".").replace("jpg", "jpeg")
        if suffix == self.output_format:
            target.write_bytes(self.data)
            return
        from PIL import Image

        Image.open(io.BytesIO(self.data)).save(target)


@dataclass(frozen=True)
class Placement:
    """Where the worker has put the model, in bytes of the device's memory, and what it expects of a step.

    streamed_bytes: weights copied to the device at every step. step_s: of one image of the model's own size.
    """

    budget_bytes: int
    peak_bytes: int
    resident_blocks: int
    streamed_blocks: int
    streamed_bytes: int
    text_encoder: str
    autoencoder: str
    step_s: float


@dataclass(frozen=True)
class ModelCard:
    """What the worker tells the front about the model it has loaded; the front knows no other model fact.

    steps: the default step count by quality word (low, medium, high, xhigh, max).
    guidance_scale: the default, or None where the model takes none. guidance_max: the largest it is sensible to ask.
    native_area: pixels; where `resamples` is true the model always draws at about this area and the picture is
    then scaled to the size asked.
    notice: said in a warning header with every answer. description: what the model knows, for people.
    max_pixels: the largest picture that the memory budget serves; None: no bound. max_batch: how many pictures of the
    model's own size one denoise step takes within that budget. placement: None: not planned.
    loras: the names that requests may use.
    """

    id: str
    aliases: tuple[str, ...]
    variant: str
    steps: dict[str, int]
    max_sequence_length: int
    guidance_scale: float | None
    guidance_max: float
    native_area: int
    resamples: bool
    default_width: int
    default_height: int
    licence: str
    description: str
    notice: str | None
    device: str
    dtype: str
    max_pixels: int | None = None
    max_batch: int = 1
    placement: Placement | None = None
    loras: tuple[str, ...] = ()


SIZE_MULTIPLE = 16
MIN_SIDE, MAX_SIDE = 64, 4096
MAX_STEPS = 200
MAX_IMAGES = 10


def complete_request(
    card: ModelCard,
    prompt: str,
    *,
    n: int = 1,
    width: int | None = None,
    height: int | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int | None = None,
    output_format: OutputFormat = "png",
) -> GenerationRequest:
    """Fills in the model's defaults and a random seed.

    Raises:
        InvalidRequest: a value is outside its range; names the parameter.
    """
    if not prompt.strip():
        raise InvalidRequest("prompt must not be empty", param="prompt")
    steps = num_inference_steps if num_inference_steps is not None else card.steps["medium"]
    first = seed if seed is not None else secrets.randbelow(2**32)
    width, height = width or card.default_width, height or card.default_height
    check_size(width, height)
    check_range("n", n, 1, MAX_IMAGES)
    check_range("num_inference_steps", steps, 1, MAX_STEPS)
    check_range("seed", first, 0, SEED_SPACE - 1)
    if guidance_scale is not None:
        check_range("guidance_scale", guidance_scale, 0, card.guidance_max)
    guidance = (
        None if card.guidance_scale is None else (card.guidance_scale if guidance_scale is None else guidance_scale)
    )
    return GenerationRequest(
        prompt=prompt,
        width=width,
        height=height,
        seeds=consecutive_seeds(first, n),
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=card.max_sequence_length,
        output_format=output_format,
    )


def check_range(param: str, value: float, low: float, high: float) -> None:
    """Raises InvalidRequest unless low <= value <= high; NaN is outside."""
    if not low <= value <= high:
        raise InvalidRequest(f"{param} must be between {low} and {high}, got {value}", param=param)


def check_size(width: int, height: int) -> None:
    """Raises InvalidRequest unless both sides are multiples of 16 from 64 to 4096; names the nearest legal size."""
    if all(side % SIZE_MULTIPLE == 0 and MIN_SIDE <= side <= MAX_SIDE for side in (width, height)):
        return
    near = "x".join(
        str(min(max(round(side / SIZE_MULTIPLE) * SIZE_MULTIPLE, MIN_SIDE), MAX_SIDE)) for side in (width, height)
    )
    raise InvalidRequest(
        f"size must be WIDTHxHEIGHT in multiples of {SIZE_MULTIPLE} from {MIN_SIDE} to {MAX_SIDE}, "
        f"got {width}x{height}; the nearest is {near}",
        param="size",
        code="invalid_size",
    )
