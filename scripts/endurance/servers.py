"""Servers with the fake pipeline for one part each, and what is read off them. Knows no goals."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scripts.endurance.client import Client
from tests.fake_pipeline import expected_pixels, read_log
from tests.server import running
from tests.server.running import Server, picture


@contextmanager
def serving(
    *flags: str, variables: dict[str, str] | None = None, under: Callable[[Path], list[str]] = lambda folder: []
) -> Iterator[Server]:
    """A ready server, gone with its files at the end. under: the command that runs it, given the folder it needs."""
    folder = Path(tempfile.mkdtemp(prefix="fluxserve-soak-"))
    server = running.start(list(flags), folder, variables=variables, under=under(folder)).wait_ready()
    try:
        yield server
    finally:
        server.http.close()
        server.process.kill()
        server.process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def worker_pid(server: Server) -> int:
    """Of the newest worker."""
    return [act.detail for act in read_log(server.folder) if act.verb == "load"][-1]


def loads(server: Server) -> int:
    """How many workers there have been."""
    return sum(act.verb == "load" for act in read_log(server.folder))


def figures(server: Server) -> dict[str, float]:
    """The samples of /metrics by name and labels."""
    lines = server.get("/metrics").text.splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def unanswered(server: Server) -> float:
    """Accepted requests beyond those answered, cancelled and in flight: always 0."""
    now = figures(server)
    accepted, *others = (
        now[f"fluxserve_requests_{name}"]
        for name in ("accepted_total", "answered_total", "cancelled_total", "in_flight")
    )
    return accepted - sum(others)


def lost(server: Server) -> list[str]:
    """The same in words, if there are any."""
    return [f"{count:g} not accounted for"] if (count := unanswered(server)) else []


def rss_mb(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def right_pictures(items: list[dict[str, object]], seed: int, side: int = 64) -> bool:
    """Whether these are the pictures of seed, seed + 1 ..., each once."""
    return all(
        item["seed"] == seed + i
        and bool((picture(str(item["b64_json"])) == expected_pixels(seed + i, side, side)).all())
        for i, item in enumerate(items)
    )


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> float:
    """Waits until it holds; returns how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while not condition():
        if loop.time() - began > timeout_s:
            raise TimeoutError("it did not come about")
        await asyncio.sleep(0.01)
    return loop.time() - began


async def ready(client: Client, timeout_s: float = 60.0) -> float:
    """Waits until /readyz says so; returns how long that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (await client.send("GET", "/readyz")).status != 200:
        if loop.time() - began > timeout_s:
            raise TimeoutError("not ready")
        await asyncio.sleep(0.02)
    return loop.time() - began


def children(pid: int) -> set[int]:
    """The processes that it has started."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found
