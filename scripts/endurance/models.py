"""R23: three models on two workers each, with room for two of them: kills, evictions and idle unloads in a flood."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from scripts.endurance.client import Client, Reply
from scripts.endurance.first_come import Pool, Served, ratios
from scripts.endurance.goals import Goal, Scale, at_most, none_of
from scripts.endurance.servers import figures, lost, right_pictures, rss_mb, serving, until
from tests.fake_pipeline import read_log
from tests.server.running import Server

CALLERS, ROUNDS = 16, 5
MODELS_AT_ONCE, WORKERS = 2, 2
REQUESTS, KILLS, EVICTIONS = 10_000, 10, 20
WEIGHTS = {"a": 45, "b": 45, "c": 10}
MODEL_BYTES, FREE_BYTES = 600 * 2**20, 2500 * 2**20
"""Of a worker, and of the device: four workers fit, six do not."""
PAUSE_S = 1.5
"""Between two rounds, longer than the idle timeout."""
PROMPT = "a [slow:step:0.015]"
"""Long enough for a picture to be the workers' time and not the connection's."""
LOOK_S = 0.05
MOST_RATIO = 3.0
"""Of a request's time to what first come, first served would have given it."""
TABLE = '[[models]]\nmodel = "{}"\nworkers = {}\nmemory-budget = {}\nidle-timeout = 1\n'


@dataclass(frozen=True)
class Look:
    """began, ended: of asking. since: when the load began of each model that was loaded or loading."""

    began: float
    ended: float
    since: Mapping[str, float]


@dataclass
class Flood:
    """What callers share. wrong: what was found; served: what was answered. kills: of workers, when.

    looks: at which models were loaded. load_s: the longest load. image_s: what single images took a worker.
    """

    server: Server
    rng: random.Random = field(default_factory=lambda: random.Random(23))
    seed: int = 0
    sent: int = 0
    wrong: list[str] = field(default_factory=list)
    served: list[Served] = field(default_factory=list)
    kills: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    load_s: float = 0.0
    image_s: list[float] = field(default_factory=list)

    def with_loaded(self, served: Served) -> Served:
        """With what was loaded when it came: both at the last look before and at the first one after."""
        ended = bisect_right(self.looks, served.arrived, key=lambda look: look.ended)
        begun = bisect_left(self.looks, served.arrived, key=lambda look: look.began)
        if not ended or begun == len(self.looks):
            return served
        before, after = self.looks[ended - 1].since, self.looks[begun].since
        ready = {name: after[name] + self.load_s - served.arrived for name in before.keys() & after.keys()}
        return replace(served, loaded={name: max(seconds, 0.0) for name, seconds in ready.items()})


async def models(scale: Scale) -> list[Goal]:
    """The whole part."""
    with tempfile.TemporaryDirectory(prefix="fluxserve-soak-") as folder:
        file = Path(folder) / "models.toml"
        file.write_text("\n".join(TABLE.format(name, WORKERS, MODEL_BYTES) for name in WEIGHTS))
        variables = {"FLUXSERVE_FAKE_FREE": str(FREE_BYTES)}
        with serving("--config", str(file), "--max-queue", "128", variables=variables) as server:
            flood = Flood(server)
            watch = asyncio.create_task(_watch(flood))
            for _ in range(ROUNDS):
                await _round(flood, scale)
                await asyncio.sleep(PAUSE_S)
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
            return _goals(flood, scale)


