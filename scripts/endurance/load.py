"""R8, R10: memory under a long mixed load, and 500 clients at once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.endurance.client import Client
from scripts.endurance.flood import AUTH, KEY, send_mixed
from scripts.endurance.goals import Goal, Scale, at_most, percentile
from scripts.endurance.servers import figures, rss_mb, serving, worker_pid
from tests.server.running import Server

CLIENTS, QUEUE, STEP_S = 500, 32, 0.025


@dataclass(frozen=True)
class Usage:
    """What the server's two processes hold."""

    front_mb: float
    worker_mb: float
    files: int
    threads: int
    temporary: int

    @classmethod
    def of(cls, server: Server) -> Usage:
        pids = server.process.pid, worker_pid(server)
        return cls(
            *(rss_mb(pid) for pid in pids),
            sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids),
            sum(len(list(Path(f"/proc/{pid}/task").iterdir())) for pid in pids),
            len(list(server.store.glob(".tmp*"))),
        )


async def memory(scale: Scale) -> list[Goal]:
    """R8: 2,000 jobs and 20,000 bad requests, after some to warm up."""
    total = scale.of(22_000)
    with serving("--api-key", KEY, "--max-queue", "128") as server:
        await send_mixed(server, 2000, seed=10**6)
        await _fill_threads(server)
        await asyncio.sleep(1)
        before = Usage.of(server)
        await send_mixed(server, total)
        await asyncio.sleep(11)  # until the idle connections are closed
        after = Usage.of(server)
    what = f"{total:,} requests, a tenth good:"
    left = [f"{name} {getattr(before, name)} -> {getattr(after, name)}" for name in ("files", "threads", "temporary")]
    flat = all(getattr(after, name) <= getattr(before, name) for name in ("files", "threads", "temporary"))
    return [
        at_most("R8", f"{what} the front grows by", after.front_mb - before.front_mb, 15, "MB"),
        at_most("R8", f"{what} the worker grows by", after.worker_mb - before.worker_mb, 30, "MB"),
        Goal("R8", f"{what} open files, threads, temporary files", "no more", ", ".join(left), flat),
    ]


async def _fill_threads(server: Server) -> None:
    """Reads one picture many times at once: pools of threads grow to their bound only when all are busy."""
    reply = await Client(server, AUTH).post({"prompt": "a"})
    path = urlsplit(reply.json()["data"][0]["url"]).path
    await asyncio.gather(*(Client(server).send("GET", path, headers={"connection": "close"}) for _ in range(200)))


@dataclass(frozen=True)
class Visit:
    """One client's way in. told_s: its first Retry-After; waited_s: from then until it was let in."""

    statuses: tuple[int, ...]
    refusal_s: float
    told_s: int
    waited_s: float


async def overload(scale: Scale) -> list[Goal]:
    """R10: every client obeys the Retry-After it gets, until it is served."""
    clients = scale.of(CLIENTS)
    with serving("--max-queue", str(QUEUE)) as server:
        await Client(server).post({"prompt": f"a [slow:step:{STEP_S}]"})
        began = time.monotonic()
        watch = asyncio.create_task(_deepest(server))
        visits = await asyncio.gather(*(_visit(server, seed) for seed in range(1, clients + 1)))
        seconds = time.monotonic() - began
        watch.cancel()
        deepest = await watch
        steps = figures(server)["fluxserve_denoise_step_seconds_sum"]
    refused = [visit for visit in visits if visit.told_s]
    fair = [visit for visit in refused if 0.5 <= visit.waited_s / visit.told_s <= 2]
    codes = sorted({status for visit in visits for status in visit.statuses})
    return [
        Goal(
            "R10", f"{clients} clients at once: statuses", "200, 429", ", ".join(map(str, codes)), codes == [200, 429]
        ),
        at_most("R10", "a 429 comes within, p99", percentile([visit.refusal_s for visit in refused], 99), 1, "s"),
        Goal(
            "R10",
            "Retry-After within x2 of the true wait",
            ">= 80 %",
            f"{len(fair) / len(refused):.0%}",
            len(fair) >= 0.8 * len(refused),
        ),
        Goal(
            "R10", "the worker draws meanwhile", ">= 50 % of the time", f"{steps / seconds:.0%}", steps >= 0.5 * seconds
        ),
        Goal("R10", "deepest queue", f"<= {QUEUE}", f"{deepest:g}", deepest <= QUEUE),
    ]


async def _visit(server: Server, seed: int) -> Visit:
    client, statuses, refusal_s, told_s, waited_s = Client(server), [], 0.0, 0, 0.0
    refused_at = None
    while True:
        asked = time.monotonic()
        reply = await client.post({"prompt": f"a [slow:step:{STEP_S}]", "seed": seed})
        statuses.append(reply.status)
        if reply.status != 429:
            client.close()
            waited_s = asked - refused_at if refused_at else 0.0
            return Visit(tuple(statuses), refusal_s, told_s, waited_s)
        refusal_s = max(refusal_s, reply.seconds)
        told_s = told_s or int(reply.headers["retry-after"])
        refused_at = refused_at or asked
        client.close()
        await asyncio.sleep(int(reply.headers["retry-after"]))


async def _deepest(server: Server) -> float:
    deepest, client = 0.0, Client(server)
    try:
        while True:
            text = (await client.send("GET", "/metrics")).body.decode()
            depth = next(line for line in text.splitlines() if line.startswith("fluxserve_queue_depth "))
            deepest = max(deepest, float(depth.rsplit(" ", 1)[1]))
            await asyncio.sleep(0.2)
    except asyncio.CancelledError:
        return deepest
