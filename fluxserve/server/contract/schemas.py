"""The OpenAI wire format: the fields of requests and the bodies of answers.

A field's type, range and words are written once, here: requests are checked against them, error messages are worded
from them (`parameters.py`), `/openapi.json` publishes them. Follows openai-python 3.57: `types/images_response.py`,
`image_generate_params.py`, `image_edit_params.py` and `image_gen_*_event.py`; the extras are named as in diffusers.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from fluxserve.completion import LONGEST_PROMPT, clean_text
from fluxserve.request import (
    LORA_SCALE,
    MAX_LORAS,
    RANGES,
    REDUX_WEIGHT,
    Control,
    MaskMode,
    OutputFormat,
    Range,
    Solver,
)
from fluxserve.sizes import MAX_INPUT_IMAGES

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
EchoedQuality = Literal["low", "medium", "high", "xhigh", "max"]
ModelState = Literal["unloaded", "loading", "loaded", "failed"]
Operation = Literal["image_generation", "image_edit", "image_variation"]
"""What a route does, as the metrics call it."""
ALIASES = {"steps": "num_inference_steps", "guidance": "guidance_scale"}
"""Further names that a field may be sent under."""


def _number(name: str, default: float | None, description: str) -> Any:
    """A field within the range that every caller is held to."""
    return Field(default, description=description, **_within(RANGES[name]))


def _within(allowed: Range) -> dict[str, Any]:
    return {"gt" if allowed.above else "ge": allowed.low, "le": allowed.high}


def _clean_text(text: str, field: ValidationInfo) -> str:
    return clean_text(field.field_name or "", text)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must not be blank")
    return text


Text = Annotated[str, Field(max_length=LONGEST_PROMPT), AfterValidator(_clean_text)]
Prompt = Annotated[Text, Field(min_length=1), AfterValidator(_not_blank)]
Name = Annotated[str, Field(min_length=1, max_length=256)]

_NO_EFFECT: Any = Field(None, description="Accepted without effect.")
_ECHOED: Any = Field(None, description="Without effect; comes back as safety_identifier, which goes before user.")
_IGNORED: Any = Field(None, description="Accepted and ignored, with a warning.")


ReduxWeights = Annotated[
    list[Annotated[float, Field(**_within(REDUX_WEIGHT))]],
    BeforeValidator(lambda given: given if isinstance(given, list) else [given]),
    Field(max_length=MAX_INPUT_IMAGES),
]
"""One for each image, or the one of the only image."""


class Lora(BaseModel):
    """A LoRA of the server's registry and how strongly it acts."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Name
    scale: Annotated[float, Field(**_within(LORA_SCALE))] = 1.0


LoraChoice = Annotated[
    Lora, BeforeValidator(lambda choice: {"name": choice} if isinstance(choice, str) else choice, Name | Lora)
]
"""A LoRA, or its name alone."""


class ImageParameters(BaseModel):
    """What all three image routes take. `null` counts as not given; unknown fields are ignored with a warning."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    operation: ClassVar[Operation]

    model: str | None = Field(None, description="The served model or one of its aliases.")
    n: int = _number("n", 1, "How many images; image i has seed + i.")
    size: str = Field("auto", description="WIDTHxHEIGHT in multiples of 16 from 64 to 4096, or auto.")
    quality: Quality = Field("auto", description="Picks the number of steps.")
    num_inference_steps: int | None = _number(
        "num_inference_steps", None, "Denoising steps; wins over quality. Alias: steps."
    )
    guidance_scale: float | None = _number(
        "guidance_scale", None, "Embedded guidance, for models that take it. Alias: guidance."
    )
    negative_prompt: Text = Field("", description="What to avoid; acts if true_cfg_scale is above 1.")
    true_cfg_scale: float | None = _number(
        "true_cfg_scale", None, "Classifier-free guidance; above 1 doubles the work. The model's own if left out."
    )
    seed: int | None = _number("seed", None, "Of the first image; drawn below 2**32 when not given, or -1.")
    max_sequence_length: int | None = Field(None, ge=1, description="Prompt tokens used; at most the model's limit.")
    loras: list[LoraChoice] = Field(
        [], max_length=MAX_LORAS, description="Names, or objects of name and scale (-4 to 4). Alias: lora (one object)."
    )
    solver: Solver | None = Field(None, description="euler, or dpmpp2m, which needs about half the steps.")
    strength: float | None = _number(
        "strength",
        None,
        "How much of the input picture is redrawn, by models that draw by none; only where there is one.",
    )
    response_format: Literal["url", "b64_json", "file"] | None = Field(None, description="How the images come back.")
    output_format: OutputFormat = Field("png", description="The images' format; jpg is jpeg.")
    output_compression: int = _number("output_compression", 95, "The encoder's quality, for jpeg and webp.")
    background: Literal["auto", "opaque"] = Field("auto", description="Images are always opaque.")
    stream: bool = Field(False, description="Answer with server-sent events.")
    partial_images: int = _number("partial_images", 0, "Previews of each image in a stream.")
    moderation: Any = _NO_EFFECT
    user: Any = _ECHOED
    safety_identifier: Any = _ECHOED
    style: Any = _IGNORED
    complexity: Any = _IGNORED
    svg: Any = _IGNORED
    frame_count: Any = _IGNORED
    frame_duration_ms: Any = _IGNORED


IGNORED = frozenset({"style", "complexity", "svg", "frame_count", "frame_duration_ms"})
"""Fields of OpenAI's that mean nothing to this server."""


