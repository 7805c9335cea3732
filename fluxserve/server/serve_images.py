"""Serves images: from a resolved request to its answer, and what becomes of the job when its client leaves.

A request runs a job of its own, takes over the job that an earlier try of it left behind, or joins or repeats what
first came under its idempotency key.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fluxserve.engine import Engine
from fluxserve.engine.job import Job
from fluxserve.errors import DeadlineExceeded, FluxserveError, InvalidRequest, StorageFull
from fluxserve.request import GeneratedImage, GenerationRequest, ModelCard
from fluxserve.server.answers.form import OF_IMAGES, Form
from fluxserve.server.answers.images import truncation_warning
from fluxserve.server.answers.job_events import StreamWords, live, replayed
from fluxserve.server.answers.sse import EventStream
from fluxserve.server.contract.resolve import ResolvedRequest
from fluxserve.server.http.access.forwarded import base_url
from fluxserve.server.http.client_timeout import ClientTimeout, read_client_timeout
from fluxserve.server.http.context import RequestContext, context_of
from fluxserve.server.http.disconnect import while_connected
from fluxserve.server.http.request_log import loggable
from fluxserve.server.jobs.homes import Claim, DrawnElsewhere, Entry
from fluxserve.server.jobs.image_store import CANNOT_STORE
from fluxserve.server.jobs.outcome import Outcome, outcome_of
from fluxserve.server.services import Services

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


@dataclass(frozen=True)
class ImageCall:
    """One HTTP request for images. digest: of the body's content."""

    services: Services
    http: Request
    model: Engine
    resolved: ResolvedRequest
    digest: str
    form: Form = OF_IMAGES

    @property
    def context(self) -> RequestContext:
        return context_of(self.http.scope)

    def words(self) -> StreamWords:
        """For one stream."""
        return self.form.words(self.resolved, self.model.known_card().id)

    @property
    def scope(self) -> str:
        """What an idempotency key is unique in: the client and the route."""
        return f"{self.context.client} {self.http.scope['path']}"

    @property
    def fingerprint(self) -> str:
        """Equal for requests that may be given the same answer."""
        return f"{self.scope} {self.digest} {self.resolved.delivery} {self.resolved.request.output_format}"

    def by_seeds(self, seeds: tuple[int, ...]) -> ImageCall:
        """The same to be drawn by these."""
        return replace(self, resolved=replace(self.resolved, request=replace(self.resolved.request, seeds=seeds)))


async def serve_images(call: ImageCall) -> Response:
    """The answer. Everything that can refuse the request is asked before a stream's 200.

    Raises:
        InvalidRequest, Refused, GenerationFailed, StorageFull, ContentFilterFailed.
        ClientDisconnect: nobody is left to answer.
    """
    timeout = read_client_timeout(call.http.headers)
    key = idempotency_key(call.http)
    await check(call)
    if key is not None:
        return await _serve_keyed(call, timeout, f"{call.scope} {key}")
    job = _reattach(call, timeout) or submit(call, timeout, patient=call.resolved.stream)
    if call.resolved.stream:
        return live_stream(call.words(), job, call.model)
    return await _serve_once(call, job, timeout)


def _describe(call: ImageCall) -> None:
    """Tells the request's context what the headers, the metrics and the log say of it."""
    card, context = call.model.known_card(), call.context
    context.operation, context.model = call.resolved.operation, card.id
    context.warnings.extend([*call.resolved.warnings, *_notice(card)])
    if call.services.config.log_prompts:
        context.prompt = loggable(call.resolved.request.prompt)


async def check(call: ImageCall) -> None:
    """Asks the operator's filter, and whether pictures can be stored if they have to be.

    Raises:
        InvalidRequest, ContentFilterFailed, StorageFull: they cannot.
    """
    _describe(call)
    request, services = call.resolved.request, call.services
    if services.content_filter is not None:
        read = tuple(reference.data for reference in request.references) or (request.image,)
        for image in read:
            checking = services.content_filter.check(call.context.client, request.prompt, image)
            await while_connected(call.http.receive, checking)
    if call.resolved.delivery == "url" and not await services.store.probe():
        raise StorageFull(CANNOT_STORE)


def _reattach(call: ImageCall, timeout: ClientTimeout) -> Job | None:
    """The job that an earlier try of this request left behind."""
    if call.resolved.stream or not timeout.is_retry:
        return None
    job = call.services.detached.reattach(call.fingerprint)
    if job is not None:
        accept(call, job, joined=True)
    return job


def submit(call: ImageCall, timeout: ClientTimeout, *, patient: bool) -> Job:
    """The request's job, accepted. patient: its client waits for its start however long that takes.

    Raises:
        Refused, WorkerCrashed: as `Engine.submit` does.
    """
    job = call.model.submit(
        call.resolved.request,
        client=call.context.client,
        start_timeout_s=timeout.start_timeout_s(patient),
        deadline_s=timeout.limit_s,
        digest=call.digest,
    )
    accept(call, job, joined=False)
    return job


def accept(call: ImageCall, job: Job | None, *, joined: bool) -> None:
    """Notes that the request is past admission. joined: it has no job of its own."""
    metrics = call.services.models.metrics
    metrics.request_accepted()
    call.context.accepted, call.context.job = True, job
    if joined:
        metrics.joined.inc()


