"""R30: real Ray Serve, three replicas of the demo and a store in common: replicas and workers are killed in a flood."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from scripts.endurance.goals import Goal, Scale, none_of
from tests.cluster.ray_cluster import RayCluster
from tests.cluster.ray_cluster import cluster as ray_cluster
from tests.server.running import GENERATIONS

REPLICAS, CALLERS = 3, 12
REQUESTS, REPLICA_KILLS, WORKER_KILLS = 1_000, 4, 2
TRIES, LONGEST_PAUSE_S = 60, 5.0
LOOKS = 6
"""At each URL: any replica may be asked."""
LATER = (429, 503)


@dataclass
class Flood:
    """What callers share. answers: of keyed requests; urls: all that were given; each list: what was found wrong."""

    served: RayCluster
    total: int
    done: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    answers: dict[int, Any] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    killed: Counter[str] = field(default_factory=Counter)


async def cluster(scale: Scale) -> list[Goal]:
    """The whole part."""
    return await asyncio.to_thread(_part, scale)


def _part(scale: Scale) -> list[Goal]:
    with tempfile.TemporaryDirectory(prefix="fs-") as folder, ray_cluster(Path(folder)) as served:
        served.deploy(models=[{"model": "demo", "min_replicas": REPLICAS, "max_replicas": REPLICAS}])
        served.wait_replicas(REPLICAS)
        flood = Flood(served, scale.of(REQUESTS))
        with ThreadPoolExecutor(CALLERS + 1) as threads:
            killing = threads.submit(_kill, flood, scale)
            list(threads.map(lambda number: _ask(flood, number), range(flood.total)))
            killing.result()
            served.wait_replicas(REPLICAS)
            two_ways = [found for found in threads.map(lambda number: _again(flood, number), flood.answers) if found]
            dead = [found for found in threads.map(lambda url: _look(flood, url), flood.urls) if found]
        return _goals(flood, scale, two_ways, dead)


def _goals(flood: Flood, scale: Scale, two_ways: list[str], dead: list[str]) -> list[Goal]:
    wanted = {"replica": scale.of(REPLICA_KILLS), "worker": scale.of(WORKER_KILLS)}
    missing = [f"{count - flood.killed[of]} of a {of}" for of, count in wanted.items() if flood.killed[of] < count]
    kills = f"{flood.killed['replica']} SIGKILLs of replicas, {flood.killed['worker']} of workers"
    failed = ", ".join(f"{count} {code}" for code, count in sorted(flood.failed.items())) or "none"
    return [
        none_of("R30", f"Ray Serve, {REPLICAS} replicas, {kills}: requests without an answer", flood.lost, flood.total),
        none_of("R30", "keyed requests among them that were answered in two ways", two_ways, len(flood.answers)),
        none_of(
            "R30",
            f"answers that failed ({failed}), and could not be sent again or had not OpenAI's shape",
            flood.unfit,
            flood.failed.total(),
        ),
        none_of("R30", "URLs that some replica did not serve", dead, len(flood.urls)),
        none_of("R30", "kills that did not come about", missing, sum(wanted.values())),
    ]


def _kill(flood: Flood, scale: Scale) -> None:
    """Spread over the flood, each once all replicas are there again."""
    served, rng = flood.served, random.Random(30)
    of = ["replica"] * scale.of(REPLICA_KILLS) + ["worker"] * scale.of(WORKER_KILLS)
    rng.shuffle(of)
    for number, kind in enumerate(of, 1):
        while flood.done < flood.total * number / (len(of) + 1):
            time.sleep(0.05)
        served.wait_replicas(REPLICAS)
        pids = served.replicas() if kind == "replica" else served.workers()
        with suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
            flood.killed[kind] += 1


def _ask(flood: Flood, number: int) -> None:
    """Half have a key, half of each ask for a URL."""
    answer = _persistently(flood, lambda: _draw(flood, number))
    flood.done += 1
    if answer is None:
        flood.lost.append(f"request {number}")
        return
    data = answer.json()["data"]
    flood.urls += [item["url"] for item in data if "url" in item]
    if number % 2 == 0:
        flood.answers[number] = data


def _draw(flood: Flood, number: int) -> httpx.Response:
    body = {"prompt": f"{number}", "seed": number, "size": "128x128", "steps": 4}
    body["response_format"] = "url" if number % 4 < 2 else "b64_json"
    headers = {"idempotency-key": f"soak {number}"} if number % 2 == 0 else {}
    return flood.served.http.post(GENERATIONS, json=body, headers=headers)


def _again(flood: Flood, number: int) -> str | None:
    """The same key once more: what is given another answer."""
    answer = _persistently(flood, lambda: _draw(flood, number))
    same = answer is not None and answer.json()["data"] == flood.answers[number]
    return None if same else f"request {number}"


def _look(flood: Flood, url: str) -> str | None:
    for _ in range(LOOKS):
        answer = _persistently(flood, lambda: flood.served.http.get(url))
        if answer is None or not answer.content.startswith(b"\x89PNG"):
            return url
    return None


def _persistently(flood: Flood, send: Callable[[], httpx.Response]) -> httpx.Response | None:
    """Sends again as clients do; None: it did not help."""
    for _ in range(TRIES):
        try:
            answer = send()
        except httpx.TransportError as error:
            flood.failed["cut"] += 1
            flood.unfit.append(repr(error))
            continue
        if answer.status_code == 200:
            return answer
        code = _code(answer.status_code, answer)
        flood.failed[code or "of another shape"] += 1
        if code is None:
            flood.unfit.append(f"{answer.status_code} {answer.text[:100]}")
        time.sleep(min(float(answer.headers.get("retry-after", 1)), LONGEST_PAUSE_S))
    return None


def _code(status: int, answer: httpx.Response) -> str | None:
    """The code of an error in OpenAI's shape that may be sent again; None for any other."""
    headers: Mapping[str, str] = answer.headers
    with suppress(ValueError, KeyError, TypeError):
        error = answer.json()["error"]
        if status in LATER and "retry-after" in headers and list(error) == ["message", "type", "param", "code"]:
            return str(error["code"])
    return None
