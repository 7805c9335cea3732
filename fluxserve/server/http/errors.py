"""The one table from error codes to HTTP, and the answer every error becomes.

The body is OpenAI's on every route and status: `{"error": {"message", "type", "param", "code"}}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Scope

from fluxserve.errors import FluxserveError, InvalidRequest, Refused
from fluxserve.server.http.context import context_of
from fluxserve.server.http.shapes import shaped

LONGEST_RETRY_AFTER_S = 60
"""openai-python 1.109 and 2.8 ignore a Retry-After above this and retry within a second."""


@dataclass(frozen=True)
class ErrorRule:
    """How one error code is answered.

    retry_after: the answer carries Retry-After. final: a retry cannot help, so `x-should-retry: false`.
    """

    status: int
    type: str
    retry_after: bool = False
    final: bool = False


_BAD_REQUEST = ErrorRule(400, "invalid_request_error")
_FORBIDDEN = ErrorRule(403, "permission_error")
_NOT_FOUND = ErrorRule(404, "invalid_request_error")
_OVERLOADED = ErrorRule(429, "rate_limit_error", retry_after=True)
_FAILED = ErrorRule(500, "server_error", final=True)
_NOT_SERVING = ErrorRule(503, "server_error", retry_after=True)
_UNAVAILABLE = ErrorRule(503, "server_error", final=True)

ERROR_RULES: Mapping[str, ErrorRule] = {
    "invalid_json": _BAD_REQUEST,
    "invalid_multipart": _BAD_REQUEST,
    "missing_required_parameter": _BAD_REQUEST,
    "invalid_type": _BAD_REQUEST,
    "invalid_value": _BAD_REQUEST,
    "invalid_size": _BAD_REQUEST,
    "unsupported_value": _BAD_REQUEST,
    "string_above_max_length": _BAD_REQUEST,
    "conflicting_parameters": _BAD_REQUEST,
    "unknown_parameter": _BAD_REQUEST,
    "lora_not_found": _BAD_REQUEST,
    "invalid_image": _BAD_REQUEST,
    "invalid_mask": _BAD_REQUEST,
    "too_many_images": _BAD_REQUEST,
    "content_policy_violation": _BAD_REQUEST,
    "invalid_api_key": ErrorRule(401, "invalid_request_error"),
    "host_not_allowed": _FORBIDDEN,
    "origin_not_allowed": _FORBIDDEN,
    "admin_key_required": _FORBIDDEN,
    "not_found": _NOT_FOUND,
    "model_not_found": _NOT_FOUND,
    "image_not_found": _NOT_FOUND,
    "job_not_found": _NOT_FOUND,
    "method_not_allowed": ErrorRule(405, "invalid_request_error"),
    "image_expired": ErrorRule(410, "invalid_request_error"),
    "request_too_large": ErrorRule(413, "invalid_request_error"),
    "unsupported_media_type": ErrorRule(415, "invalid_request_error"),
    "range_not_satisfiable": ErrorRule(416, "invalid_request_error"),
    "idempotency_key_reused": ErrorRule(422, "invalid_request_error"),
    "queue_full": _OVERLOADED,
    "wait_exceeds_timeout": ErrorRule(429, "rate_limit_error", retry_after=True, final=True),
    "rate_limit_exceeded": _OVERLOADED,
    "worker_crashed": _FAILED,
    "non_finite_output": _FAILED,
    "internal_error": _FAILED,
    "model_loading": _NOT_SERVING,
    "shutting_down": _NOT_SERVING,
    "replica_lost": _NOT_SERVING,
    "store_unavailable": _NOT_SERVING,
    "worker_unavailable": _UNAVAILABLE,
    "insufficient_memory": _UNAVAILABLE,
    "storage_full": _UNAVAILABLE,
    "content_filter_failed": _UNAVAILABLE,
    "deadline_exceeded": ErrorRule(504, "server_error", final=True),
}


def error_rule(code: str) -> ErrorRule:
    """The rule for a code; one that the table does not know is an internal error."""
    return ERROR_RULES.get(code, _FAILED)


def error_body(error: FluxserveError) -> dict[str, Any]:
    """OpenAI's error object, as it stands in a body and in a stream's error event."""
    param = error.param if isinstance(error, InvalidRequest) else None
    kind = error_rule(error.code).type
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def retry_headers(error: FluxserveError) -> dict[str, str]:
    """Retry-After and x-should-retry: the true prediction, cut to what all clients obey."""
    rule = error_rule(error.code)
    wait_s = error.retry_after_s if isinstance(error, Refused) else None
    if not rule.retry_after:
        return {"x-should-retry": "false"} if rule.final else {}
    hopeless = wait_s is None or wait_s > LONGEST_RETRY_AFTER_S
    seconds = LONGEST_RETRY_AFTER_S if wait_s is None or hopeless else max(1, math.ceil(wait_s))
    headers = {"retry-after": str(seconds)}
    if rule.final or hopeless:
        headers["x-should-retry"] = "false"
    return headers


def error_response(error: FluxserveError, scope: Scope, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The whole answer to an error; its code is noted in the request's context."""
    context_of(scope).error_code = error.code
    status = error_rule(error.code).status
    body = shaped(error_body(error), scope["path"])
    return JSONResponse(body, status, headers={**retry_headers(error), **(headers or {})})
