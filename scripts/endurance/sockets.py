"""R11 to R14: half requests, broken requests, mutated bodies, bad parameters."""

from __future__ import annotations

import asyncio
import json
import random
import time
from contextlib import suppress

from scripts.endurance.client import Client
from scripts.endurance.goals import Goal, Scale, at_most, none_of
from scripts.endurance.servers import serving
from tests.reliability.answers import assert_answer, parse
from tests.reliability.test_connections import BROKEN, LEGAL, POST
from tests.server.contract.test_generations import BAD_SIZES, BAD_VALUES
from tests.server.running import Server


async def sockets(scale: Scale) -> list[Goal]:
    """The whole part."""
    with serving() as server:
        return [
            *await _half_open(server, scale.of(500)),
            await _broken(server),
            await _mutated(server, scale.of(20_000)),
            await _parameters(server),
        ]


async def _half_open(server: Server, count: int) -> list[Goal]:
    client = Client(server)
    normal_s = max([(await client.post({"prompt": "a"})).seconds for _ in range(10)])
    kinds = (b"", b"GET /livez HT", POST + b'Content-Length: 500\r\n\r\n{"prompt":')
    held = [asyncio.create_task(_held_s(server, kinds[i % 3])) for i in range(count)]
    await asyncio.sleep(2)
    beside_s = max([(await client.post({"prompt": "a"})).seconds for _ in range(10)])
    times = await asyncio.gather(*held)
    heads = [seconds for i, seconds in enumerate(times) if i % 3 < 2]
    bodies = [seconds for i, seconds in enumerate(times) if i % 3 == 2] or [0.0]
    return [
        at_most("R11", f"{count} half-open connections: heads and silence closed after", max(heads), 12, "s"),
        at_most("R11", "bodies closed after", max(bodies), 35, "s"),
        at_most("R11", "a good request beside them, in normal ones", beside_s / max(normal_s, 0.05), 2, "times"),
    ]


async def _held_s(server: Server, sent: bytes) -> float:
    """How long the server keeps a connection on which this is all that comes."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    began = time.monotonic()
    writer.write(sent)
    with suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 60)
    writer.close()
    return time.monotonic() - began


async def _broken(server: Server) -> Goal:
    host, port = server.url.removeprefix("http://").split(":")
    wrong = []
    for name, request in {**BROKEN, **LEGAL}.items():
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = b""
        with suppress(ConnectionError):
            writer.write(request)
            while data := await asyncio.wait_for(reader.read(65536), 20):
                answer += data
        writer.close()
        try:
            response = parse(answer)
            if name in BROKEN:
                assert_answer(22, response)
            elif response.status_code != 200:
                wrong.append(f"{name}: {response.status_code}")
        except (AssertionError, ValueError, LookupError) as error:
            wrong.append(f"{name}: {error!r}")
    return none_of("R12", "raw HTTP cases with another outcome than their one", wrong, len(BROKEN) + len(LEGAL))


FIELDS = (
    "prompt",
    "n",
    "size",
    "quality",
    "steps",
    "guidance_scale",
    "seed",
    "true_cfg_scale",
    "loras",
    "stream",
    "model",
)
FIELDS += (
    "negative_prompt",
    "output_format",
    "output_compression",
    "background",
    "partial_images",
    "width",
    "extra_body",
)
VALUES = [
    None,
    True,
    0,
    -1,
    1,
    2**63,
    1e308,
    -0.0,
    "",
    "auto",
    "64x64",
    "\0",
    "\u202e",
    "é" * 50,
    [],
    {},
    [[]],
    {"name": 1},
]


def _mutant(rng: random.Random) -> bytes:
    """A body that knows the fields, and is then damaged, or not."""
    document = {"prompt": "a", **{rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.randint(0, 4))}}
    body = bytearray(json.dumps(document, ensure_ascii=rng.random() < 0.5).encode())
    for _ in range(rng.choice((0, 0, 1, 3, 10))):
        place = rng.randrange(len(body) + 1)
        match rng.randrange(3):
            case 0:
                body[place:place] = bytes([rng.randrange(256)])
            case 1:
                del body[place : place + 3]
            case _:
                body[place : place + 1] = rng.choice(
                    (b"\0", b"{", b'"', b"\\u", b"9" * 400, b"\xff", b"1e999", b"[" * 40)
                )
    return bytes(body)


async def _mutated(server: Server, count: int) -> Goal:
    numbers = iter(range(count))
    wrong: list[str] = []

    async def caller() -> None:
        client = Client(server)
        for number in numbers:
            body = _mutant(random.Random(number))
            try:
                reply = await client.post(body, {"x-request-timeout": "60"})
                if reply.status not in (200, 400, 404, 429):
                    wrong.append(f"{body!r}: {reply.status} {reply.code}")
            except (OSError, ValueError, KeyError, TimeoutError, asyncio.IncompleteReadError) as error:
                wrong.append(f"{body!r}: {error!r}")
        client.close()

    await asyncio.gather(*(caller() for _ in range(32)))
    wrong += ["a traceback in the log"] * ("Traceback" in server.log.read_text())
    return none_of("R13", "mutated bodies that got a 500, a wrong shape or a traceback", wrong, count)


async def _parameters(server: Server) -> Goal:
    client = Client(server)
    cases = [*((fields, param) for fields, _, param in BAD_VALUES if "guidance_scale" not in fields)]
    cases += [({"size": size}, "size") for size in BAD_SIZES]
    wrong = []
    for fields, param in cases:
        reply = await client.post({"prompt": "a", **fields})
        if reply.status != 400 or reply.json()["error"]["param"] != param:
            wrong.append(f"{fields}: {reply.status} {reply.body[:100]!r}")
    return none_of("R14", "bad parameters that are not refused by name", wrong, len(cases))
