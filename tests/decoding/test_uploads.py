"""Uploads are decoded in processes that end when they must; waiting is told from decoding, clients from each other."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from PIL import Image

from fluxserve.errors import InvalidRequest, QueueFull
from fluxserve.input_images import EditInputs
from fluxserve.server.contract import uploads
from fluxserve.server.contract.pictures import Pictures
from fluxserve.server.contract.uploads import UploadReader
from fluxserve.server.limits.turns import Room
from fluxserve.sizes import Box
from tests.decoding.slow_decoder import A_WHILE, A_WHILE_S, DEADLY, FOR_EVER
from tests.server.running import png

SLOW = "tests.decoding.slow_decoder"
BOX = Box(None, 64 * 64, 2**20, 2**25)
CLEAR = (0, 0, 0, 0)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def reading(limit_s: float, module: str = SLOW, room: Room = uploads.ROOM) -> AsyncIterator[UploadReader]:
    """A reader whose processes run already."""
    before, reader = children(), UploadReader(module, limit_s, room)
    await asyncio.gather(*(read(reader, png(), None, f"client {i}") for i in range(uploads.PROCESSES)))
    yield reader
    reader.close()
    while children() - before:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)  # in which the loop hears of it


async def read(reader: UploadReader, image: bytes, mask: bytes | None, client: str) -> EditInputs:
    """What a request of this client does with its upload."""
    async with reader.turn(client, len(image)) as decoder:
        return await uploads.read_pictures(decoder, Pictures((image,), mask), BOX)


def children() -> set[int]:
    """This process's child processes; a thread that ends while it is asked has none."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return found


async def outcome(reading: Awaitable[EditInputs]) -> EditInputs | InvalidRequest | QueueFull:
    try:
        return await reading
    except (InvalidRequest, QueueFull) as error:
        return error


@pytest.mark.anyio
@pytest.mark.fault(76)
async def test_what_takes_too_long_is_ended_and_others_are_served() -> None:
    async with reading(limit_s=1.0) as reader:
        slow = asyncio.create_task(outcome(read(reader, png(FOR_EVER), None, "slow")))
        more = asyncio.create_task(outcome(read(reader, png(FOR_EVER), None, "slow")))
        await asyncio.sleep(0.1)
        for number in range(5):
            assert (await read(reader, png(), None, f"other {number}")).size == (64, 64)
        assert not slow.done()
        for refusal in await asyncio.gather(slow, more):
            assert isinstance(refusal, InvalidRequest)
            assert (refusal.param, refusal.code) == ("image", "invalid_image")
            assert "takes longer than 1 s" in refusal.message
        refusal = await outcome(read(reader, png(), png(FOR_EVER), "slow"))
        assert isinstance(refusal, InvalidRequest)
        assert (refusal.param, refusal.code) == ("mask", "invalid_mask")
        assert (await read(reader, png(), None, "slow")).size == (64, 64)


@pytest.mark.anyio
@pytest.mark.fault(76, 77)
async def test_each_file_has_its_own_time_and_waiting_is_not_counted() -> None:
    async with reading(limit_s=2 * A_WHILE_S) as reader:
        mask = png(A_WHILE, color=CLEAR, mode="RGBA")
        both = [outcome(read(reader, png(A_WHILE), mask, "a")) for _ in range(4)]
        assert all(isinstance(each, EditInputs) for each in await asyncio.gather(*both))


@pytest.mark.anyio
@pytest.mark.fault(76)
async def test_a_large_photo_under_a_lowered_limit() -> None:
    async with reading(limit_s=20, module="fluxserve.decoding") as reader:
        for decoder in reader._all:
            decoder._limit_s = 0.02
        refusal = await outcome(read(reader, png(4096, 4096), None, "a"))
        assert isinstance(refusal, InvalidRequest)
        assert "takes longer" in refusal.message


