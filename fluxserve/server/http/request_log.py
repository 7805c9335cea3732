"""What the log keeps of a request: figures and ids, never a key, the prompt only where the operator asks for it."""

from __future__ import annotations

from typing import Any

from starlette.types import Scope

from fluxserve.engine import Job
from fluxserve.server.http.context import RequestContext

SHOWN_CHARACTERS = 1000


def loggable(prompt: str) -> str:
    """As much of a prompt as the log takes, its first 1,000 characters; `prompt_length` tells of more."""
    return prompt[:SHOWN_CHARACTERS]


def request_fields(scope: Scope, context: RequestContext, status: int, path: str) -> dict[str, Any]:
    """The fields of the request's line. path: printable."""
    fields: dict[str, Any] = {
        "request_id": context.request_id,
        "client": context.client,
        "method": scope["method"],
        "path": path,
        "status": status,
        "code": context.error_code,
        "ms": context.elapsed_ms,
    }
    if context.refused is not None:
        fields["refused"] = context.refused
    if context.prompt is not None:
        fields["prompt"] = context.prompt
    return fields if context.job is None else {**fields, **_job_fields(context.job)}


def _job_fields(job: Job) -> dict[str, Any]:
    request, timings = job.request, job.timings
    return {
        "n": len(request.seeds),
        "size": f"{request.width}x{request.height}",
        "steps": request.num_inference_steps,
        "seed": request.seeds[0],
        "prompt_length": len(request.prompt),
        "attempts": job.attempts + 1,
        **({} if timings is None else {name: round(getattr(timings, name), 1) for name in _SPENT}),
    }


_SPENT = ("queue_ms", "text_ms", "denoise_ms", "decode_ms", "encode_ms")
