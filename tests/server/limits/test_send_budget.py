"""Answers that nobody reads hold little memory and no place for ever; the slowest give way to those who read."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send

from fluxserve.server.http.context import RequestContext
from fluxserve.server.http.protocol import ABORT
from fluxserve.server.http.sending import Sending
from fluxserve.server.limits import send_budget
from fluxserve.server.limits.send_budget import Outgoing, SendBudget
from tests.reliability import unread
from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.running import Server, until


class Held:
    """An answer of these buffers to a client that reads nothing, or at this pace."""

    def __init__(self, budget: SendBudget, client: str, *buffers: bytes, pace: int = 0, waits: bool = True) -> None:
        self.ended = False
        self.outgoing = Outgoing(lambda: client, lambda: buffers, self.end)
        self.outgoing.waiting = waits
        self.outgoing.pace.add(pace, time.monotonic())
        budget._answers.add(self.outgoing)

    def end(self) -> None:
        self.ended = True


def ended(*held: Held) -> list[bool]:
    return [each.ended for each in held]


@pytest.mark.fault(113)
def test_the_slowest_to_read_give_way() -> None:
    budget = SendBudget(total=100, share=60)
    slow, fast = Held(budget, "a", bytes(40)), Held(budget, "a", bytes(40), pace=100_000)
    other, ready = Held(budget, "b", bytes(40), pace=1000), Held(budget, "c", bytes(20), waits=False)
    budget.check()
    assert ended(slow, fast, other, ready) == [True, False, False, False], "of the client who holds more than a share"
    last = Held(budget, "d", bytes(40), pace=10**6)
    budget.check()
    assert ended(slow, fast, other, ready, last) == [True, False, True, False, False]


@pytest.mark.fault(113)
def test_what_is_shared_counts_once_and_one_answer_may_always_be_sent() -> None:
    budget, shared = SendBudget(total=100, share=60), bytes(50)
    many = [Held(budget, "a", shared) for _ in range(100)]
    budget.check()
    assert not any(ended(*many))
    huge = SendBudget(total=100, share=60)
    alone = Held(huge, "a", bytes(500))
    huge.check()
    assert not alone.ended
    next_one = Held(huge, "b", bytes(500), pace=1000)
    huge.check()
    assert ended(alone, next_one) == [True, False]


@pytest.mark.anyio
@pytest.mark.fault(25)
async def test_a_client_that_reads_nothing_or_crumbs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(send_budget, "WAIT_S", 0.3)
    taken: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"crumb", "more_body": True})
            if lost.is_set():
                return

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.wait([asyncio.ensure_future(lost.wait())], timeout=0.05)
            taken.append(message["body"])

    async def receive() -> Message:
        raise AssertionError("the application reads nothing")

    lost = asyncio.Event()
    scope = {"type": "http", "fluxserve": RequestContext(), "state": {ABORT: lost.set}}
    await asyncio.wait_for(Sending(app)(scope, receive, send), 10)
    assert lost.is_set()
    assert 3 <= len(taken) <= 8, "the time counts for the whole answer, not for each piece"


def memory(server: Server) -> int:
    """MiB that the front holds."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) // 1024


@pytest.mark.fault(113)
def test_one_large_answer_asked_for_by_many_costs_it_once(start_server: StartServer) -> None:
    server = start_server()
    fields, key = {**unread.LARGE, "seed": 1, "n": 5}, "Idempotency-Key: large"
    headers = {"idempotency-key": "large"}
    length = len(server.generate("a cat", headers=headers, **fields).content)
    with ExitStack() as stack:
        before = memory(server)
        for _ in range(12):
            stack.enter_context(unread.ask(server, key, **fields))
        time.sleep(3)
        assert memory(server) - before < 2.5 * length / 2**20, "twelve readers of one answer share it"
        assert_answer(113, server.generate("a cat", headers=headers, **fields), 200)
    with ExitStack() as stack:
        for seed in range(2, 6):
            again = {**fields, "seed": seed}
            assert server.generate("a cat", headers={"idempotency-key": f"large{seed}"}, **again).status_code == 200
        for seed in range(2, 6):
            stack.enter_context(unread.ask(server, f"Idempotency-Key: large{seed}", **{**fields, "seed": seed}))
        time.sleep(3)
        assert memory(server) - before < 2.5 * length / 2**20 + send_budget.CLIENT_CAP / 2**20, "a share has a bound"


@pytest.mark.fault(113)
def test_streams_that_nobody_reads_have_a_bound(start_server: StartServer) -> None:
    server = start_server()
    fields = {**unread.LARGE, "n": 10, "stream": True, "partial_images": 3}
    with ExitStack() as stack:
        before = memory(server)
        for seed in (10, 30, 50):
            stack.enter_context(unread.ask(server, seed=seed, **fields))
        until(lambda: any(server.count("decode", last) for last in (19, 39, 59)), 60)
        time.sleep(2)
        assert memory(server) - before < 3 * send_budget.CLIENT_CAP / 2**20
        assert server.get("/livez").status_code == 200
