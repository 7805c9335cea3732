"""R2 to R5: the worker is killed, stopped and poisoned; every accepted request keeps its one answer."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress

from scripts.endurance.client import Client
from scripts.endurance.flood import AUTH, KEY, send_mixed
from scripts.endurance.goals import Goal, Scale, at_most, none_of
from scripts.endurance.servers import figures, loads, lost, ready, right_pictures, serving, until, worker_pid
from tests.server.running import Server

CALLERS = 16
FLOOD_KILLS = 5


async def kills(scale: Scale) -> list[Goal]:
    """The whole part."""
    flooded, fired_on = await _flooded(scale), await _fired_on(scale)
    return [flooded, fired_on, *await _one_kill(), await _stopped(), *await _poison()]


async def _flooded(scale: Scale) -> Goal:
    """R1's flood, and a kill whenever the worker is ready and has answered what the last one sent back."""
    total, kills = scale.of(10_000), 0
    with serving("--api-key", KEY, "--max-queue", "128") as server:
        server.http.headers.update(AUTH)
        flood, watcher = asyncio.create_task(send_mixed(server, total)), Client(server)
        while kills < FLOOD_KILLS:
            await ready(watcher)
            await _answers(server, 2 * CALLERS, flood)
            if flood.done():
                break
            _kill(server)
            kills += 1
        wrong, _ = await flood
        watcher.close()
        wrong += lost(server)
        if kills < scale.of(FLOOD_KILLS):
            wrong.append(f"the flood was over after {kills} kills")
    return none_of(
        "R2", f"R1 with {kills} SIGKILLs in it, each once ready: requests without their answer", wrong, total
    )


async def _fired_on(scale: Scale) -> Goal:
    """Draws without a break while the worker is killed at any moment, ready or not."""
    count, rng = scale.of(20), random.Random(2)
    over, seeds = asyncio.Event(), iter(range(1, 10**9))
    wrong: list[str] = []
    with serving("--max-queue", "128") as server:
        callers = [asyncio.create_task(_draw_until(over, server, seeds, wrong)) for _ in range(CALLERS)]
        for _ in range(count):
            await asyncio.sleep(rng.uniform(2.0, 6.0))
            _kill(server)
        over.set()
        await asyncio.gather(*callers)
        await ready(Client(server))
        wrong += lost(server)
    what = f"{count} SIGKILLs at random, 2-6 s apart: requests without their one right answer"
    return none_of("R2", what, wrong, next(seeds) - 1)


def _kill(server: Server) -> None:
    with suppress(ProcessLookupError):
        os.kill(worker_pid(server), signal.SIGKILL)


async def _answers(server: Server, more: int, flood: asyncio.Task[object]) -> None:
    """Waits for so many answers: those of jobs that a death has sent back come first."""
    name = "fluxserve_requests_answered_total"
    wanted = figures(server)[name] + more
    while figures(server)[name] < wanted and not flood.done():
        await asyncio.sleep(0.05)


async def _draw_until(over: asyncio.Event, server: Server, seeds: Iterator[int], wrong: list[str]) -> None:
    """A job that two kills hit may end with `worker_crashed`; every other answer is the right pictures."""
    client = Client(server)
    while not over.is_set():
        seed = next(seeds) * 10
        body = {"prompt": "a [slow:step:0.01]", "seed": seed, "n": 2, "response_format": "b64_json"}
        try:
            reply = await client.post(body)
        except (OSError, TimeoutError) as error:
            wrong.append(f"seed {seed}: {error!r}")
            continue
        if reply.code == "worker_crashed" and server.count("begin", seed) == 2:
            continue
        if reply.status != 200 or not right_pictures(reply.json()["data"], seed):
            wrong.append(f"seed {seed}: {reply.status} {reply.code}")
    client.close()


async def _one_kill() -> list[Goal]:
    with serving() as server:
        clients = [Client(server) for _ in range(7)]
        await clients[6].post({"prompt": "a"})
        bodies = [{"prompt": "a [slow:step:0.1]", "seed": 10 * i, "response_format": "b64_json"} for i in range(1, 7)]
        answers = [asyncio.create_task(client.post(body)) for client, body in zip(clients, bodies, strict=False)]
        await until(lambda: server.count("step", 10) >= 1)
        os.kill(worker_pid(server), signal.SIGKILL)
        waits: list[float] = []
        livez = asyncio.create_task(_ask_livez(clients[6], waits))
        watcher = Client(server)
        while (await watcher.send("GET", "/readyz")).status == 200:
            await asyncio.sleep(0.005)
        ready_s = await ready(watcher)
        replies = await asyncio.gather(*answers)
        livez.cancel()
        wrong = [
            f"{reply.status} {reply.code}"
            for i, reply in enumerate(replies, 1)
            if reply.status != 200 or not right_pictures(reply.json()["data"], 10 * i)
        ]
        with suppress(asyncio.CancelledError):
            await livez
        return [
            none_of("R3", "SIGKILL with 1 running and 5 queued: answers but 200", wrong, len(replies)),
            at_most("R3", "ready again", ready_s, 5, "s"),
            at_most("R3", "/livez meanwhile, slowest", max(waits) * 1000, 100, "ms"),
        ]


async def _ask_livez(client: Client, waits: list[float]) -> None:
    while True:
        waits.append((await client.send("GET", "/livez")).seconds)
        await asyncio.sleep(0.02)


async def _stopped() -> Goal:
    with serving() as server:
        client = Client(server)
        await client.post({"prompt": "a"})
        body = {"prompt": "a [stop:step2:once]", "seed": 7, "response_format": "b64_json"}
        reply = await client.post(body)
        client.close()
        right = reply.status == 200 and right_pictures(reply.json()["data"], 7) and loads(server) == 2
        figure = f"{reply.status} after {reply.seconds:.1f} s, {loads(server) - 1} restart"
        return Goal("R4", "SIGSTOP in a step: ended by the watchdog, the job answered", "200, >= 10 s", figure, right)


async def _poison() -> list[Goal]:
    with serving() as server:
        clients = [Client(server) for _ in range(4)]
        await clients[0].post({"prompt": "a"})
        poison = {"prompt": "poison [kill:step2]", "seed": 666}
        sends = [clients[0].post(poison)]
        sends += [clients[i].post({"prompt": "a [slow:step:0.05]", "seed": 10 * i}) for i in (1, 2, 3)]
        first, *neighbours = await asyncio.gather(*sends)
        again = await clients[0].post(poison)
        deaths, runs = loads(server) - 1, server.count("begin", 666)
        wrong = [f"neighbour {reply.status}" for reply in neighbours if reply.status != 200]
        for reply in (first, again):
            if (reply.code, reply.headers.get("x-should-retry")) != ("worker_crashed", "false"):
                wrong.append(f"poison {reply.status} {reply.code}")
        figure = f"{deaths} deaths, {runs} runs; {len(wrong)} wrong answers"
        passed = not wrong and deaths <= 2 and runs == 2
        return [
            Goal("R5", "poison beside three others, sent twice", "2 deaths, 2 runs, neighbours 200", figure, passed)
        ]
