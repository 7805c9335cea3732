"""Serves images now or later: who prefers it is promised the answer, as a job of its own address."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import secrets
import time
from dataclasses import replace
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fluxserve.errors import Cancelled, FluxserveError, InvalidRequest
from fluxserve.server.answers.image_words import ImageWords
from fluxserve.server.answers.images import image_answer
from fluxserve.server.answers.parts import PartsAnswer
from fluxserve.server.http.access.forwarded import base_url
from fluxserve.server.http.client_timeout import read_client_timeout
from fluxserve.server.http.disconnect import while_connected
from fluxserve.server.http.errors import LONGEST_RETRY_AFTER_S, error_body
from fluxserve.server.http.paths import JOBS
from fluxserve.server.jobs.async_jobs import AsyncJob
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.serve_images import (
    ImageCall,
    accept,
    check,
    finish,
    idempotency_key,
    live_stream,
    replayed_stream,
    serve_images,
    submit,
)
from fluxserve.server.services import Services

_ID_BYTES = 16
_LONGEST_WAIT_S = 60
_PREFERENCE = re.compile(r'\s*([A-Za-z-]+)\s*(?:=\s*"?([0-9]{1,9})"?)?\s*(?:;[^,]*)?')


async def serve_now_or_later(call: ImageCall) -> Response:
    """The answer, or 202 and where it will be. Raises as `serve_images` does."""
    wait_s = wait_before_202_s(call.http.headers)
    if wait_s is None:
        return await serve_images(call)
    if call.resolved.delivery == "file":
        raise InvalidRequest(
            "a job's answer is JSON: ask for url or b64_json, or send no Prefer: respond-async",
            param="response_format",
            code="conflicting_parameters",
        )
    opened = await _open(call)
    if wait_s:
        await while_connected(call.http.receive, _settle(opened, wait_s))
    return await promise(opened, call.http, call.services)


def wait_before_202_s(headers: Headers) -> int | None:
    """Seconds to wait for the answer before it is promised instead; None: it is waited for, however long it takes.

    The Prefer header, RFC 7240: respond-async and wait.
    """
    preferences: dict[str, str] = {}
    for each in ",".join(headers.getlist("prefer")).split(","):
        if match := _PREFERENCE.fullmatch(each):
            preferences.setdefault(match[1].lower(), match[2] or "")
    if "respond-async" not in preferences:
        return None
    return min(int(preferences.get("wait") or 0), _LONGEST_WAIT_S)


async def _open(call: ImageCall) -> AsyncJob:
    """A new job, or the one that came first under the request's Idempotency-Key."""
    jobs, key = call.services.jobs, idempotency_key(call.http)
    await check(call)
    id = _id_of(call, key) if key else secrets.token_urlsafe(_ID_BYTES)
    held = await jobs.claim(id, call.context.client, call.fingerprint, call.resolved.request.seeds)
    if isinstance(held, AsyncJob):
        accept(call, None, joined=True)
        return held
    call = call.by_seeds(held.seeds)
    try:
        job = submit(call, read_client_timeout(call.http.headers), patient=True)
    except FluxserveError:
        await jobs.release(held)
        raise
    opened = AsyncJob(id, call.context.client, call.fingerprint, call.resolved, time.time(), 0.0, call.model, job)
    await jobs.open(opened, held, finish(call, job))
    return opened


def _id_of(call: ImageCall, key: str) -> str:
    return hashlib.sha256(f"{call.scope} {key}".encode()).hexdigest()[: 2 * _ID_BYTES]


async def _settle(opened: AsyncJob, wait_s: float) -> None:
    """Returns once the job has ended, or the time is up."""
    if opened.work is not None:
        await asyncio.wait([opened.work], timeout=wait_s)


async def promise(opened: AsyncJob, http: Request, services: Services) -> Response:
    """202: what is known of the job, and its address."""
    state = job_state(opened)
    eta_s = state.get("eta_ms", 1000) / 1000
    headers = {
        "location": f"{base_url(http.scope, services.config)}{JOBS}/{opened.id}",
        "preference-applied": "respond-async",
        "retry-after": str(min(max(1, math.ceil(eta_s)), LONGEST_RETRY_AFTER_S)),
    }
    return JSONResponse(state, 202, headers=headers)


async def answer_job(asked: AsyncJob, http: Request, services: Services) -> Response:
    """How far it is; once it has ended, with its answer as `result`, or its `error`."""
    state = job_state(asked)
    if state["status"] != "completed":
        return JSONResponse(state)
    try:
        outcome = await services.jobs.outcome(asked)
    except FluxserveError as error:
        if error.code == "job_not_found":
            raise
        return JSONResponse({**state, **_failed(error)})
    base = base_url(http.scope, services.config)
    answer = image_answer(outcome, asked.resolved, base)
    head = bytes(JSONResponse(state).body)[:-1] + b',"result":'
    return PartsAnswer([head, *answer.parts, b"}"], "application/json", outcome)


def job_state(asked: AsyncJob) -> dict[str, Any]:
    """The job without its answer. place: 1 is begun next. eta_ms: until it is finished, if that is known."""
    state: dict[str, Any] = {
        "id": asked.id,
        "object": "image.job",
        "status": "completed",
        "created_at": int(asked.created),
    }
    if asked.error is not None:
        return {**state, **_failed(asked.error)}
    if asked.elsewhere:
        return {**state, "status": "in_progress"}
    model, job = asked.model, asked.job
    if model is None or job is None:
        return {**state, "expires_at": int(asked.expires_at)}
    eta_s = model.eta_s(job)
    state |= {} if eta_s is None else {"eta_ms": round(eta_s * 1000)}
    if job.queued:
        return {**state, "status": "queued", "place": model.place(job)}
    done, steps = job.progress.steps_done()
    return {**state, "status": "in_progress", "steps_done": done, "steps": steps}


def _failed(error: FluxserveError) -> dict[str, Any]:
    return {"status": "cancelled" if isinstance(error, Cancelled) else "failed", **error_body(error)}


async def stream_job(asked: AsyncJob, services: Services) -> Response:
    """Its events from the start, as a stream has them; of one that has ended, the pictures."""
    if asked.model is not None and asked.job is not None:
        asked.job.join()
        return live_stream(ImageWords(asked.resolved), asked.job, asked.model)
    outcome = asyncio.ensure_future(_with_pictures(asked, services))
    if not asked.elsewhere:
        await asyncio.wait([outcome])
    return replayed_stream(ImageWords(asked.resolved), asked.resolved.request, outcome)


async def _with_pictures(asked: AsyncJob, services: Services) -> Outcome:
    """What it made; pictures behind URLs are read again."""
    outcome = await services.jobs.outcome(asked)
    if not outcome.names:
        return outcome
    pictures = [await services.store.get(name) for name in outcome.names]
    images = zip(outcome.result.images, pictures, strict=True)
    result = replace(outcome.result, images=tuple(replace(image, data=picture.data) for image, picture in images))
    return replace(outcome, result=result)


async def cancel_job(asked: AsyncJob, services: Services) -> Response:
    """Ends it, if it has not ended; the worker drops it at its next boundary."""
    if asked.job is not None:
        asked.job.cancel()
        await _settle(asked, 1.0)
    return JSONResponse(job_state(asked))
