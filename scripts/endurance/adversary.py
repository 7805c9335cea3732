"""R24: every attack at once from 30 connections, while an honest client with its own key draws, edits and streams."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import httpx

from scripts.endurance.attacks import ATTACKS
from scripts.endurance.client import Client, Reply
from scripts.endurance.flood import PROBE
from scripts.endurance.goals import Goal, Scale, at_most, none_of, percentile
from scripts.endurance.servers import children, loads, rss_mb, serving, worker_pid
from tests.server.running import EDITS, Server, png

SECONDS, CONNECTIONS = 300.0, 30
QUIET_PART = 0.2
"""How long the honest client is watched alone, as a part of the attack's time."""
HONEST, EVIL = "honest", ("evil", "bad")
DRAIN_S = 5.0
FLAGS = ["--drain-timeout", str(DRAIN_S), "--content-filter", "tests.server.content_filters:slow_about_cats"]
FLAGS += [flag for key in (HONEST, *EVIL) for flag in ("--api-key", key)]
_PAUSE_S = 0.02


@dataclass
class Watch:
    """What was seen. seconds: of the honest client's requests; livez: of the health checks. memory: MB, the most."""

    seconds: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    livez: list[float] = field(default_factory=list)
    memory: float = 0.0
    done: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    exit_s: float = 0.0


async def adversary(scale: Scale) -> list[Goal]:
    """The whole part."""
    quiet, attacked = await watched(max(SECONDS * scale.part, 10.0))
    limit = 3 * percentile(quiet.seconds, 99) + 1
    requests, attacks = len(attacked.seconds) + len(attacked.refused), attacked.done.total()
    missing = [kind.__name__ for kind in ATTACKS if not attacked.done[kind.__name__]]
    return [
        none_of("R24", f"honest requests refused beside {attacks:,} attacks", attacked.refused, requests),
        at_most("R24", "an honest request, p99", percentile(attacked.seconds, 99), round(limit, 2), "s"),
        at_most("R24", "/livez meanwhile, p99", percentile(attacked.livez, 99) * 1000, 100, "ms"),
        at_most("R24", "memory of the front and of decoding, most", attacked.memory, 500, "MB"),
        none_of("R24", "kinds of attack that never came to their end", missing, len(ATTACKS)),
        at_most("R24", "workers that died", attacked.deaths, 0, ""),
        at_most("R24", f"the end after SIGTERM, drain timeout {DRAIN_S:g} s", attacked.exit_s, DRAIN_S + 2, "s"),
    ]


async def watched(seconds: float) -> tuple[Watch, Watch]:
    """The honest client alone, then under attack, then the end."""
    quiet, attacked = Watch(), Watch()
    with serving(*FLAGS) as server:
        await _honest(server, quiet, max(seconds * QUIET_PART, 5.0))
        with attacking(server, seconds + 30, attacked):
            with probing(server, attacked):
                await asyncio.gather(_honest(server, attacked, seconds), _weigh(server, attacked, seconds))
            attacked.deaths = loads(server) - 1
            attacked.exit_s = await asyncio.to_thread(_ended, server)
    return quiet, attacked


async def _honest(server: Server, watch: Watch, seconds: float) -> None:
    """Draws, edits and streams, one after the other."""
    client, end, seed = Client(server, {"authorization": f"Bearer {HONEST}"}), time.monotonic() + seconds, 0
    edit = httpx.Request("POST", server.url, data={"prompt": "a", "size": "64x64"}, files={"image": png(600, 600)})
    form, kind = edit.read(), {"content-type": edit.headers["content-type"]}
    while time.monotonic() < end:
        seed += 1
        for send in (
            partial(client.post, {"prompt": "a", "seed": seed, "response_format": "b64_json"}),
            partial(client.send, "POST", EDITS, form, kind),
            partial(client.post, {"prompt": "a", "seed": seed, "stream": True, "partial_images": 2}),
        ):
            await _note(send, watch)
        await asyncio.sleep(_PAUSE_S)
    client.close()


async def _note(send: Callable[[], Awaitable[Reply]], watch: Watch) -> None:
    try:
        reply = await send()
    except (OSError, TimeoutError) as error:
        watch.refused.append(repr(error))
        return
    if reply.status == 200 and b"event: error" not in reply.body:
        watch.seconds.append(reply.seconds)
    else:
        watch.refused.append(f"{reply.status} {reply.body[:100]!r}")


async def _weigh(server: Server, watch: Watch, seconds: float) -> None:
    """The front and what it started, but for the worker."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        total = 0.0
        for pid in {server.process.pid, *children(server.process.pid)} - {worker_pid(server)}:
            with suppress(OSError):
                total += rss_mb(pid)
        watch.memory = max(watch.memory, total)
        await asyncio.sleep(0.05)


@contextmanager
def attacking(server: Server, seconds: float, watch: Watch) -> Iterator[None]:
    """From a process that leaves the front its processor, as one on another machine would."""
    command = ["nice", "-n", "5", sys.executable, "-m", "scripts.endurance.attacks", server.url, str(seconds)]
    command += [str(CONNECTIONS), *EVIL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            process.terminate()
            watch.done.update((process.communicate()[0] or "").split())


@contextmanager
def probing(server: Server, watch: Watch) -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", PROBE, server.url], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield
        finally:
            process.terminate()
            watch.livez += map(float, process.communicate()[0].split())


def _ended(server: Server) -> float:
    """Seconds from SIGTERM to the end."""
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(120)
    return time.monotonic() - began
