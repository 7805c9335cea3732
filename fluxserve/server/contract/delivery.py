"""The form of an answer: what was asked for, what Accept names, what the client can read, the server's default."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from fluxserve.config import ServerConfig
from fluxserve.errors import InvalidRequest
from fluxserve.request import OutputFormat
from fluxserve.server.contract.model_names import OPENAI_DALL_E, OPENAI_GPT_IMAGE
from fluxserve.server.contract.schemas import ImageParameters

Delivery = Literal["url", "b64_json", "file"]

_B64_FIELDS = frozenset({"output_format", "output_compression", "background", "partial_images"})
"""Fields of the GPT image models, whose clients expect base64."""
_FILE_TYPES: dict[str, OutputFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
_ANY_PICTURE = "image/*"
_WEIGHT = re.compile(r"0?\.[0-9]+|[01](\.[0-9]*)?")


def choose_delivery(parameters: ImageParameters, accept: str, config: ServerConfig) -> tuple[Delivery, OutputFormat]:
    """How the images travel. accept: the request's Accept header.

    Raises:
        InvalidRequest: `conflicting_parameters`: what is asked for contradicts itself.
    """
    output_format = parameters.output_format
    delivery: Delivery
    accepted = accepted_pictures(accept)
    if parameters.response_format is not None:
        delivery = parameters.response_format
    elif accepted:
        delivery, output_format = "file", _accepted_format(parameters, accepted)
    else:
        delivery = "b64_json" if parameters.stream else _expected(parameters, config)
    if parameters.stream and delivery != "b64_json":
        raise _conflict(f"a stream carries b64_json, not {delivery}", "response_format")
    return delivery, output_format


def _expected(parameters: ImageParameters, config: ServerConfig) -> Delivery:
    """What the client reads that does not say: OpenAI's names stand for forms, and clients of edits read base64."""
    name = parameters.model or ""
    if OPENAI_GPT_IMAGE.match(name):
        return "b64_json"
    if OPENAI_DALL_E.match(name):
        return "url"
    if parameters.operation == "image_edit" or _B64_FIELDS & parameters.model_fields_set:
        return "b64_json"
    return config.default_response_format


def accepted_pictures(accept: str) -> list[str]:
    """The types that Accept wants most, if all of them are pictures made here; else none (RFC 9110, 12.5.1)."""
    weighted = list(_weighted(accept))
    highest = max((weight for _, weight in weighted), default=0.0)
    wanted = [kind for kind, weight in weighted if weight == highest > 0]
    return wanted if all(kind in _FILE_TYPES or kind == _ANY_PICTURE for kind in wanted) else []


def _weighted(accept: str) -> Iterator[tuple[str, float]]:
    for item in accept.split(","):
        kind, *parameters = (part.strip().lower() for part in item.split(";"))
        weight = next((each.partition("=")[2].strip() for each in parameters if re.match(r"q\s*=", each)), "")
        if kind:
            yield kind, float(weight) if _WEIGHT.fullmatch(weight) else 1.0


def _accepted_format(parameters: ImageParameters, accepted: list[str]) -> OutputFormat:
    formats = [_FILE_TYPES[kind] for kind in accepted if kind != _ANY_PICTURE]
    if len(formats) < len(accepted):
        return parameters.output_format
    if "output_format" not in parameters.model_fields_set:
        return formats[0]
    if parameters.output_format not in formats:
        raise _conflict(f"output_format {parameters.output_format} and the Accept header disagree", "output_format")
    return parameters.output_format


def _conflict(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="conflicting_parameters")
