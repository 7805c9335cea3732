"""Uploads and content filters that cost much: those wait that they belong to, and nobody is blamed for waiting."""

from __future__ import annotations

import asyncio
import io
import time

import httpx
import pytest
from PIL import Image

from tests.reliability.answers import assert_answer
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, Server, png

CLIENTS = 70


def photo() -> bytes:
    """Sixteen megapixels as a camera makes them."""
    rows, columns = Image.linear_gradient("L"), Image.linear_gradient("L").rotate(90)
    small = Image.merge("RGB", (rows, columns, Image.radial_gradient("L")))
    buffer = io.BytesIO()
    small.resize((4096, 4096)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.anyio
@pytest.mark.fault(77)
async def test_large_photos_of_many_clients_at_once(server: Server) -> None:
    data, livez_s = photo(), 0.0
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False, limits=httpx.Limits()) as client:

        async def edit(seed: int) -> httpx.Response:
            fields = {"prompt": "a", "seed": str(seed), "size": "64x64"}
            return await client.post(EDITS, data=fields, files={"image": ("upload", data)})

        edits = [asyncio.create_task(edit(7700 + number)) for number in range(CLIENTS)]
        while not all(task.done() for task in edits):
            began = time.monotonic()
            assert (await client.get("/livez")).status_code == 200
            livez_s = max(livez_s, time.monotonic() - began)
            await asyncio.sleep(0.2)
        answers = [task.result() for task in edits]
    for answer in answers:
        assert_answer(77, answer, 200 if answer.status_code == 200 else 429)
    assert sum(answer.status_code == 200 for answer in answers) >= 10
    assert livez_s < 5


@pytest.mark.anyio
@pytest.mark.fault(79)
async def test_a_slow_content_filter_holds_up_nobody_else(start_server: StartServer) -> None:
    server = start_server("--content-filter", "tests.server.content_filters:slow_about_cats")
    async with httpx.AsyncClient(base_url=server.url, timeout=60, trust_env=False) as client:
        stored = (await client.post(GENERATIONS, json={"prompt": "a cow"})).json()["data"][0]["url"]
        slow = [asyncio.create_task(client.post(GENERATIONS, json={"prompt": "a cat"})) for _ in range(12)]
        await asyncio.sleep(0.5)
        for path in (stored, "/v1/models", "/livez"):
            assert (await client.get(path)).status_code == 200
        refused = await client.post(
            EDITS, data={"prompt": "a cow", "n": "0"}, files={"image": ("upload", png(600, 600))}
        )
        assert refused.status_code == 400
        assert not any(task.done() for task in slow)
        answers = await asyncio.gather(*slow)
    for answer in answers:
        assert_answer(79, answer, 200)
