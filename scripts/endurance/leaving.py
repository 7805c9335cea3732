"""R6, R7: clients that leave, and the server that is told to end."""

from __future__ import annotations

import asyncio
import signal
import time
from contextlib import suppress

from scripts.endurance.client import Client, Reply
from scripts.endurance.goals import Goal, Scale, at_most, none_of
from scripts.endurance.servers import loads, serving, until, worker_pid
from tests.engine.conftest import is_alive

STEP_S = 0.05


async def leaving(scale: Scale) -> list[Goal]:
    """The whole part."""
    goals = [await _running_job(), await _queued_jobs(), *await _detached_jobs()]
    ends = [await _sigterm() for _ in range(scale.of(20))]
    wrong = [problem for problems, _ in ends for problem in problems]
    goals.append(none_of("R7", f"SIGTERM under load, {len(ends)} rounds: what went wrong", wrong, len(ends)))
    goals.append(at_most("R7", "/readyz says 503 after", max(said for _, said in ends) * 1000, 100, "ms"))
    return goals


async def _leave_after(client: Client, seconds: float, **fields: object) -> None:
    headers = {"x-request-timeout": "9999"}
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await client.post({"prompt": f"a [slow:step:{STEP_S}]", **fields}, headers)
    client.close()


async def _running_job() -> Goal:
    """What the next client waits, beyond its own steps, when the one before has just left."""
    with serving() as server:
        waits = []
        for seed in range(100, 110):
            await _leave_after(Client(server), 0.4, seed=seed, steps=100)
            reply = await Client(server).post({"prompt": "a", "seed": 1, "steps": 1})
            assert reply.status == 200
            waits.append(reply.seconds)
        return at_most(
            "R6", "a client leaves a running job: the next is answered after", max(waits), STEP_S + 0.25, "s"
        )


async def _queued_jobs() -> Goal:
    with serving("--max-queue", "128") as server:
        running = asyncio.create_task(_leave_after(Client(server), 3.0, seed=1, steps=200))
        await until(lambda: server.count("step", 1) >= 1)
        await asyncio.gather(*(_leave_after(Client(server), 1.0, seed=seed, steps=200) for seed in range(1001, 1101)))
        await running
        await Client(server).post({"prompt": "a", "seed": 2})
        steps = sum(server.count("step", seed) for seed in range(1001, 1101))
        return Goal("R6", "100 clients leave the queue: steps run for them", "0", str(steps), steps == 0)


async def _detached_jobs() -> list[Goal]:
    """A job whose client timed out: one retry takes it over; without one it ends."""
    with serving() as server:
        announced = {"x-stainless-read-timeout": "0.5", "x-stainless-retry-count": "0"}
        again = {**announced, "x-stainless-retry-count": "1"}

        async def time_out(seed: int) -> dict[str, object]:
            body = {"prompt": f"a [slow:step:{STEP_S}]", "seed": seed, "steps": 30}
            client = Client(server)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await client.post(body, announced)
            client.close()
            return body

        body = await time_out(10)
        await asyncio.sleep(0.4)  # the shortest that the official clients wait
        retried = await Client(server).post(body, again)
        runs = server.count("begin", 10)
        right = (retried.status, runs) == (200, 1)
        body = await time_out(20)
        body["steps"] = 200
        await asyncio.sleep(3.5)
        stopped_at = server.count("step", 20)
        await asyncio.sleep(0.5)
        more = server.count("step", 20) - stopped_at
        return [
            Goal("R6", "a detached job a retry takes over", "200, 1 generation", f"{retried.status}, {runs}", right),
            Goal("R6", "a detached job that none does: steps after 3 s", "0", str(more), more == 0),
        ]


async def _sigterm() -> tuple[list[str], float]:
    """One round: what went wrong, and how long /readyz still said 200."""
    with serving() as server:
        watcher = Client(server)
        accepted = [
            asyncio.create_task(Client(server).post({"prompt": "a [slow:step:0.05]", "seed": seed}))
            for seed in range(10, 16)
        ]
        await until(lambda: "fluxserve_requests_in_flight 6.0" in server.get("/metrics").text)
        worker = worker_pid(server)
        server.process.send_signal(signal.SIGTERM)
        told = time.monotonic()
        while (await watcher.send("GET", "/readyz")).status == 200:
            await asyncio.sleep(0.002)
        said_s = time.monotonic() - told
        replies: list[Reply] = await asyncio.gather(*accepted)
        code = await asyncio.to_thread(server.process.wait, 40)
        wrong = [f"{reply.status} {reply.code}" for reply in replies if reply.status != 200]
        wrong += [f"exit {code}"] if code else []
        wrong += ["a worker is left"] if is_alive(worker) else []
        wrong += ["another worker was started"] if loads(server) != 1 else []
        return wrong, said_s
