"""Bodies wait on the disk, not in memory."""

from __future__ import annotations

import random
import tempfile
import time
from contextlib import ExitStack

import httpx
import pytest

from fluxserve.errors import StorageFull
from fluxserve.server.http.spool import IN_MEMORY_BYTES, Spool
from tests.reliability import unread
from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.limits.test_send_budget import memory
from tests.server.running import EDITS, png


@pytest.mark.anyio
@pytest.mark.parametrize("size", [0, 1, IN_MEMORY_BYTES - 1, IN_MEMORY_BYTES, 3 * IN_MEMORY_BYTES + 7])
async def test_what_came_is_read(size: int) -> None:
    data, spool = random.Random(size).randbytes(size), Spool(tempfile.TemporaryFile)
    for start in range(0, size, 10_000):
        await spool.add(data[start : start + 10_000])
    assert spool.size == size
    assert spool.read() == b"".join(spool.chunks()) == data
    assert len(spool._latest) < IN_MEMORY_BYTES
    spool.close()


@pytest.mark.anyio
@pytest.mark.fault(114)
async def test_a_full_disk_refuses_large_uploads_alone() -> None:
    spool = Spool(lambda: open("/dev/full", "r+b"))  # noqa: SIM115  # the spool closes it
    await spool.add(bytes(1000))
    assert spool.read() == bytes(1000)
    with pytest.raises(StorageFull):
        await spool.add(bytes(IN_MEMORY_BYTES))
    spool.close()


@pytest.mark.fault(84)
def test_uploads_under_way_take_no_memory(start_server: StartServer) -> None:
    server = start_server()
    before = memory(server)
    head = f"POST {EDITS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    with ExitStack() as stack:
        for _ in range(20):
            connection = stack.enter_context(unread.connect(server))
            connection.sendall(f"{head}Content-Length: {64 * 2**20}\r\n\r\n".encode())
            connection.sendall(bytes(8 * 2**20))
        time.sleep(1)
        assert memory(server) - before < 20 + 30, "a MiB each at most, and what reading took"
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
            edit = client.post(EDITS, data={"prompt": "a", "size": "64x64"}, files={"image": ("upload", png(600, 600))})
        assert_answer(84, edit, 200)
    assert not [path for path in server.store.iterdir() if path.stat().st_size > 2**20], "files without a name"