async def _serve_once(call: ImageCall, job: Job, timeout: ClientTimeout) -> Response:
    """Waits for a job of the client's own; keeps it for the retry of a client that timed out."""
    kept = False
    try:
        outcome = await while_connected(call.http.receive, finish(call, job))
    except ClientDisconnect:
        kept = timeout.has_expired(call.context.elapsed_ms / 1000)
        if kept:
            call.services.detached.detach(call.fingerprint, job)
        raise
    finally:
        if not kept:
            job.leave()
    return await _respond(call, outcome)


async def _serve_keyed(call: ImageCall, timeout: ClientTimeout, key: str) -> Response:
    """Joins or repeats the request that first came under the key; runs it, if it is this one."""
    answers = call.services.idempotency
    while not isinstance(held := await _claim(call, timeout, key), Claim):
        if (answer := await _replay(call, held)) is not None:
            return answer
        await answers.forget(held)
    call = call.by_seeds(held.seeds)
    try:
        job = submit(call, timeout, patient=call.resolved.stream)
    except FluxserveError:
        await answers.release(held)
        raise
    entry = answers.open(held, finish(call, job))
    assert entry.work is not None
    if call.resolved.stream:
        job.join()
        return live_stream(call.words(), job, call.model)
    return await _respond(call, await while_connected(call.http.receive, _result(entry.work)))


async def _claim(call: ImageCall, timeout: ClientTimeout, key: str) -> Claim | Entry:
    """What came first under the key, or the right to draw it; waits while another server draws it.

    Raises:
        DeadlineExceeded: for too long. ClientDisconnect. InvalidRequest, StoreUnavailable: as `Answers.claim` does.
    """
    pause_s = 0.1
    while True:
        seeds = call.resolved.request.seeds
        held = await call.services.idempotency.claim(call.context.client, key, call.fingerprint, seeds)
        if not isinstance(held, DrawnElsewhere):
            return held
        if timeout.limit_s is not None and call.context.elapsed_ms >= timeout.limit_s * 1000:
            raise DeadlineExceeded(f"another server has not drawn it within {timeout.limit_s:g} s")
        await while_connected(call.http.receive, asyncio.sleep(pause_s))
        pause_s = min(pause_s * 1.5, 1.0)


async def _replay(call: ImageCall, entry: Entry) -> Response | None:
    """The answer to a request that came before; None if it is lost, or its pictures are."""
    work: asyncio.Future[Outcome] | None = entry.work
    if work is not None:
        accept(call, None, joined=True)
    else:
        work = await call.services.idempotency.recall(entry)
    if work is None:
        return None
    call.context.headers["idempotent-replayed"] = "true"
    if call.resolved.stream:
        return replayed_stream(call.words(), call.resolved.request, work)
    outcome = await while_connected(call.http.receive, _result(work))
    if not await call.services.store.has(outcome.names):
        del call.context.headers["idempotent-replayed"]
        return None
    return await _respond(call, outcome)


async def _result(work: asyncio.Future[Outcome]) -> Outcome:
    """What many may wait for: who leaves early stops nothing."""
    return await asyncio.shield(work)


async def finish(call: ImageCall, job: Job) -> Outcome:
    """The finished job's outcome, its pictures stored where the answer is to hold URLs."""
    result = await job.result()
    names = await _store(call.services, result.images) if call.resolved.delivery == "url" else ()
    return outcome_of(result, call.model.known_card().id, names)


async def _store(services: Services, images: Sequence[GeneratedImage]) -> Sequence[str]:
    """Puts pictures behind URLs; how long that takes is measured, as the worker's stages are."""
    began = time.monotonic()
    names = await services.store.put(images)
    services.models.metrics.stage.labels("store").observe(time.monotonic() - began)
    return names


async def _respond(call: ImageCall, outcome: Outcome) -> Response:
    """Built in a thread: ten large pictures take a tenth of a second."""
    call.context.warnings.extend(truncation_warning(call.resolved.request, outcome.result.truncated_from))
    base = base_url(call.http.scope, call.services.config)
    return await asyncio.to_thread(call.form.whole, outcome, call.resolved, base)


def live_stream(words: StreamWords, job: Job, engine: Engine) -> Response:
    """The events of a job, whose waiter the stream is."""
    events = live(words, job, engine)
    return EventStream(events, on_close=job.leave, held=lambda: [image.data for image in job.progress.images])


def replayed_stream(words: StreamWords, request: GenerationRequest, work: asyncio.Future[Outcome]) -> Response:
    """The pictures of a job that ran for another, or will have."""

    def held() -> list[bytes]:
        known = work.done() and not work.cancelled() and work.exception() is None
        return [image.data for image in work.result().result.images] if known else []

    events = replayed(words, request, partial(_result, work))
    return EventStream(events, on_close=lambda: None, held=held)


def idempotency_key(http: Request) -> str | None:
    """Raises InvalidRequest: the header is no key."""
    key = http.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


def _notice(card: ModelCard) -> list[str]:
    """What the model wants said with every answer, as one item of the comma-separated warning header."""
    return [f"notice:{card.notice.replace(',', ';')}"] if card.notice else []
