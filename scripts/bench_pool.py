"""What a second worker gives over one: pictures a second, and what short requests wait beside long ones.

A pipeline that sleeps, in the real worker processes, with 8 clients: at least 1.9 times the pictures of one worker, and
the 99th percentile of short requests beside long ones no worse. The demo with workers of one thread, on two cores: at
least 1.5 times. Servers of one and of two workers take turns. Run it alone on a machine. Ends with 1 if a goal is
missed.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.endurance.client import Client
from scripts.endurance.goals import Goal, at_most, percentile
from scripts.endurance.servers import figures
from tests.server.running import FAKE_WORKER, REAL_WORKER, Server, start, until

CLIENTS = 8
SLEEPING_LEAST, DEMO_LEAST, SHORT_MOST = 1.9, 1.5, 1.0
SLEEPING = {"prompt": "a [slow:step:0.02]", "steps": 4}
DEMO = {"prompt": "a red circle"}
SHORT, LONG = {"prompt": "a [slow:step:0.02]", "steps": 2}, {"prompt": "a [slow:step:0.02]", "steps": 8, "n": 4}
SHORT_CLIENTS, LONG_CLIENTS = 2, 6
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

Body = dict[str, Any]


@dataclass(frozen=True)
class Pair:
    """Servers that differ in how many workers they have."""

    one: Server
    two: Server


@contextmanager
def pair(worker: str) -> Iterator[Pair]:
    """Both ready, with all their workers."""
    with ExitStack() as stack:
        yield Pair(*(stack.enter_context(serving(worker, count)) for count in (1, 2)))


@contextmanager
def serving(worker: str, workers: int) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="fluxserve-bench-") as folder:
        server = start(["demo", "--workers", str(workers)], Path(folder), worker, ONE_THREAD).wait_ready()
        try:
            until(lambda: figures(server)["fluxserve_worker_up"] == workers, 60)
            yield server
        finally:
            server.stop()


async def draw(server: Server, bodies: Sequence[Body], seconds: float) -> list[list[float]]:
    """A client for each body, which sends it again and again for so long. Returns the seconds that each answer took."""
    end = time.monotonic() + seconds

    async def client(body: Body) -> list[float]:
        connection, taken = Client(server), []
        while time.monotonic() < end:
            reply = await connection.post({**body, "response_format": "b64_json"})
            assert reply.status == 200, reply.body
            taken.append(reply.seconds)
        connection.close()
        return taken

    return await asyncio.gather(*(client(body) for body in bodies))


def pictures_a_second(server: Server, body: Body, seconds: float) -> float:
    began = time.monotonic()
    answers = asyncio.run(draw(server, [body] * CLIENTS, seconds))
    return sum(map(len, answers)) / (time.monotonic() - began)


def gain(servers: Pair, body: Body, rounds: int, seconds: float) -> float:
    """Of two workers over one, the median of rounds."""
    asyncio.run(draw(servers.one, [body], 0))
    asyncio.run(draw(servers.two, [body] * 2, 0))
    return statistics.median(
        pictures_a_second(servers.two, body, seconds) / pictures_a_second(servers.one, body, seconds)
        for _ in range(rounds)
    )


def short_beside_long(servers: Pair, rounds: int, seconds: float) -> float:
    """The 99th percentile of short requests with two workers, over that with one."""
    bodies: list[Body] = [SHORT] * SHORT_CLIENTS + [LONG] * LONG_CLIENTS
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for server, seen in zip((servers.one, servers.two), taken, strict=True):
            for answers in asyncio.run(draw(server, bodies, seconds))[:SHORT_CLIENTS]:
                seen += answers
    one, two = (percentile(seen, 99) for seen in taken)
    return two / one


def at_least(number: str, what: str, figure: float, limit: float) -> Goal:
    return Goal(number, what, f">= {limit:g} x", f"{figure:.3g} x", figure >= limit)


def measure(rounds: int, seconds: float) -> list[Goal]:
    with pair(FAKE_WORKER) as servers:
        sleeping, short = gain(servers, SLEEPING, rounds, seconds), short_beside_long(servers, rounds, seconds)
    with pair(REAL_WORKER) as servers:
        demo = gain(servers, DEMO, rounds, seconds)
    return [
        at_least("sleeping", f"pictures a second of two workers over one, {CLIENTS} clients", sleeping, SLEEPING_LEAST),
        at_least("demo", "the same, the demo, a thread each", demo, DEMO_LEAST),
        at_most("short", "p99 of short requests beside long ones, two workers over one", short, SHORT_MOST, "x"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench_pool", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each server in each round")
    arguments = parser.parse_args()
    goals = measure(arguments.rounds, arguments.seconds)
    table = Table("goal", "what", "wanted", "figure", "")
    for goal in goals:
        table.add_row(goal.number, goal.what, goal.wanted, goal.figure, goal.verdict)
    Console().print(table)
    return 0 if all(goal.passed for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
