"""R23: three models on two workers each, with room for two of them: kills, evictions and idle unloads in a flood."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scripts.endurance.client import Client
from scripts.endurance.goals import Goal, Scale, at_most, none_of
from scripts.endurance.servers import figures, lost, right_pictures, rss_mb, serving
from tests.fake_pipeline import read_log
from tests.server.running import Server

CALLERS, ROUNDS = 16, 5
REQUESTS, KILLS, EVICTIONS = 10_000, 10, 20
WEIGHTS = {"a": 45, "b": 45, "c": 10}
MODEL_BYTES, FREE_BYTES = 600 * 2**20, 2500 * 2**20
"""Of a worker, and of the device: four workers fit, six do not."""
PAUSE_S = 1.5
"""Between two rounds, longer than the idle timeout."""
TABLE = '[[models]]\nmodel = "{}"\nworkers = 2\nmemory-budget = {}\nidle-timeout = 1\n'


@dataclass
class Flood:
    """What callers share. wrong: what was found; longest_s: of one answer. kills: of workers."""

    server: Server
    rng: random.Random = field(default_factory=lambda: random.Random(23))
    seed: int = 0
    sent: int = 0
    wrong: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    kills: int = 0


async def models(scale: Scale) -> list[Goal]:
    """The whole part."""
    with tempfile.TemporaryDirectory(prefix="fluxserve-soak-") as folder:
        file = Path(folder) / "models.toml"
        file.write_text("\n".join(TABLE.format(name, MODEL_BYTES) for name in WEIGHTS))
        variables = {"FLUXSERVE_FAKE_FREE": str(FREE_BYTES)}
        with serving("--config", str(file), "--max-queue", "128", variables=variables) as server:
            flood = Flood(server)
            for _ in range(ROUNDS):
                await _round(flood, scale)
                await asyncio.sleep(PAUSE_S)
            return _goals(flood, scale)


def _goals(flood: Flood, scale: Scale) -> list[Goal]:
    server, now = flood.server, figures(flood.server)
    wrong = flood.wrong + lost(server)
    wrong += [f"{len(left)} workers left" for left in [_workers(server)] if left]
    counted = 'fluxserve_model_unloads_total{{reason="{}"}}'
    unloads = {reason: now.get(counted.format(reason), 0.0) for reason in ("room", "idle")}
    what = (
        f"{flood.sent:,} requests over three models with room for two, two workers each, {flood.kills} SIGKILLs, "
        f"{unloads['room']:.0f} evictions, {unloads['idle']:.0f} idle unloads: without their one right answer"
    )
    if unloads["room"] < scale.of(EVICTIONS) or unloads["idle"] < ROUNDS:
        wrong.append("too few evictions or idle unloads")
    return [
        none_of("R23", what, wrong, flood.sent),
        at_most("R23", "the longest wait for one of them", flood.longest_s, 60, "s"),
        at_most("R23", "all unloaded: the front's memory", rss_mb(server.process.pid), 150, "MB"),
    ]


async def _round(flood: Flood, scale: Scale) -> None:
    """A fifth of the requests, and of the kills."""
    left = iter(range(max(CALLERS, scale.of(REQUESTS) // ROUNDS)))
    callers = [asyncio.create_task(_call(flood, left)) for _ in range(CALLERS)]
    for _ in range(max(1, scale.of(KILLS) // ROUNDS)):
        await asyncio.sleep(flood.rng.uniform(0.3, 1.0))
        if living := _workers(flood.server):
            with suppress(ProcessLookupError):
                os.kill(flood.rng.choice(living), signal.SIGKILL)
                flood.kills += 1
    await asyncio.gather(*callers)


async def _call(flood: Flood, left: Iterator[int]) -> None:
    client = Client(flood.server)
    for _ in left:
        flood.seed += 10
        flood.sent += 1
        await _draw(flood, client, flood.seed)
    client.close()


async def _draw(flood: Flood, client: Client, seed: int) -> None:
    """A job that two kills hit may end with `worker_crashed`."""
    [model] = flood.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
    body = {"prompt": "a [slow:step:0.002]", "model": model, "seed": seed, "n": flood.rng.choice((1, 1, 1, 2, 3))}
    try:
        reply = await client.post({**body, "response_format": "b64_json"})
    except (OSError, TimeoutError) as error:
        flood.wrong.append(f"seed {seed}: {error!r}")
        return
    flood.longest_s = max(flood.longest_s, reply.seconds)
    if reply.code == "worker_crashed" and flood.server.count("begin", seed) >= 2:
        return
    if reply.status != 200 or not right_pictures(reply.json()["data"], seed) or reply.json()["model"] != model:
        flood.wrong.append(f"seed {seed}: {reply.status} {reply.code}")


def _workers(server: Server) -> list[int]:
    """Of the processes that have loaded a model, those that live."""
    pids = {act.detail for act in read_log(server.folder) if act.verb == "load"}
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
