"""Where an order becomes an answer: run, joined, adopted or replayed, and let go when its client leaves."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fluxserve.engine.job import Job
from fluxserve.errors import InvalidRequest, StorageFull
from fluxserve.request import GeneratedImage, ModelCard
from fluxserve.server.answers.images import Outcome, image_answer, outcome_of, truncation_warning
from fluxserve.server.answers.sse import EventKind, EventStream, Narrator
from fluxserve.server.contract.resolve import Order
from fluxserve.server.http.client_timeout import Patience, read_patience
from fluxserve.server.http.context import RequestContext, context_of
from fluxserve.server.http.disconnect import while_connected
from fluxserve.server.http.public_url import base_url
from fluxserve.server.http.request_log import loggable
from fluxserve.server.jobs.content_filter import judge_content
from fluxserve.server.jobs.idempotency import Entry
from fluxserve.server.services import Services

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


@dataclass(frozen=True)
class Errand:
    """One order on its way. digest: of the body's content; `fingerprint` tells whose it is and how it is answered."""

    http: Request
    order: Order
    digest: str
    kind: EventKind

    @property
    def context(self) -> RequestContext:
        return context_of(self.http.scope)

    @property
    def scope(self) -> str:
        return f"{self.context.client} {self.http.scope['path']}"

    @property
    def fingerprint(self) -> str:
        return f"{self.scope} {self.digest} {self.order.delivery} {self.order.request.output_format}"


class Desk:
    """Answers orders with the help of the engine, the store and what is remembered of earlier requests."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def answer(self, errand: Errand) -> Response:
        """The answer to an order. Everything that can refuse it is asked before a stream's 200.

        Raises:
            InvalidRequest, Refused, GenerationFailed, StorageFull, ContentFilterFailed.
            ClientDisconnect: nobody is left to answer.
        """
        card, context = self._services.card, errand.context
        context.operation, context.model = "image_generation", card.id
        context.warnings.extend([*errand.order.warnings, *_notice(card)])
        if self._services.config.log_prompts:
            context.prompt = loggable(errand.order.request.prompt)
        patience = read_patience(errand.http.headers)
        key = _idempotency_key(errand.http)
        await self._check(errand.order)
        if key is not None:
            return await self._answer_keyed(errand, patience, f"{errand.scope} {key}")
        job = self._adopt(errand, patience) or self._submit(errand, patience)
        if errand.order.stream:
            return self._stream(errand, job)
        return await self._answer_once(errand, job, patience)

    async def _check(self, order: Order) -> None:
        """Asks the operator's filter, and whether pictures can be stored if they have to be."""
        if self._services.judge is not None:
            await judge_content(self._services.judge, order.request.prompt, order.request.image)
        if order.delivery == "url" and not await self._services.store.probe():
            raise StorageFull("the server cannot store pictures now; ask for response_format b64_json")

    def _adopt(self, errand: Errand, patience: Patience) -> Job | None:
        """The job that an earlier try of this request left behind."""
        if errand.order.stream or not patience.is_retry:
            return None
        job = self._services.orphans.adopt(errand.fingerprint)
        if job is not None:
            self._accept(errand, job, joined=True)
        return job

    def _submit(self, errand: Errand, patience: Patience) -> Job:
        job = self._services.engine.submit(
            errand.order.request,
            client=errand.context.client,
            start_timeout_s=patience.start_s(errand.order.stream),
            deadline_s=patience.limit_s,
            digest=errand.digest,
        )
        self._accept(errand, job, joined=False)
        return job

    def _accept(self, errand: Errand, job: Job | None, *, joined: bool) -> None:
        metrics = self._services.engine.metrics
        metrics.request_accepted()
        errand.context.accepted, errand.context.job = True, job
        if joined:
            metrics.joined.inc()

    async def _answer_once(self, errand: Errand, job: Job, patience: Patience) -> Response:
        """Waits for a job of the client's own; keeps it for the retry of a client that timed out."""
        kept = False
        try:
            outcome = await while_connected(errand.http.receive, self._finish(job, errand.order))
        except ClientDisconnect:
            kept = patience.ran_out(errand.context.elapsed_ms / 1000)
            if kept:
                self._services.orphans.keep(errand.fingerprint, job)
            raise
        finally:
            if not kept:
                job.leave()
        return await self._respond(errand, outcome)

    async def _answer_keyed(self, errand: Errand, patience: Patience, key: str) -> Response:
        """Joins or replays the order that first came under the key; runs it, if it is this one."""
        entry = self._services.ledger.find(key, errand.fingerprint)
        if entry is not None:
            errand.context.headers["idempotent-replayed"] = "true"
            if (answer := await self._replay(errand, entry)) is not None:
                return answer
            del errand.context.headers["idempotent-replayed"]
            self._services.ledger.forget(key)
        job = self._submit(errand, patience)
        entry = self._services.ledger.open(key, errand.fingerprint, self._finish(job, errand.order))
        if errand.order.stream:
            job.join()
            return self._stream(errand, job)
        return await self._respond(errand, await while_connected(errand.http.receive, entry.outcome()))

    async def _replay(self, errand: Errand, entry: Entry) -> Response | None:
        """The answer to an order that came before; None if its pictures are gone."""
        if entry.work is not None:
            self._accept(errand, None, joined=True)
        if errand.order.stream:
            events = Narrator(errand.order, errand.kind).replayed(entry.outcome)
            return EventStream(events, on_close=lambda: None)
        outcome = await while_connected(errand.http.receive, entry.outcome())
        if not all(self._services.store.has(name) for name in outcome.names):
            return None
        return await self._respond(errand, outcome)

    async def _finish(self, job: Job, order: Order) -> Outcome:
        """The finished job's outcome, its pictures stored where the answer is to hold URLs."""
        result = await job.result()
        names = await self._store(result.images) if order.delivery == "url" else ()
        return outcome_of(result, self._services.card.id, names)

    async def _store(self, images: Sequence[GeneratedImage]) -> Sequence[str]:
        """Puts pictures behind URLs; how long that takes is a figure, like the worker's stages."""
        began = time.monotonic()
        names = await self._services.store.put(images)
        self._services.engine.metrics.stage.labels("store").observe(time.monotonic() - began)
        return names

    async def _respond(self, errand: Errand, outcome: Outcome) -> Response:
        """Built in a thread: ten large pictures take a tenth of a second."""
        errand.context.warnings.extend(truncation_warning(errand.order.request, outcome.result.truncated_from))
        base = base_url(errand.http, self._services.config)
        return await asyncio.to_thread(image_answer, outcome, errand.order, base)

    def _stream(self, errand: Errand, job: Job) -> Response:
        events = Narrator(errand.order, errand.kind).live(job, self._services.engine.eta_s)
        return EventStream(events, on_close=job.leave)


def _idempotency_key(http: Request) -> str | None:
    key = http.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


def _notice(card: ModelCard) -> list[str]:
    """What the model wants said with every answer, as one item of the comma-separated warning header."""
    return [f"notice:{card.notice.replace(',', ';')}"] if card.notice else []
