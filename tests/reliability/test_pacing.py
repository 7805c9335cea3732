"""A burst of requests is spread over turns of the event loop; health checks do not wait in it."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from starlette.types import Message, Receive, Scope, Send

from fluxserve.server.http.pacing import REQUESTS_A_TURN, Pacing

pytestmark = pytest.mark.anyio


async def nothing() -> Message:
    raise AssertionError("the application reads nothing")


async def ignore(message: Message) -> None:
    pass


async def test_a_burst_begins_a_few_at_a_time_in_its_order_and_health_at_once() -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])

    pacing = Pacing(app)
    paths = [f"/{number}" for number in range(40)]
    burst = [
        asyncio.create_task(pacing({"type": "http", "path": path}, nothing, ignore)) for path in [*paths, "/livez"]
    ]
    sizes = [0]
    while len(begun) <= len(paths):
        await asyncio.sleep(0)
        sizes.append(len(begun))
    assert begun[REQUESTS_A_TURN] == "/livez"
    assert max(later - earlier for earlier, later in itertools.pairwise(sizes)) <= REQUESTS_A_TURN + 1
    assert [path for path in begun if path != "/livez"] == paths
    await asyncio.gather(*burst)
