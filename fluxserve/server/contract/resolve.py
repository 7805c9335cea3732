"""From checked parameters to a resolved request: what the engine is to draw, and the form of the answer.

Fills in what the model's card says and holds it to the server's options.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from fluxserve.config import EngineConfig, ServerConfig
from fluxserve.errors import InvalidRequest
from fluxserve.request import GenerationRequest, LoraChoice, ModelCard, OutputFormat, consecutive_seeds
from fluxserve.server.contract.model_names import OPENAI_GPT_IMAGE, check_model_name
from fluxserve.server.contract.schemas import (
    IGNORED,
    EchoedQuality,
    EditParameters,
    GenerationParameters,
    ImageParameters,
    Operation,
    Quality,
    VariationParameters,
)
from fluxserve.server.contract.sizes import fit_size, parse_size
from fluxserve.server.contract.uploads import Upload

Delivery = Literal["url", "b64_json", "file"]

_QUALITY: dict[Quality, EchoedQuality] = {
    "auto": "medium",
    "low": "low",
    "medium": "medium",
    "standard": "medium",
    "high": "high",
    "hd": "high",
    "xhigh": "xhigh",
    "max": "max",
}
_B64_FIELDS = frozenset({"output_format", "output_compression", "background", "partial_images"})
"""Fields of the GPT image models, whose clients expect base64."""
_FILE_TYPES: dict[str, OutputFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
_MOST_WARNINGS = 14
"""Beside these, a cut prompt and the model's notice may be warned of: 16 in all."""
_EDIT_STRENGTH, _MASKED_STRENGTH, _FAITHFUL_STRENGTH, _VARIATION_STRENGTH = 0.75, 1.0, 0.5, 0.6


@dataclass(frozen=True)
class EditInputs:
    """The pictures a client sent. mask: None where the whole picture may change."""

    image: Upload
    mask: Upload | None = None


@dataclass(frozen=True)
class ServingLimits:
    """What requests are held to: the model's card and the server's options."""

    card: ModelCard
    config: ServerConfig
    engine: EngineConfig


@dataclass(frozen=True)
class ResolvedRequest:
    """One client's request, complete. warnings: as the warning header lists them. input_size: of an edit's picture."""

    request: GenerationRequest
    operation: Operation
    delivery: Delivery
    stream: bool
    quality: EchoedQuality
    warnings: tuple[str, ...]
    input_size: tuple[int, int] | None = None

    @property
    def event_kind(self) -> Literal["image_generation", "image_edit"]:
        """What a stream's events are named after: OpenAI knows two kinds."""
        return "image_generation" if self.operation == "image_generation" else "image_edit"


def resolve_request(
    parameters: ImageParameters, inputs: EditInputs | None, accept: str, limits: ServingLimits
) -> ResolvedRequest:
    """The request that the parameters amount to. accept: the request's Accept header.

    Raises:
        InvalidRequest: a value that this model or this server cannot serve.
    """
    card, config = limits.card, limits.config
    if config.strict:
        _refuse_unknown(parameters)
    check_model_name(parameters.model, card, config)
    _check_loras(parameters, card)
    delivery, output_format = _choose_delivery(parameters, accept, config)
    quality = _QUALITY[parameters.quality]
    request = _to_request(parameters, inputs, output_format, card.steps[quality], limits)
    _check_work(request, limits.engine.max_work)
    size = (inputs.image.width, inputs.image.height) if inputs else None
    return ResolvedRequest(
        request, parameters.operation, delivery, parameters.stream, quality, _warnings(parameters, request, card), size
    )


def _to_request(
    parameters: ImageParameters,
    inputs: EditInputs | None,
    output_format: OutputFormat,
    steps: int,
    limits: ServingLimits,
) -> GenerationRequest:
    width, height = _size(parameters, inputs, limits)
    first_seed = secrets.randbelow(2**32) if parameters.seed is None else parameters.seed
    return GenerationRequest(
        prompt=parameters.prompt if isinstance(parameters, GenerationParameters | EditParameters) else "",
        width=width,
        height=height,
        seeds=consecutive_seeds(first_seed, parameters.n),
        num_inference_steps=parameters.num_inference_steps or steps,
        guidance_scale=_guidance(parameters, limits.card),
        max_sequence_length=_sequence_length(parameters, limits.card),
        negative_prompt=parameters.negative_prompt,
        true_cfg_scale=parameters.true_cfg_scale,
        image=inputs.image.data if inputs else None,
        mask=inputs.mask.data if inputs and inputs.mask else None,
        strength=_strength(parameters, inputs),
        partial_images=parameters.partial_images if parameters.stream else 0,
        output_format=output_format,
        output_compression=parameters.output_compression,
        metadata=limits.config.metadata,
        loras=tuple(LoraChoice(lora.name, lora.scale) for lora in parameters.loras),
    )


def _size(parameters: ImageParameters, inputs: EditInputs | None, limits: ServingLimits) -> tuple[int, int]:
    width, height = _asked_size(parameters, inputs, limits)
    card = limits.card
    if card.max_pixels is not None and width * height > card.max_pixels:
        raise InvalidRequest(
            f"size must be at most {card.max_pixels} pixels in all within the server's memory budget "
            f"(--memory-budget), got {width}x{height}",
            param="size",
            code="invalid_size",
        )
    return width, height