def _goals(flood: Flood, scale: Scale) -> list[Goal]:
    server, now = flood.server, figures(flood.server)
    wrong = flood.wrong + lost(server)
    wrong += [f"{len(left)} workers left" for left in [_workers(server)] if left]
    counted = 'fluxserve_model_unloads_total{{reason="{}"}}'
    unloads = {reason: now.get(counted.format(reason), 0.0) for reason in ("room", "idle")}
    what = (
        f"{flood.sent:,} requests over three models with room for two, two workers each, {len(flood.kills)} SIGKILLs, "
        f"{unloads['room']:.0f} evictions, {unloads['idle']:.0f} idle unloads: without their one right answer"
    )
    if unloads["room"] < scale.of(EVICTIONS) or unloads["idle"] < ROUNDS:
        wrong.append("too few evictions or idle unloads")
    if len(flood.kills) < scale.of(KILLS):
        wrong.append("too few kills")
    times = ratios(
        map(flood.with_loaded, flood.served),
        Pool(MODELS_AT_ONCE, WORKERS, flood.load_s, median(flood.image_s)),
        flood.kills,
    )
    due = "the longest that one took, in what first come, first served over the pool would have given it"
    return [
        none_of("R23", what, wrong, flood.sent),
        at_most("R23", due, max(times), MOST_RATIO, "times"),
        at_most("R23", "all unloaded: the front's memory", rss_mb(server.process.pid), 150, "MB"),
    ]


async def _round(flood: Flood, scale: Scale) -> None:
    """A fifth of the requests, and of the kills."""
    left = iter(range(max(CALLERS, scale.of(REQUESTS) // ROUNDS)))
    callers = [asyncio.create_task(_call(flood, left)) for _ in range(CALLERS)]
    for _ in range(max(1, scale.of(KILLS) // ROUNDS)):
        await asyncio.sleep(flood.rng.uniform(0.3, 1.0))
        await until(lambda: bool(_workers(flood.server)))
        with suppress(ProcessLookupError):
            os.kill(flood.rng.choice(_workers(flood.server)), signal.SIGKILL)
            flood.kills.append(time.monotonic())
    await asyncio.gather(*callers)


async def _watch(flood: Flood) -> None:
    """Learns again and again which models are loaded, and how long a load takes at most."""
    while True:
        client, began = Client(flood.server), time.monotonic()
        models = (await client.send("GET", "/v1/models")).json()["data"]
        client.close()
        there = [model["id"] for model in models if model["state"] in ("loading", "loaded")]
        if len(there) > MODELS_AT_ONCE:  # one that waits for room is called loading, too
            there = [model["id"] for model in models if model["state"] == "loaded"]
        known = flood.looks[-1].since if flood.looks else {}
        flood.looks.append(Look(began, time.monotonic(), {name: known.get(name, began) for name in there}))
        flood.load_s = max([flood.load_s, *(model["load_s"] or 0.0 for model in models)])
        await asyncio.sleep(LOOK_S)


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
    images = flood.rng.choice((1, 1, 1, 2, 3))
    body = {"prompt": PROMPT, "model": model, "seed": seed, "n": images, "response_format": "b64_json"}
    arrived = time.monotonic()
    try:
        reply = await client.post(body)
    except (OSError, TimeoutError) as error:
        flood.wrong.append(f"seed {seed}: {error!r}")
        return
    if reply.code == "worker_crashed" and flood.server.count("begin", seed) >= 2:
        return
    if reply.status != 200 or not _right(reply.json(), seed, images, model):
        flood.wrong.append(f"seed {seed}: {reply.status} {reply.code}")
        return
    _record(flood, reply, Served(model, images, arrived, 0.0, arrived + reply.seconds, {}))


def _record(flood: Flood, reply: Reply, served: Served) -> None:
    told = reply.json()["timings"]
    flood.served.append(replace(served, began=served.arrived + told["queue_ms"] / 1000))
    if served.images == 1:
        flood.image_s.append(sum(told[f"{stage}_ms"] for stage in ("text", "denoise", "decode", "encode")) / 1000)


def _right(body: Mapping[str, Any], seed: int, images: int, model: str) -> bool:
    data = body["data"]
    return len(data) == images and right_pictures(data, seed) and body["model"] == model


def _workers(server: Server) -> list[int]:
    """Of the processes that have loaded a model, those that live."""
    pids = {act.detail for act in read_log(server.folder) if act.verb == "load"}
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]
