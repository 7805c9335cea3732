"""The answers to image requests, in parts: base64 is put in place as it is sent, never through a JSON encoder."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fluxserve.request import GeneratedImage, GenerationRequest, Timings
from fluxserve.server.answers.parts import Base64, Part, PartsAnswer
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.http.paths import PICTURES
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.sizes import image_tokens

MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "jpg": "image/jpeg", "webp": "image/webp"}
_EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
"""The earliest a zip can tell: the same pictures make the same archive."""


def image_answer(outcome: Outcome, resolved: ResolvedRequest, base_url: str) -> PartsAnswer:
    """The whole answer, in the form that was asked for."""
    if resolved.delivery == "file":
        return _file_answer(outcome, resolved)
    values: list[Part]
    if resolved.delivery == "url":
        key, values = b"url", [json.dumps(f"{base_url}{PICTURES}/{name}").strip('"').encode() for name in outcome.names]
    else:
        key, values = b"b64_json", [Base64(image.data) for image in outcome.result.images]
    parts: list[Part] = [b'{"data":[']
    for image, value in zip(outcome.result.images, values, strict=True):
        parts += [b'{"', key, b'":"', value, b'","seed":%d}' % image.seed, b","]
    parts[-1] = b"],"
    parts.append(_json(_about(outcome, resolved))[1:])
    return PartsAnswer(parts, "application/json", outcome)


def description(resolved: ResolvedRequest) -> dict[str, Any]:
    """What every answer and every stream event says about its pictures."""
    request = resolved.request
    return {
        "background": "opaque",
        "output_format": request.output_format,
        "quality": resolved.quality,
        "size": "x".join(map(str, request.answered_size)),
    }


def usage(resolved: ResolvedRequest, text_tokens: int, images: int) -> dict[str, Any]:
    """OpenAI's token counts for `images` of the request's pictures."""
    read = resolved.input_tokens
    drawn = images * image_tokens(resolved.request.width, resolved.request.height)
    return {
        "input_tokens": text_tokens + read,
        "input_tokens_details": {"text_tokens": text_tokens, "image_tokens": read},
        "output_tokens": drawn,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
        "total_tokens": text_tokens + read + drawn,
    }


def timings_body(timings: Timings) -> dict[str, Any]:
    """Milliseconds to a tenth; what does not apply is left out."""
    rounded = {name: round(value, 1) if isinstance(value, float) else value for name, value in asdict(timings).items()}
    return {name: value for name, value in rounded.items() if value is not None}


def truncation_warning(request: GenerationRequest, truncated_from: int | None) -> list[str]:
    """What the warning header says of a prompt that was cut."""
    return [] if truncated_from is None else [f"truncated:prompt={truncated_from}/{request.max_sequence_length}"]


def _about(outcome: Outcome, resolved: ResolvedRequest) -> dict[str, Any]:
    result = outcome.result
    return {
        "created": outcome.created,
        **description(resolved),
        "usage": usage(resolved, result.text_tokens, len(result.images)),
        **({"safety_identifier": resolved.safety_identifier} if resolved.safety_identifier else {}),
        "model": outcome.model,
        "timings": timings_body(result.timings),
    }


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _file_answer(outcome: Outcome, resolved: ResolvedRequest) -> PartsAnswer:
    images = outcome.result.images
    extension = _EXTENSIONS[resolved.request.output_format]
    names = [f"image-{image.index}-{image.seed}.{extension}" for image in images]
    if len(images) == 1:
        parts, name, media_type = [images[0].data], names[0], MEDIA_TYPES[extension]
    else:
        parts, name, media_type = _zip(images, names), "images.zip", "application/zip"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return PartsAnswer(parts, media_type, outcome, headers=headers)


def _zip(images: Sequence[GeneratedImage], names: Sequence[str]) -> list[bytes]:
    """Stored, not deflated: pictures are compressed already."""
    file = _PartsFile()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for image, name in zip(images, names, strict=True):
            archive.writestr(zipfile.ZipInfo(name, _ZIP_TIME), image.data)
    return list(file.parts.values())


class _PartsFile(io.RawIOBase):
    """A file that keeps what is written to it as it was given. A part may be written over by one of its length."""

    def __init__(self) -> None:
        self.parts: dict[int, bytes] = {}
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == 0
        self._at = offset
        return offset

    def write(self, data: Any) -> int:
        self.parts[self._at] = data
        self._at += len(data)
        return len(data)
