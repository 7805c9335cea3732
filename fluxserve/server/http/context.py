"""What accompanies one HTTP request on its way: its id, its client, what its answer's head will say."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fluxserve.engine import Job

CLIENT_ID_CHARACTERS = r"[A-Za-z0-9_-]{1,64}"


@dataclass
class RequestContext:
    """client: whose share of the queue and of the rate it takes: a hash of its key, else its address.

    warnings: what the warning header lists. headers: further ones for the answer, whatever it turns out to be.
    accepted: past admission, so that the figures must show how it ended. error_code: what it was answered with.
    operation, model: what the figures call it; empty for requests that draw nothing. job: what draws it, if anything.
    refused: the Host or Origin that was turned away.
    prompt: for the log; None unless the operator wants it there. held: what of a large answer lies in memory.
    """

    request_id: str = field(default_factory=lambda: secrets.token_hex(16))
    client: str = ""
    started: float = field(default_factory=time.monotonic)
    warnings: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    accepted: bool = False
    error_code: str | None = None
    operation: str = ""
    model: str = ""
    job: Job | None = None
    refused: str | None = None
    prompt: str | None = None
    held: Callable[[], Iterable[bytes]] | None = None

    @property
    def elapsed_ms(self) -> int:
        return round((time.monotonic() - self.started) * 1000)


def context_of(scope: Any) -> RequestContext:
    """The context of an ASGI scope; made by the outermost layer (`headers.Instrumentation`)."""
    context = scope["fluxserve"]
    assert isinstance(context, RequestContext)
    return context
