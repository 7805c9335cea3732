"""A stored answer as one file: a line of JSON, then the pictures' bytes."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fluxserve.engine.events import JobResult
from fluxserve.errors import FluxserveError, NonFiniteOutput, WorkerCrashed
from fluxserve.request import GeneratedImage, Timings
from fluxserve.server.jobs.outcome import Outcome

FINAL_ERRORS: dict[str, type[FluxserveError]] = {error.code: error for error in (WorkerCrashed, NonFiniteOutput)}
"""Failures that the same request would meet again."""


def write_record(path: Path, fingerprint: str, answer: Outcome | FluxserveError) -> int:
    """Writes the answer whole or not at all; returns the file's size in bytes."""
    images = () if isinstance(answer, FluxserveError) else answer.result.images
    header = {"fingerprint": fingerprint, **(_error(answer) if isinstance(answer, FluxserveError) else _head(answer))}
    temporary = path.with_suffix(".tmp")
    with open(temporary, "wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        file.writelines(image.data for image in images)
    os.replace(temporary, path)
    return path.stat().st_size


def read_fingerprint(path: Path) -> str:
    """The fingerprint that stands in the file. Raises OSError, ValueError or KeyError for a file of another kind."""
    with open(path, "rb") as file:
        return str(json.loads(file.readline())["fingerprint"])


def read_record(path: Path) -> Outcome:
    """The stored answer.

    Raises:
        FluxserveError: the stored answer is this error.
        OSError: the file is gone.
    """
    with open(path, "rb") as file:
        header = json.loads(file.readline())
        if "error" in header:
            raise FINAL_ERRORS[header["error"]["code"]](header["error"]["message"])
        images = tuple(GeneratedImage(data=file.read(image.pop("length")), **image) for image in header["images"])
    result = JobResult(images, Timings(**header["timings"]), header["text_tokens"], header["truncated_from"])
    return Outcome(header["created"], header["model"], result, tuple(header["names"]))


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
    }
