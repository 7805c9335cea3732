"""A stored answer as one file: a line with a hash, a line of JSON, the pictures' bytes. What was altered is noticed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from fluxserve.engine.events import JobResult
from fluxserve.errors import FluxserveError, NonFiniteOutput, WorkerCrashed
from fluxserve.request import GeneratedImage, Timings
from fluxserve.server.jobs.outcome import Outcome

LONGEST_HEAD = 64 * 1024
"""Bytes of the first two lines."""
FINAL_ERRORS: dict[str, type[FluxserveError]] = {error.code: error for error in (WorkerCrashed, NonFiniteOutput)}
"""Failures that the same request would meet again."""


class DamagedRecord(Exception):
    """The file does not hold what was written."""


@dataclass(frozen=True)
class RecordHead:
    """What is known of an answer without its pictures. expires_at: Unix time, s. content: see `_head`.

    client: who it was drawn for; empty in files of versions that did not note it.
    """

    fingerprint: str
    expires_at: float
    content: dict[str, Any]
    client: str = ""


def record_pieces(client: str, fingerprint: str, expires_at: float, answer: Outcome | FluxserveError) -> list[bytes]:
    """The file's content. expires_at: Unix time, s."""
    images = () if isinstance(answer, FluxserveError) else answer.result.images
    content = _error(answer) if isinstance(answer, FluxserveError) else _head(answer)
    about = {"client": client, "fingerprint": fingerprint, "expires_at": expires_at, "content": content}
    head = json.dumps(about).encode()
    return [hashlib.sha256(head).hexdigest().encode(), b"\n", head, b"\n", *(image.data for image in images)]


def read_head(file: BinaryIO) -> RecordHead:
    """From the file's first bytes; leaves it where the pictures begin. Raises DamagedRecord."""
    digest, head = (file.readline(LONGEST_HEAD).rstrip(b"\n") for _ in range(2))
    if hashlib.sha256(head).hexdigest().encode() != digest:
        raise DamagedRecord
    return RecordHead(**json.loads(head))


def read_record(file: BinaryIO) -> Outcome:
    """The stored answer.

    Raises:
        FluxserveError: the stored answer is this error.
        DamagedRecord: the file was altered or cut.
    """
    content = read_head(file).content
    if "error" in content:
        raise FINAL_ERRORS[content["error"]["code"]](content["error"]["message"])
    images = []
    for image in content["images"]:
        length, digest = image.pop("length"), image.pop("sha256")
        picture = file.read(length)
        if hashlib.sha256(picture).hexdigest() != digest:
            raise DamagedRecord
        images.append(GeneratedImage(data=picture, **image))
    result = JobResult(tuple(images), Timings(**content["timings"]), content["text_tokens"], content["truncated_from"])
    return Outcome(content["created"], content["model"], result, tuple(content["names"]))


def _error(error: FluxserveError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": error.message}}


def _head(outcome: Outcome) -> dict[str, Any]:
    result = outcome.result
    return {
        "created": outcome.created,
        "model": outcome.model,
        "names": outcome.names,
        "text_tokens": result.text_tokens,
        "truncated_from": result.truncated_from,
        "timings": asdict(result.timings),
        "images": [_image(image) for image in result.images],
    }


def _image(image: GeneratedImage) -> dict[str, Any]:
    return {
        "output_format": image.output_format,
        "width": image.width,
        "height": image.height,
        "seed": image.seed,
        "index": image.index,
        "length": len(image.data),
        "sha256": hashlib.sha256(image.data).hexdigest(),
    }
