"""From checked parameters to a resolved request: what the engine is to draw, and the form of the answer.

Fills in what the model's card says and holds it to the server's options.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fluxserve.completion import complete_request
from fluxserve.config import EngineConfig, ServerConfig
from fluxserve.errors import InvalidRequest
from fluxserve.input_images import EditInputs
from fluxserve.request import GenerationRequest, LoraChoice, ModelCard, OutputFormat
from fluxserve.server.contract.delivery import Delivery, choose_delivery
from fluxserve.server.contract.schemas import (
    IGNORED,
    EchoedQuality,
    EditParameters,
    GenerationParameters,
    ImageParameters,
    Operation,
    Quality,
)
from fluxserve.sizes import image_tokens, parse_size

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
_MOST_WARNINGS = 14
"""Beside these, a cut prompt and the model's notice may be warned of: 16 in all."""
_FAITHFUL_STRENGTH = 0.5
_LONGEST_IDENTIFIER = 512


@dataclass(frozen=True)
class ServingLimits:
    """What requests are held to: the model's card and the server's options."""

    card: ModelCard
    config: ServerConfig
    engine: EngineConfig


@dataclass(frozen=True)
class ResolvedRequest:
    """One client's request, complete. warnings: as the warning header lists them.

    input_tokens: of the pictures that it reads.
    """

    request: GenerationRequest
    operation: Operation
    delivery: Delivery
    stream: bool
    quality: EchoedQuality
    warnings: tuple[str, ...]
    input_tokens: int = 0
    safety_identifier: str | None = None

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
    delivery, output_format = choose_delivery(parameters, accept, config)
    quality = _QUALITY[parameters.quality]
    request = _to_request(parameters, inputs, output_format, quality, limits)
    _check_work(request, limits.engine.max_work)
    return ResolvedRequest(
        request,
        parameters.operation,
        delivery,
        parameters.stream,
        quality,
        _warnings(parameters, request, card),
        _input_tokens(request, inputs),
        _safety_identifier(parameters),
    )


def _to_request(
    parameters: ImageParameters,
    inputs: EditInputs | None,
    output_format: OutputFormat,
    quality: EchoedQuality,
    limits: ServingLimits,
) -> GenerationRequest:
    width, height = (None, None) if parameters.size == "auto" else parse_size(parameters.size)
    return complete_request(
        limits.card,
        parameters.prompt if isinstance(parameters, GenerationParameters | EditParameters) else "",
        inputs=inputs,
        max_pixels=limits.config.max_pixels,
        n=parameters.n,
        width=width,
        height=height,
        num_inference_steps=parameters.num_inference_steps or limits.card.steps[quality],
        guidance_scale=parameters.guidance_scale,
        seed=parameters.seed,
        max_sequence_length=parameters.max_sequence_length,
        negative_prompt=parameters.negative_prompt,
        true_cfg_scale=parameters.true_cfg_scale,
        strength=_strength(parameters, inputs),
        redux=redux_of(parameters),
        control=parameters.control if isinstance(parameters, EditParameters) else None,
        loras=[LoraChoice(lora.name, lora.scale) for lora in parameters.loras],
        solver=parameters.solver,
        partial_images=parameters.partial_images if parameters.stream else 0,
        output_format=output_format,
        output_compression=parameters.output_compression,
        metadata=limits.config.metadata,
    )


def redux_of(parameters: ImageParameters) -> list[float] | None:
    """The weights that an edit gives its pictures."""
    return parameters.redux if isinstance(parameters, EditParameters) else None


def _safety_identifier(parameters: ImageParameters) -> str | None:
    """What a client calls the person it asks for; OpenAI's answers repeat it."""
    names = (parameters.safety_identifier, parameters.user)
    return next((name[:_LONGEST_IDENTIFIER] for name in names if isinstance(name, str) and name), None)


def _input_tokens(request: GenerationRequest, inputs: EditInputs | None) -> int:
    """Of pictures as the model reads them; of one that it starts from, as it was sent."""
    if request.references or inputs is None:
        return sum(image_tokens(reference.width, reference.height) for reference in request.references)
    return image_tokens(*inputs.size)


def _strength(parameters: ImageParameters, inputs: EditInputs | None) -> float | None:
    """None: what every edit or variation has by default."""
    if parameters.strength is not None or not isinstance(parameters, EditParameters):
        return parameters.strength
    faithful = parameters.input_fidelity == "high" and inputs is not None and inputs.mask is None
    return _FAITHFUL_STRENGTH if faithful else None


def _refuse_unknown(parameters: ImageParameters) -> None:
    for name in parameters.model_extra or ():
        raise InvalidRequest(
            f"the parameter {_safe(name)} is unknown (--strict)", param=_safe(name), code="unknown_parameter"
        )


def _check_work(request: GenerationRequest, max_work: int) -> None:
    if request.work > max_work:
        raise InvalidRequest(
            f"n x width x height x steps (doubled by true_cfg_scale above 1; pictures to draw by count as width x "
            f"height) must be at most {max_work} (--max-work), got {request.work}; ask for fewer steps or images, or a "
            f"smaller size",
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
            return request.true_cfg_scale <= 1
        case "strength":
            return request.image is None or not card.takes_strength
        case "input_fidelity":
            return card.references is not None
        case "output_compression":
            return request.output_format == "png"
        case "partial_images":
            return parameters.partial_images > 0 and not parameters.stream
        case _:
            return False


def _safe(name: str) -> str:
    """A name as a header may carry it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "", name)[:64] or "-"
