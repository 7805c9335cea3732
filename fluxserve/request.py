"""The words both processes speak: what is asked, what comes back, what the model is. Knows no HTTP and no torch."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

from fluxserve.sizes import References

OutputFormat = Literal["png", "jpeg", "webp"]
Solver = Literal["euler", "dpmpp2m"]
PictureUse = Literal["start", "fill", "control"]
"""What a model makes of a request's picture: noise is added to it, or its masked part is repainted by the model itself,
or it is a map (edges, depth) of what to draw."""
_SERVES: dict[PictureUse, tuple[str, ...]] = {
    "start": ("generations", "edits", "masks", "variations"),
    "fill": ("edits", "masks"),
    "control": ("edits",),
}
Control = Literal["canny"]
"""A map that is made of a photo here."""
MaskMode = Literal["alpha", "white", "black"]
"""What of a mask asks for repainting: what is transparent, what is white, or what is black."""

SEED_SPACE = 2**64
"""Seeds are 0 .. 2**64 - 1; image i of a request has seed + i, modulo this."""

MAX_IMAGES, MAX_STEPS, MAX_LORAS = 10, 200, 8


@dataclass(frozen=True)
class Range:
    """The values of a parameter: integers unless `real`, from low (itself excluded with `above`) to high."""

    low: int
    high: int
    real: bool = False
    above: bool = False

    def holds(self, value: Any) -> bool:
        """NaN lies in no range, and a truth value is no number."""
        is_number = isinstance(value, Real if self.real else Integral) and not isinstance(value, bool)
        return is_number and (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        """As in `an integer from 1 to 10`."""
        return (
            f"{'a number' if self.real else 'an integer'} {'above' if self.above else 'from'} {self.low} to {self.high}"
        )


RANGES = {
    "n": Range(1, MAX_IMAGES),
    "num_inference_steps": Range(1, MAX_STEPS),
    "guidance_scale": Range(0, 100, real=True),
    "true_cfg_scale": Range(0, 20, real=True),
    "seed": Range(0, SEED_SPACE - 1),
    "max_sequence_length": Range(1, 2**31 - 1),
    "strength": Range(0, 1, real=True, above=True),
    "partial_images": Range(0, 3),
    "output_compression": Range(0, 100),
}
"""Of any model; the card may allow less."""
LORA_SCALE = Range(-4, 4, real=True)
REDUX_WEIGHT = Range(0, 4, real=True)


@dataclass(frozen=True)
class LoraChoice:
    """A LoRA that the model has been loaded with, by name, and how strongly it acts (-4 .. 4)."""

    name: str
    scale: float = 1.0


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
class Reference:
    """A picture to draw by. data: the file, at any size. width, height: those at which the model reads it."""

    data: bytes = field(repr=False)
    width: int
    height: int


@dataclass(frozen=True)
class GenerationRequest:
    """One request, complete: every default is already filled in.

    seeds: one an image, so that a rerun can ask for the missing ones alone.
    guidance_scale: the embedded guidance of guidance-distilled models; None for models without.
    image, mask: encoded PNG, JPEG or WebP bytes of the picture to start from (None: from noise). Transparent mask
    pixels are repainted. strength: 1 ignores the picture, near 0 keeps it; means nothing without one.
    control: the map to make of the image, for models that draw from one; None: the image is the map.
    references: what a model that reads pictures draws by, in order; `image` is then what a mask keeps of the first.
    redux: the weights of the references, where the image encoder reads them beside the prompt.
    crop: (width, height) of the middle of the picture, which is the answer; None: all of it is.
    output_compression: 0..100, the encoder's quality for jpeg and webp.
    partial_images: how many previews each image sends on its way.
    loras: what acts beside the model's weights in this request; each one of the card's.
    solver: what follows the velocity from step to step; dpmpp2m, of second order, needs about half of euler's steps.
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
    references: tuple[Reference, ...] = ()
    redux: tuple[float, ...] = ()
    crop: tuple[int, int] | None = None
    strength: float = 1.0
    control: Control | None = None
    partial_images: int = 0
    output_format: OutputFormat = "png"
    output_compression: int = 95
    metadata: bool = True
    loras: tuple[LoraChoice, ...] = ()
    solver: Solver = "euler"

    @property
    def answered_size(self) -> tuple[int, int]:
        """(width, height) of the answer."""
        return self.crop or (self.width, self.height)

    @property
    def reference_pixels(self) -> int:
        """What every step of every image reads beside the pixels it draws."""
        return sum(reference.width * reference.height for reference in self.references)

    @property
    def work(self) -> int:
        """Pixel-steps, the unit of admission: images x (width x height + references) x steps, doubled by true CFG."""
        passes = 2 if self.true_cfg_scale > 1 else 1
        pixels = self.width * self.height + self.reference_pixels
        return len(self.seeds) * pixels * self.num_inference_steps * passes