@pytest.mark.anyio
@pytest.mark.fault(76)
async def test_a_file_that_ends_its_process_is_at_fault_and_a_killed_process_is_replaced() -> None:
    others = children()
    async with reading(limit_s=20) as reader:
        refusal = await outcome(read(reader, png(DEADLY), None, "a"))
        assert isinstance(refusal, InvalidRequest)
        assert "cannot be decoded" in refusal.message
        for pid in children() - others:
            os.kill(pid, signal.SIGKILL)
        assert (await read(reader, png(), None, "a")).size == (64, 64)


@pytest.mark.anyio
@pytest.mark.fault(77)
async def test_a_process_that_does_not_start_is_not_the_pictures_fault() -> None:
    reader = UploadReader("tests.decoding.no_such_module", limit_s=20)
    assert isinstance(await outcome(read(reader, png(), None, "a")), QueueFull)
    await asyncio.sleep(0.2)


@pytest.mark.anyio
async def test_a_client_that_leaves_takes_its_process_along() -> None:
    async with reading(limit_s=20) as reader:
        slow = asyncio.create_task(read(reader, png(FOR_EVER), None, "a"))
        waiting = asyncio.create_task(read(reader, png(), None, "a"))
        left = asyncio.create_task(read(reader, png(), None, "a"))
        await asyncio.sleep(0.2)
        left.cancel()
        slow.cancel()
        assert (await waiting).size == (64, 64)


@pytest.mark.anyio
@pytest.mark.fault(77)
async def test_a_full_room_is_nobodys_fault() -> None:
    async with reading(limit_s=20, room=Room(4, 2**20, 0.2, "full")) as reader:
        greedy = [asyncio.create_task(outcome(read(reader, png(A_WHILE), None, "a"))) for _ in range(9)]
        await asyncio.sleep(0)
        assert isinstance(await outcome(read(reader, png(), None, "b")), EditInputs)
        answers = await asyncio.gather(*greedy)
        assert isinstance(answers[0], EditInputs)
        assert all(isinstance(answer, QueueFull) for answer in answers[1:]), "not its turn, or no room"
        assert all((answer.retry_after_s or 0) >= 1 for answer in answers if isinstance(answer, QueueFull))


@pytest.mark.anyio
async def test_who_was_served_longest_ago_goes_first() -> None:
    async with reading(limit_s=20) as reader:
        order: list[str] = []

        async def read_one(client: str) -> None:
            await read(reader, png(A_WHILE), None, client)
            order.append(client)

        began = time.monotonic()
        await asyncio.gather(*(read_one(client) for client in ("a", "a", "a", "b", "b", "c")))
        assert "c" in order[:4], "two had begun before, and one may have ended in the same moment"
        assert time.monotonic() - began >= 3 * A_WHILE_S


@pytest.mark.anyio
@pytest.mark.fault(115)
async def test_large_pictures_are_decoded_one_at_a_time() -> None:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((4096, 4096)).save(buffer, "WEBP", quality=50)
    others, most = children(), 0
    async with reading(limit_s=20, module="fluxserve.decoding") as reader:
        edits = [asyncio.create_task(read(reader, buffer.getvalue(), None, client)) for client in ("a", "b", "c", "d")]
        while not all(edit.done() for edit in edits):
            await asyncio.sleep(0.01)
            most = max(most, sum(map(memory_of, children() - others)))
        assert all(edit.result().size == (4096, 4096) for edit in edits)
        assert (await read(reader, png(), None, "a")).size == (64, 64)
    assert 200 < most < 450, "one takes 290 MiB"


def memory_of(pid: int) -> int:
    """MiB that a process holds."""
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024
    return 0


@pytest.mark.anyio
@pytest.mark.fault(115)
async def test_a_process_that_waits_holds_no_file() -> None:
    others, padded = children(), png() + bytes(48 * 2**20)
    async with reading(limit_s=20, module="fluxserve.decoding") as reader:
        before = sum(map(memory_of, children() - others))
        assert (await read(reader, padded, None, "a")).size == (64, 64)
        await asyncio.sleep(0.2)
        assert sum(map(memory_of, children() - others)) - before < 24
