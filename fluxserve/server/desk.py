"""Where an order becomes an answer: run, joined, adopted or replayed, and let go when its client leaves."""

from __future__ import annotations

import re
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fluxserve.engine.job import Job
from fluxserve.errors import InvalidRequest, StorageFull
from fluxserve.request import ModelCard
from fluxserve.server.answers import Outcome, image_answer, outcome_of, truncation_warning
from fluxserve.server.connection import while_connected
from fluxserve.server.content_filter import judge_content
from fluxserve.server.context import RequestContext, context_of
from fluxserve.server.order import Order
from fluxserve.server.patience import Patience, read_patience
from fluxserve.server.public_url import base_url
from fluxserve.server.services import Services
from fluxserve.server.streaming import EventKind, EventStream, Narrator

_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?")


@dataclass(frozen=True)
class Errand:
    """One order on its way. digest: of the body's content; `fingerprint` tells whose it is and how it is answered."""

    request: Request
    order: Order
    digest: str
    kind: EventKind

    @property
    def context(self) -> RequestContext:
        return context_of(self.request.scope)

    @property
    def scope(self) -> str:
        return f"{self.context.client} {self.request.scope['path']}"

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
        services, order, context = self._services, errand.order, errand.context
        context.operation, context.model = "image_generation", services.card.id
        context.warnings.extend([*order.warnings, *_notice(services.card)])
        if services.judge is not None:
            await judge_content(services.judge, order.request.prompt, order.request.image)
        if order.delivery == "url" and not await services.store.probe():
            raise StorageFull("the server cannot store pictures now; ask for response_format b64_json")
        patience = read_patience(errand.request.headers)
        key = _idempotency_key(errand.request)
        if key is not None:
            return await self._answer_keyed(errand, patience, f"{errand.scope} {key}")
        job = self._adopt(errand, patience) or self._submit(errand, patience)
        if order.stream:
            return self._stream(errand, job)
        return await self._answer_once(errand, job, patience)

    def _adopt(self, errand: Errand, patience: Patience) -> Job | None:
        """The job that an earlier try of this request left behind."""
        if errand.order.stream or not patience.is_retry:
            return None
        job = self._services.orphans.adopt(errand.fingerprint)
        if job is not None:
            self._accept(errand, joined=True)
        return job

    def _accept(self, errand: Errand, *, joined: bool) -> None:
        metrics = self._services.engine.metrics
        metrics.request_accepted()
        errand.context.accepted = True
        if joined:
            metrics.joined.inc()

    def _submit(self, errand: Errand, patience: Patience) -> Job:
        job = self._services.engine.submit(
            errand.order.request,
            client=errand.context.client,
            patience_s=patience.start_s(errand.order.stream),
            deadline_s=patience.limit_s,
            digest=errand.digest,
        )
        self._accept(errand, joined=False)
        return job

    async def _answer_once(self, errand: Errand, job: Job, patience: Patience) -> Response:
        """Waits for a job of the client's own; keeps it for the retry of a client that timed out."""
        kept = False
        try:
            outcome = await while_connected(errand.request.receive, self._finish(job, errand.order))
        except ClientDisconnect:
            kept = patience.ran_out(errand.context.elapsed_ms / 1000)
            if kept:
                self._services.orphans.keep(errand.fingerprint, job)
            raise
        finally:
            if not kept:
                job.leave()
        return self._respond(errand, outcome)

    async def _answer_keyed(self, errand: Errand, patience: Patience, key: str) -> Response:
        """Runs a keyed order, or joins or replays the one that first came under its key."""
        replayed = await self._replay(errand, key)
        if replayed is not None:
            return self._respond(errand, replayed)
        job = self._submit(errand, patience)
        entry = self._services.ledger.open(key, errand.fingerprint, self._finish(job, errand.order))
        if errand.order.stream:
            job.join()
            return self._stream(errand, job)
        return self._respond(errand, await while_connected(errand.request.receive, entry.outcome()))

    async def _replay(self, errand: Errand, key: str) -> Outcome | None:
        """The outcome of the order that first came under the key; None where there is none to give."""
        ledger, headers = self._services.ledger, errand.context.headers
        entry = ledger.find(key, errand.fingerprint)
        if entry is None:
            return None
        headers["idempotent-replayed"] = "true"
        if entry.work is not None:
            self._accept(errand, joined=True)
        outcome = await while_connected(errand.request.receive, entry.outcome())
        if all(self._services.store.has(name) for name in outcome.names):
            return outcome
        del headers["idempotent-replayed"]
        ledger.forget(key)
        return None

    async def _finish(self, job: Job, order: Order) -> Outcome:
        """The finished job's outcome, its pictures stored where the answer is to hold URLs."""
        result = await job.result()
        names = await self._services.store.put(result.images) if order.delivery == "url" else ()
        return outcome_of(result, self._services.card.id, names)

    def _respond(self, errand: Errand, outcome: Outcome) -> Response:
        order = errand.order
        errand.context.warnings.extend(truncation_warning(order.request, outcome.result.truncated_from))
        if order.stream:
            return EventStream(Narrator(order, errand.kind).replayed(outcome), on_close=lambda: None)
        return image_answer(outcome, order, base_url(errand.request, self._services.config))

    def _stream(self, errand: Errand, job: Job) -> Response:
        events = Narrator(errand.order, errand.kind).live(job, self._services.engine.eta_s)
        return EventStream(events, on_close=job.leave)


def _idempotency_key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("Idempotency-Key must be 1 to 255 printable ASCII characters")
    return key


def _notice(card: ModelCard) -> list[str]:
    """What the model wants said with every answer, as one item of the comma-separated warning header."""
    return [f"notice:{card.notice.replace(',', ';')}"] if card.notice else []
