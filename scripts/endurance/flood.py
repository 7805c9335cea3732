"""R1, R9, R19: a flood of good and bad requests; each has its answer, the loop stays quick, no secret gets out."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from scripts.endurance.client import Client
from scripts.endurance.goals import Goal, Scale, at_most, none_of, percentile
from scripts.endurance.servers import figures, lost, right_pictures, serving
from tests.server.running import GENERATIONS, Server

CONNECTIONS = 64
CANARY = "canary7Qx"
KEY = "key-canary7Qx"
AUTH = {"authorization": f"Bearer {KEY}"}


@dataclass(frozen=True)
class Bad:
    """One kind of bad request and its right answer."""

    body: Any
    status: int
    code: str
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"
    path: str = GENERATIONS


def fields(status: int, code: str, **changes: Any) -> Bad:
    return Bad({"prompt": CANARY, **changes}, status, code)


BAD = (
    Bad(b"{", 400, "invalid_json"),
    Bad(b"\xff\xfe", 400, "invalid_json"),
    Bad(b"[]", 400, "invalid_json"),
    Bad(b"[" * 100_000, 400, "invalid_json"),
    Bad(b'{"prompt":"a","prompt":"b"}', 400, "invalid_json"),
    Bad(b'{"prompt":"a","n":%s}' % (b"9" * 5000), 400, "invalid_value"),
    Bad(b'{"prompt":"a","guidance_scale":NaN}', 400, "invalid_value"),
    Bad(b'{"prompt":"a","guidance_scale":1e999}', 400, "invalid_value"),
    Bad(b'{"prompt":"\\ud800"}', 400, "invalid_value"),
    Bad({}, 400, "missing_required_parameter"),
    fields(400, "invalid_type", prompt=None),
    fields(400, "invalid_value", prompt=" "),
    fields(400, "invalid_value", prompt=CANARY + "\0"),
    fields(400, "string_above_max_length", prompt=CANARY * 4000),
    fields(400, "invalid_value", n=0),
    fields(400, "invalid_value", n=11),
    fields(400, "invalid_type", n=True),
    fields(400, "invalid_type", n="2"),
    fields(400, "invalid_size", size="1000x1000"),
    fields(400, "invalid_size", size="99999x99999"),
    fields(400, "invalid_value", steps=0),
    fields(400, "invalid_value", seed=-1),
    fields(400, "invalid_type", seed=1.5),
    fields(404, "model_not_found", model="sdxl"),
    fields(400, "unsupported_value", output_format="gif"),
    fields(400, "lora_not_found", loras=["mine"]),
    fields(400, "conflicting_parameters", stream=True, response_format="url"),
    Bad({"prompt": CANARY}, 415, "unsupported_media_type", (("content-type", "text/plain"),)),
    Bad({"prompt": CANARY}, 401, "invalid_api_key", (("authorization", f"Bearer {KEY}x"),)),
    Bad({"prompt": CANARY}, 403, "origin_not_allowed", (("origin", "null"),)),
    Bad({"prompt": CANARY}, 403, "host_not_allowed", (("host", "evil.example"),)),
    Bad(b"", 404, "not_found", (), "GET", "/nowhere"),
    Bad(b"", 405, "method_not_allowed", (), "GET"),
    Bad(b"", 404, "image_not_found", (), "GET", "/images/" + "A" * 22 + ".png"),
)

PROBE = """
import sys, time, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
while True:
    began = time.monotonic()
    opener.open(sys.argv[1] + "/livez").read()
    print(time.monotonic() - began, flush=True)
    time.sleep(0.02)
"""


async def flood(scale: Scale) -> list[Goal]:
    """The whole part."""
    total = scale.of(10_000)
    with serving("--api-key", KEY, "--max-queue", "128") as server:
        server.http.headers.update(AUTH)
        probe = subprocess.Popen([sys.executable, "-c", PROBE, server.url], stdout=subprocess.PIPE, text=True)
        began = time.monotonic()
        wrong, texts = await send_mixed(server, total)
        seconds = time.monotonic() - began
        probe.terminate()
        waits = [float(line) for line in probe.communicate()[0].splitlines() if line]
        secret = [text for text in (*texts, server.get("/metrics").text, server.log.read_text()) if CANARY in text]
        return [
            none_of(
                "R1",
                f"{total:,} requests, a tenth good, {len(BAD)} bad kinds, 64 connections",
                wrong + lost(server),
                total,
            ),
            at_most("R1", "the same", seconds, 60 * max(scale.part, 1), "s"),
            *_loop_lag(figures(server)),
            at_most("R9", "/livez in a flat-out flood, p99", percentile(waits, 99) * 1000, 150, "ms"),
            none_of("R19", "errors, figures and logs with the prompt or the key in them", secret, total),
        ]


async def send_mixed(server: Server, total: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Sends them over 64 connections; returns what was wrong, and the texts of the errors."""
    numbers = iter(range(total))
    wrong: list[str] = []
    texts: list[str] = []

    async def caller() -> None:
        client = Client(server, AUTH)
        for number in numbers:
            rng = random.Random(seed + number)
            try:
                if rng.random() < 0.1:
                    wrong.extend(await _good(client, number, large=rng.random() < 0.05))
                else:
                    wrong.extend(await _bad(client, rng.choice(BAD), texts))
            except (OSError, ValueError, KeyError, TimeoutError) as error:
                wrong.append(repr(error))
        client.close()

    await asyncio.gather(*(caller() for _ in range(CONNECTIONS)))
    return wrong, texts


async def _good(client: Client, number: int, large: bool) -> list[str]:
    side = 1024 if large else 64
    body = {"prompt": CANARY, "seed": number, "size": f"{side}x{side}", "response_format": "b64_json"}
    while (reply := await client.post(body)).status == 429:
        await asyncio.sleep(float(reply.headers["retry-after"]))
    if reply.status != 200:
        return [f"good: {reply.status} {reply.code}"]
    return [] if right_pictures(reply.json()["data"], number, side) else [f"seed {number}: not its picture"]


async def _bad(client: Client, bad: Bad, texts: list[str]) -> list[str]:
    if bad.method == "POST":
        reply = await client.post(bad.body, dict(bad.headers))
    else:
        reply = await client.send(bad.method, bad.path, bad.body)
    texts.append(f"{reply.headers} {reply.body!r}")
    return [] if (reply.status, reply.code) == (bad.status, bad.code) else [f"{bad}: {reply.status} {reply.code}"]


def _loop_lag(now: dict[str, float]) -> list[Goal]:
    """From the server's own histogram."""
    name = 'fluxserve_event_loop_lag_seconds_bucket{{le="{}"}}'.format
    probes = now[name("+Inf")]
    return [
        Goal(
            "R9",
            "the loop's lag, p99",
            "< 50 ms",
            f"{now[name('0.05')] / probes:.1%} below",
            now[name("0.05")] >= 0.99 * probes,
        ),
        Goal(
            "R9",
            "the loop's lag, most",
            "< 250 ms",
            f"{now[name('0.25')] / probes:.1%} below",
            now[name("0.25")] == probes,
        ),
    ]
