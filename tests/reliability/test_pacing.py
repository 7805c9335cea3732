"""A burst of requests is spread over turns of the event loop; health checks do not wait in it."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from starlette.types import Message, Receive, Scope, Send

from fluxserve.server.http.pacing import REQUESTS_A_TURN, Pacing
from fluxserve.server.http.protocol import LOST

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
        asyncio.create_task(pacing({"type": "http", "path": path, "headers": []}, nothing, ignore))
        for path in [*paths, "/livez"]
    ]
    sizes = [0]
    while len(begun) <= len(paths):
        await asyncio.sleep(0)
        sizes.append(len(begun))
    assert begun[REQUESTS_A_TURN] == "/livez"
    assert max(later - earlier for earlier, later in itertools.pairwise(sizes)) <= REQUESTS_A_TURN + 1
    assert [path for path in begun if path != "/livez"] == paths
    await asyncio.gather(*burst)


@pytest.mark.fault(139)
async def test_who_has_left_is_not_begun() -> None:
    begun: list[str] = []
    left: set[str] = set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])

    def ask(path: str) -> asyncio.Task[None]:
        state = {LOST: lambda: path in left}
        scope = {"type": "http", "path": path, "headers": [], "state": state}
        return asyncio.create_task(pacing(scope, nothing, ignore))

    pacing = Pacing(app)
    asked = [ask(f"/{number}") for number in range(500)]
    await asyncio.sleep(0)
    left.update(f"/{number}" for number in range(REQUESTS_A_TURN, 499))
    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == ["/0", "/1", "/2", "/3", "/499"]
    await asyncio.gather(*asked)


@pytest.mark.fault(118)
async def test_who_sends_many_waits_for_his_own() -> None:
    begun: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        begun.append(scope["path"])

    pacing = Pacing(app)

    def ask(key: str, number: int) -> asyncio.Task[None]:
        headers = [(b"authorization", f"Bearer {key}".encode())]
        return asyncio.create_task(pacing({"type": "http", "path": key, "headers": headers}, nothing, ignore))

    asked = [ask("many", number) for number in range(200)] + [ask(key, 0) for key in ("one", "two")]
    await asyncio.gather(*asked)
    assert {"one", "two"} <= set(begun[: 4 * REQUESTS_A_TURN])
    assert begun.count("many") == 200
    assert not pacing._waiting