def consecutive_seeds(first: int, n: int) -> tuple[int, ...]:
    """The seeds of n images whose first has seed `first` (0 .. 2**64 - 1)."""
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
    skipped_steps: int = 0
    """Of the steps, those that ran the first block alone (--step-cache); of several pictures, the first one's."""
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
    compute: of the blocks' products, exact or in 8 bits.
    """

    budget_bytes: int
    peak_bytes: int
    resident_blocks: int
    streamed_blocks: int
    streamed_bytes: int
    text_encoder: str
    autoencoder: str
    step_s: float
    compute: str = "exact"

    @property
    def summary(self) -> str:
        """In one line, for the log."""
        return (
            f"{self.peak_bytes:,} of {self.budget_bytes:,} bytes at most, "
            f"{self.resident_blocks} of {self.resident_blocks + self.streamed_blocks} blocks resident, "
            f"{self.streamed_bytes:,} bytes streamed a step, "
            f"text encoder {self.text_encoder}, autoencoder {self.autoencoder}, "
            f"products {self.compute}, "
            f"{self.step_s:.2f} s a step expected"
        )


@dataclass(frozen=True)
class ModelCard:
    """What the worker tells the front about the model it has loaded; the front knows no other model fact.

    steps: the default step count by quality word (low, medium, high, xhigh, max).
    guidance_scale: the default, or None where the model takes none. guidance_max: the largest it is sensible to ask.
    native_area: pixels; where `resamples` is true the model always draws at about this area and the picture is
    then scaled to the size asked.
    notice: said in a warning header with every answer. description: what the model knows, for people.
    max_pixels: the largest picture that the memory budget serves, together with what it is drawn by; None: no bound.
    max_batch: how many pictures of the model's own size one denoise step takes within that budget. placement: None: not
    planned. loras: the names that requests may use. true_cfg_scale: the default; 1: no negative prompt is read.
    picture: what it makes of a request's picture. controls: the maps it draws from that are made here.
    references: how it reads pictures to draw by; None: an edit has one picture. redux: how its image encoder does, of
    variations, and of edits that give weights; None without one. solver: the default.
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
    true_cfg_scale: float = 1.0
    loras: tuple[str, ...] = ()
    picture: PictureUse = "start"
    controls: tuple[Control, ...] = ()
    references: References | None = None
    solver: Solver = "euler"
    redux: References | None = None

    @property
    def max_input_images(self) -> int:
        """The most pictures of one edit."""
        rules = (self.references, self.redux)
        return max((rule.most for rule in rules if rule), default=1)

    @property
    def takes_strength(self) -> bool:
        """Whether noise is added to its picture."""
        return self.references is None and self.picture != "control"

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What may be asked of it."""
        return (*capabilities(self.picture, self.references), *(("redux",) if self.redux else ()))


def capabilities(picture: PictureUse, references: References | None) -> tuple[str, ...]:
    """What may be asked of a model."""
    return (*_SERVES[picture], *(("references",) if references is not None else ()))
