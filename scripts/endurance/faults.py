"""R16 to R18, R20: faults inside a job, the picture store, idempotency keys, and the start."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fluxserve.server.jobs.image_store import PICTURE_NAME
from scripts.endurance.client import Client
from scripts.endurance.goals import Goal, Scale, at_most, none_of
from scripts.endurance.servers import loads, serving
from tests.reliability.test_store import test_a_full_disk_leaves_no_partial_file as full_disk
from tests.server import running

RIGHT = {"nan": (500, "non_finite_output"), "oom": (503, "insufficient_memory"), "cuda": (200, None)}


async def faults(scale: Scale) -> list[Goal]:
    """The whole part."""
    return [await _stages(), *await _store(), await _keys(scale.of(1000)), *await _start()]


async def _stages() -> Goal:
    wrong, tried = [], 0
    with serving() as server:
        client = Client(server)
        for kind, right in RIGHT.items():
            for stage in ("text", "step1", "step4", "vae"):
                once = ":once" if kind == "cuda" else ""
                reply = await client.post({"prompt": f"a [{kind}:{stage}{once}]", "seed": 1})
                after = await client.post({"prompt": "a", "seed": 2})
                tried += 1
                if (reply.status, reply.code) != right or after.status != 200:
                    wrong.append(f"{kind} at {stage}: {reply.status} {reply.code}, then {after.status}")
    return none_of("R16", "NaN, OOM and CUDA errors with a wrong answer, or a bad job after", wrong, tried)


async def _store() -> list[Goal]:
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        await asyncio.to_thread(full_disk, Path(name))
    with serving() as server:
        client = Client(server)
        pictures = server.folder / "pictures"
        shutil.rmtree(pictures)
        pictures.write_text("in the folder's place")
        codes = [(await client.post({"prompt": "a", "response_format": kind})).code for kind in ("url", "b64_json")]
        wrong += [] if codes == ["storage_full", None] else [f"unwritable: {codes}"]
        pictures.unlink()
        pictures.mkdir()
        await client.send("GET", "/readyz")
        made = [await client.post({"prompt": "a", "seed": seed}) for seed in range(1000)]
        wrong += [f"then: {reply.status} {reply.code}" for reply in made if reply.status != 200]
        names = {path.name for path in server.store.iterdir() if PICTURE_NAME.fullmatch(path.name)}
        hits = sum(f"{secrets.token_urlsafe(16)}.png" in names for _ in range(10**6))
        tries = [await client.send("GET", f"/images/{secrets.token_urlsafe(16)}.png") for _ in range(1000)]
        hits += sum(reply.status != 404 for reply in tries)
    return [
        none_of("R17", "a store that is full, or gone: what went wrong", wrong, 4),
        Goal("R17", "10^6 names guessed against 1,000 pictures, 1,000 of them by HTTP", "0 hits", str(hits), hits == 0),
    ]


async def _keys(count: int) -> Goal:
    wrong: list[str] = []
    with serving("--max-queue", "64") as server:
        numbers = iter(range(1, count + 1))

        async def copy(client: Client, number: int, seed: int) -> tuple[int, bytes]:
            while True:
                body = {"prompt": "a", "seed": seed, "response_format": "b64_json"}
                reply = await client.post(body, {"idempotency-key": f"key-{number}"})
                if reply.status != 429:
                    return reply.status, reply.body
                await asyncio.sleep(int(reply.headers["retry-after"]))

        async def caller() -> None:
            clients = [Client(server) for _ in range(3)]
            for number in numbers:
                copies = await asyncio.gather(*(copy(client, number, number) for client in clients))
                other, _ = await copy(clients[0], number, number + 10**6)
                runs = server.count("begin", number) if number % 50 == 0 else 1
                if {status for status, _ in copies} != {200} or len(set(copies)) != 1 or other != 422 or runs != 1:
                    wrong.append(f"key {number}: {[status for status, _ in copies]}, {other}, {runs} runs")

        await asyncio.gather(*(caller() for _ in range(8)))
        begun = sum(act.verb == "begin" and act.seed > 0 for act in running.read_log(server.folder))
        wrong += [f"{begun} generations"] if begun != count else []
    return none_of("R18", f"{count:,} idempotency keys, 3 copies each and another body: what went wrong", wrong, count)


async def _start() -> list[Goal]:
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="fluxserve-soak-"))
    server = running.start([], folder, variables={"FLUXSERVE_FAKE_LOAD": "slow:1"})
    live_s = time.monotonic() - began
    early = []
    client = Client(server)
    while (await client.send("GET", "/readyz")).status != 200:
        await asyncio.sleep(0.01)
    acts = [act.verb for act in running.read_log(folder)]
    early += [] if "decode" in acts else ["before the first picture"]
    command = [sys.executable, "-m", "fluxserve", "serve", "--port", server.url.rpartition(":")[2]]
    asked = time.monotonic()
    code = subprocess.run(command, capture_output=True, timeout=30).returncode
    conflict_s = time.monotonic() - asked
    early += [] if (code, loads(server)) == (1, 1) else [f"a conflict ended with {code}"]
    server.stop()
    shutil.rmtree(folder)
    return [
        at_most("R20", "from the start to /livez", live_s, 1.5, "s"),
        none_of("R20", "ready before a finite warm-up image, or loaded in spite of a port conflict", early, 2),
        at_most("R20", "a port conflict is told after", conflict_s, 2, "s"),
    ]
