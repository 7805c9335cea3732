"""Uploads hold what has come of them; the slowest give way to faster ones."""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest

from fluxserve.errors import QueueFull
from fluxserve.server.limits.upload_budget import UploadBudget
from tests.reliability import unread
from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS


@pytest.mark.anyio
@pytest.mark.fault(84)
async def test_the_slowest_of_a_client_or_of_all_gives_way() -> None:
    budget = UploadBudget(total=100, share=60)
    began = asyncio.Event()

    async def stalls(client: str, size: int) -> None:
        async with budget.receiving(client) as upload:
            budget.add(upload, size)
            began.set()
            await asyncio.sleep(60)

    async def stalled(client: str, size: int) -> asyncio.Task[None]:
        began.clear()
        task = asyncio.create_task(stalls(client, size))
        await began.wait()
        await asyncio.sleep(0.1)
        return task

    first, other = await stalled("a", 40), await stalled("b", 50)
    async with budget.receiving("a") as upload:
        budget.add(upload, 30)
        with pytest.raises(QueueFull):
            await first
        assert not other.done()
    async with budget.receiving("c") as upload:
        budget.add(upload, 60)
        with pytest.raises(QueueFull):
            await other
        with pytest.raises(QueueFull):
            budget.add(upload, 60)


@pytest.mark.fault(84)
def test_bodies_that_do_not_come_lock_nobody_out(start_server: StartServer) -> None:
    server = start_server()
    form = "Content-Type: multipart/form-data; boundary=b\r\n"
    with ExitStack() as stack:
        for number in range(32):
            length = "Transfer-Encoding: chunked" if number % 2 else f"Content-Length: {64 * 2**20}"
            connection = stack.enter_context(unread.connect(server))
            connection.sendall(f"POST {EDITS} HTTP/1.1\r\nHost: localhost\r\n{form}{length}\r\n\r\n".encode())
        time.sleep(0.5)
        assert_answer(84, server.request("POST", GENERATIONS, json={"prompt": "a cat"}), 200)