def _asked_size(parameters: ImageParameters, inputs: EditInputs | None, limits: ServingLimits) -> tuple[int, int]:
    card, max_pixels = limits.card, limits.config.max_pixels
    if parameters.size != "auto":
        return parse_size(parameters.size, max_pixels)
    if inputs is None:
        return card.default_width, card.default_height
    area = max(card.native_area, card.default_width * card.default_height)
    return fit_size(inputs.image.width, inputs.image.height, area, max_pixels)


def _guidance(parameters: ImageParameters, card: ModelCard) -> float | None:
    if card.guidance_scale is None or parameters.guidance_scale is None:
        return card.guidance_scale
    return _at_most(card.guidance_max, parameters.guidance_scale, "guidance_scale")


def _sequence_length(parameters: ImageParameters, card: ModelCard) -> int:
    if parameters.max_sequence_length is None:
        return card.max_sequence_length
    return int(_at_most(card.max_sequence_length, parameters.max_sequence_length, "max_sequence_length"))


def _at_most(limit: float, value: float, param: str) -> float:
    if value > limit:
        raise InvalidRequest(f"{param} must be at most {limit:g} for this model, got {value:g}", param=param)
    return value


def _strength(parameters: ImageParameters, inputs: EditInputs | None) -> float:
    if inputs is None:
        return 1.0
    if parameters.strength is not None:
        return parameters.strength
    if isinstance(parameters, VariationParameters):
        return _VARIATION_STRENGTH
    if inputs.mask is not None:
        return _MASKED_STRENGTH
    faithful = isinstance(parameters, EditParameters) and parameters.input_fidelity == "high"
    return _FAITHFUL_STRENGTH if faithful else _EDIT_STRENGTH


def _choose_delivery(parameters: ImageParameters, accept: str, config: ServerConfig) -> tuple[Delivery, OutputFormat]:
    """How the images travel: what was asked for, what Accept names, what the client's fields suggest, the default."""
    accepted = next((_FILE_TYPES[kind] for kind in _media_types(accept) if kind in _FILE_TYPES), None)
    delivery: Delivery
    output_format = parameters.output_format
    if parameters.response_format is not None:
        delivery = parameters.response_format
    elif accepted is not None:
        if "output_format" in parameters.model_fields_set and output_format != accepted:
            raise _conflict(f"output_format {output_format} and the Accept header disagree", "output_format")
        delivery, output_format = "file", accepted
    elif parameters.stream or _speaks_gpt_image(parameters):
        delivery = "b64_json"
    else:
        delivery = config.default_response_format
    if parameters.stream and delivery != "b64_json":
        raise _conflict(f"a stream carries b64_json, not {delivery}", "response_format")
    return delivery, output_format


def _media_types(accept: str) -> list[str]:
    return [part.partition(";")[0].strip().lower() for part in accept.split(",")]


def _speaks_gpt_image(parameters: ImageParameters) -> bool:
    named = parameters.model is not None and OPENAI_GPT_IMAGE.match(parameters.model)
    return bool(named or _B64_FIELDS & parameters.model_fields_set)


def _conflict(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="conflicting_parameters")


def _refuse_unknown(parameters: ImageParameters) -> None:
    for name in parameters.model_extra or ():
        raise InvalidRequest(
            f"the parameter {_safe(name)} is unknown (--strict)", param=_safe(name), code="unknown_parameter"
        )


def _check_loras(parameters: ImageParameters, card: ModelCard) -> None:
    for lora in parameters.loras:
        if lora.name not in card.loras:
            raise InvalidRequest(
                f"this server has no LoRA {lora.name[:64]!r}; it has {', '.join(card.loras[:16]) or 'none'}",
                param="loras",
                code="lora_not_found",
            )


def _check_work(request: GenerationRequest, max_work: int) -> None:
    if request.work > max_work:
        raise InvalidRequest(
            f"n x width x height x steps (doubled by true_cfg_scale above 1) must be at most {max_work} (--max-work), "
            f"got {request.work}; ask for fewer steps or images, or a smaller size",
            param="num_inference_steps",
        )


def _warnings(parameters: ImageParameters, request: GenerationRequest, card: ModelCard) -> tuple[str, ...]:
    sent = parameters.model_fields_set
    idle = [name for name in sorted(sent) if name in IGNORED or _is_idle(name, parameters, request, card)]
    unknown = [f"unknown:{_safe(name)}" for name in parameters.model_extra or ()]
    return tuple([*unknown, *(f"ignored:{name}" for name in idle)][:_MOST_WARNINGS])


def _is_idle(name: str, parameters: ImageParameters, request: GenerationRequest, card: ModelCard) -> bool:
    """Whether a field that the client sent changes nothing in this request."""
    match name:
        case "guidance_scale":
            return card.guidance_scale is None
        case "negative_prompt":
            return parameters.true_cfg_scale <= 1
        case "strength":
            return isinstance(parameters, GenerationParameters)
        case "output_compression":
            return request.output_format == "png"
        case "partial_images":
            return parameters.partial_images > 0 and not parameters.stream
        case _:
            return False


def _safe(name: str) -> str:
    """A name as a header may carry it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "", name)[:64] or "-"
