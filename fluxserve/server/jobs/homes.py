"""What is asked of the store, whichever home it has: this server's own folder, or one that several servers share."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fluxserve.errors import InvalidRequest
from fluxserve.request import GeneratedImage
from fluxserve.server.jobs.outcome import Outcome

if TYPE_CHECKING:
    from fluxserve.server.jobs.async_jobs import AsyncJob
    from fluxserve.server.jobs.image_store import StoredPicture


@dataclass(frozen=True)
class Claim:
    """The right to draw what a key stands for, by these seeds. scope: client, route and key."""

    client: str
    scope: str
    fingerprint: str
    seeds: tuple[int, ...]


@dataclass(eq=False)
class Entry:
    """One key. file: its name. work: the running or just finished generation; None once the file alone has the answer.

    expires_at: monotonic, s. size: bytes of the file. client: who opened it. read: while somebody is being given it.
    """

    client: str
    fingerprint: str
    file: str
    work: asyncio.Task[Outcome] | None
    expires_at: float
    size: int = 0
    read: weakref.ref[Outcome] | None = None


class DrawnElsewhere:
    """Another server of the store draws what the key stands for, and tells so every few seconds."""


class Pictures(Protocol):
    """Pictures behind URLs that expire."""

    @property
    def writable(self) -> bool: ...
    @property
    def size_bytes(self) -> int: ...
    async def put(self, images: Sequence[GeneratedImage]) -> list[str]: ...
    async def get(self, name: str) -> StoredPicture: ...
    async def has(self, names: Sequence[str]) -> bool: ...
    async def address(self, name: str) -> str | None: ...
    async def probe(self) -> bool: ...


class Answers(Protocol):
    """Idempotency keys, each of which is answered once.

    claim: what came first under a key, or the right to draw it; the same request's seeds live on in it. A claim is
    opened, or released with the error that it ends with.
    """

    async def claim(
        self, client: str, scope: str, fingerprint: str, seeds: tuple[int, ...]
    ) -> Claim | Entry | DrawnElsewhere: ...
    async def release(self, claim: Claim) -> None: ...
    def open(self, claim: Claim, work: Coroutine[Any, Any, Outcome]) -> Entry: ...
    async def recall(self, entry: Entry) -> asyncio.Future[Outcome] | None: ...
    async def forget(self, entry: Entry) -> None: ...


class Jobs(Protocol):
    """Requests that are answered later."""

    async def find(self, id: str, client: str) -> AsyncJob: ...
    async def claim(self, id: str, client: str, fingerprint: str, seeds: tuple[int, ...]) -> Claim | AsyncJob: ...
    async def release(self, claim: Claim) -> None: ...
    async def open(self, new: AsyncJob, claim: Claim, work: Coroutine[Any, Any, Outcome]) -> None: ...
    async def outcome(self, done: AsyncJob) -> Outcome: ...


@dataclass(frozen=True)
class Home:
    """A store's three parts, and what lets go of it."""

    pictures: Pictures
    answers: Answers
    jobs: Jobs
    close: Callable[[], object]


def refuse_other(used_for: str, fingerprint: str) -> None:
    """Raises InvalidRequest, `idempotency_key_reused`: the key stands for another request."""
    if used_for != fingerprint:
        raise InvalidRequest(
            "this Idempotency-Key was used for another request; use a new key", code="idempotency_key_reused"
        )