class GenerationParameters(ImageParameters):
    """POST /v1/images/generations."""

    operation: ClassVar[Operation] = "image_generation"

    prompt: Prompt = Field(description="What to draw.")


class EditParameters(ImageParameters):
    """POST /v1/images/edits, beside its files."""

    operation: ClassVar[Operation] = "image_edit"

    prompt: Prompt = Field(description="What to draw.")
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="high without strength and mask means strength 0.5."
    )
    mask_mode: MaskMode = Field(
        "alpha", description="What of the mask is redrawn: what is transparent, or what is white, or black."
    )
    redux: ReduxWeights | None = Field(
        None, description="How strongly each image acts beside the prompt, for models with an image encoder (0 to 4)."
    )
    control: Control | None = Field(
        None,
        description="The map to make of the image, for models that draw from one; without it the image is the map.",
    )


class VariationParameters(ImageParameters):
    """POST /v1/images/variations, beside its file."""

    operation: ClassVar[Operation] = "image_variation"


class Image(BaseModel):
    """One image: exactly one of url and b64_json, and the seed that draws it again."""

    url: str | None = None
    b64_json: str | None = None
    seed: int


class TokensDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class Usage(BaseModel):
    """Text tokens are T5's; an image has one token for 16 x 16 pixels."""

    input_tokens: int
    input_tokens_details: TokensDetails
    output_tokens: int
    output_tokens_details: TokensDetails
    total_tokens: int


class TimingsBody(BaseModel):
    """Where the time went, in milliseconds. skipped_steps: of the steps, those that ran one block of all.

    native_size: what the model drew at, when the picture was resampled.
    """

    queue_ms: float
    text_ms: float
    denoise_ms: float
    decode_ms: float
    encode_ms: float
    total_ms: float
    steps: int
    skipped_steps: int
    prompt_cached: bool
    native_size: str | None = None


class ImagesBody(BaseModel):
    """The answer to an image request."""

    created: int
    data: list[Image]
    background: Literal["opaque"]
    output_format: OutputFormat
    quality: EchoedQuality
    size: str
    usage: Usage
    safety_identifier: str | None = None
    model: str
    timings: TimingsBody


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "permission_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every error, on every route."""

    error: ErrorDetail


class JobBody(BaseModel):
    """A request that is answered later.

    place: 1 is begun next. eta_ms: until it is finished, once something has been measured. steps_done, steps: of
    all its pictures. created_at, expires_at: Unix time, s. result: the answer. error: why there is none.
    """

    id: str
    object: Literal["image.job"] = "image.job"
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    created_at: int
    expires_at: int | None = None
    place: int | None = None
    eta_ms: int | None = None
    steps_done: int | None = None
    steps: int | None = None
    result: ImagesBody | None = None
    error: ErrorDetail | None = None


class ModelLimits(BaseModel):
    """What a request may ask for: more of anything is refused by name.

    max_n: images. max_pixels: of one image, within the memory budget too. max_work: n x width x height x steps, doubled
    by true CFG; pictures to draw by count as width x height. max_batch is told for planning: so many images of the
    model's own size share a denoise step, others take turns. max_input_images: of an edit, without its mask.
    """

    max_n: int
    max_pixels: int
    max_batch: int
    max_work: int
    max_input_pixels: int
    max_input_images: int
    max_sequence_length: int


class ModelDefaults(BaseModel):
    size: str
    steps: dict[str, int]
    guidance_scale: float | None
    true_cfg_scale: float
    solver: Solver
    response_format: str


class ModelPlacement(BaseModel):
    """Where the model lies, in bytes of the device's memory, how it computes, and the expected seconds of a step."""

    device: str
    dtype: str
    budget_bytes: int
    peak_bytes: int
    resident_blocks: int
    streamed_blocks: int
    streamed_bytes: int
    text_encoder: str
    autoencoder: str
    step_s: float
    compute: str


class ModelBody(BaseModel):
    """A served model, as OpenAI lists it, whether it is loaded, and what a client may ask of it.

    load_s: how long a load takes, measured; null: not known yet. idle_timeout_s: null: it is never unloaded by itself.
    The details, null here, are known once the model's files are here or it was loaded.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    aliases: list[str]
    capabilities: list[str]
    state: ModelState
    workers: int
    load_s: float | None
    idle_timeout_s: float | None
    native_area: int | None = None
    default_size: str | None = None
    limits: ModelLimits | None = None
    defaults: ModelDefaults | None = None
    loras: list[str] | None = None
    licence: str | None = None
    description: str | None = None
    notice: str | None = None
    placement: ModelPlacement | None = None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelBody]


class Health(BaseModel):
    """status: ok, or what is missing. stage, done, total: how far loading is, in bytes."""

    status: str
    stage: str | None = None
    done: int | None = None
    total: int | None = None
