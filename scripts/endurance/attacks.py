"""`python -m scripts.endurance.attacks URL SECONDS CONNECTIONS KEY...`: does a server all the harm that it knows of.

Each connection goes through the kinds of attack again and again, beginning with another one.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import cache
from typing import Any

from PIL import Image

from tests.decoding.test_damaged_files import damaged_files
from tests.reliability.unread import LARGE
from tests.server.running import EDITS, GENERATIONS, png

HOLD_S = 4.0
"""How long a connection is held on which nothing is sent or read."""
MOST_S = 20.0
"""After which an attack is left for the next one."""
FORM = "Content-Type: multipart/form-data; boundary=b"
JSON = "Content-Type: application/json"


class Enemy:
    """One connection after the other, in the name of one key."""

    def __init__(self, url: str, key: str, number: int) -> None:
        self.host, self.port = url.removeprefix("http://").split(":")
        self.key, self.number = key, number
        self.rng = random.Random(number)

    async def send(self, *parts: bytes, reads: bool = True, hold_s: float = 0.0) -> bytes:
        """Sends these on a connection of their own. reads: the answer; else nothing is taken for hold_s seconds."""
        reader, writer = await asyncio.open_connection(self.host, int(self.port), limit=2**12)
        answer = b""
        try:
            for part in parts:
                writer.write(part)
                await writer.drain()
            await asyncio.sleep(hold_s)
            while reads and len(answer) < 2**16 and (data := await reader.read(2**16)):
                answer += data
                if b"\r\n\r\n" in answer:
                    break
        finally:
            writer.transport.abort()
        return answer

    def head(self, path: str, *lines: str, method: str = "POST") -> bytes:
        """A request's head."""
        own = ("Host: localhost", f"Authorization: Bearer {self.key}")
        return "\r\n".join([f"{method} {path} HTTP/1.1", *own, *lines, "", ""]).encode()

    def post(self, path: str, kind: str, body: bytes, *lines: str) -> bytes:
        return self.head(path, kind, *lines, f"Content-Length: {len(body)}") + body

    def ask(self, *lines: str, **fields: Any) -> bytes:
        """A request for pictures."""
        return self.post(GENERATIONS, JSON, json.dumps({"prompt": "a", **fields}).encode(), *lines)

    def edit(self, picture: bytes) -> bytes:
        part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + picture + b"\r\n"
        fields = [b'--b\r\nContent-Disposition: form-data; name="size"\r\n\r\n64x64\r\n']
        fields += [b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n']
        return self.post(EDITS, FORM, b"".join([part, *fields, b"--b--\r\n"]))


@cache
def photo(kind: str) -> bytes:
    """Sixteen megapixels."""
    small = Image.merge("RGB", [Image.linear_gradient("L"), Image.radial_gradient("L"), Image.linear_gradient("L")])
    buffer = io.BytesIO()
    small.resize((4096, 4096)).save(buffer, kind, quality=80)
    return buffer.getvalue()


async def bodies_that_do_not_come(enemy: Enemy) -> None:
    length = enemy.rng.choice([f"Content-Length: {64 * 2**20}", "Transfer-Encoding: chunked"])
    await enemy.send(enemy.head(EDITS, FORM, length), reads=False, hold_s=HOLD_S)


async def bodies_that_stop(enemy: Enemy) -> None:
    await enemy.send(enemy.head(EDITS, FORM, f"Content-Length: {64 * 2**20}"), bytes(8 * 2**20), hold_s=HOLD_S)


async def crumbs(enemy: Enemy) -> None:
    await enemy.send(enemy.head(GENERATIONS, JSON, "Transfer-Encoding: chunked"), b"1\r\n \r\n" * 30_000)


async def many_keys(enemy: Enemy) -> None:
    body = json.dumps({f"k{i}": i for i in range(20_000)})
    await enemy.send(enemy.post(GENERATIONS, JSON, f'{body[:-1]},"k1":1}}'.encode()))


async def many_values(enemy: Enemy) -> None:
    await enemy.send(enemy.post(GENERATIONS, JSON, b'{"a":[' + b"0," * 400_000 + b"0]}"))


async def depth(enemy: Enemy) -> None:
    await enemy.send(enemy.post(GENERATIONS, JSON, b'{"a":' + b"[" * 500_000))


async def many_parts(enemy: Enemy) -> None:
    await enemy.send(enemy.post(EDITS, FORM, b"--b\r\nA: b\r\n" * 50_000))


async def large_document(enemy: Enemy) -> None:
    url = "data:image/png;base64," + base64.b64encode(bytes(22 * 2**20)).decode()
    await enemy.send(enemy.post(EDITS, JSON, json.dumps({"prompt": "a", "image": url}).encode()))


async def unread_answer(enemy: Enemy) -> None:
    keyed = f"Idempotency-Key: large{enemy.rng.randrange(3)}"
    await enemy.send(enemy.ask(keyed, **LARGE, n=4, seed=1), reads=False, hold_s=HOLD_S)


async def unread_stream(enemy: Enemy) -> None:
    await enemy.send(enemy.ask(**LARGE, n=10, stream=True, partial_images=3), reads=False, hold_s=HOLD_S)


async def unread_zip(enemy: Enemy) -> None:
    fields = {**LARGE, "response_format": "file"}
    await enemy.send(enemy.ask(**fields, n=4), reads=False, hold_s=HOLD_S)


async def unread_picture(enemy: Enemy) -> None:
    fields = {**LARGE, "response_format": "url"}
    host, port = enemy.host, int(enemy.port)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(enemy.ask(**fields))
    await reader.readuntil(b"\r\n\r\n")
    answer = await reader.read(4096)
    writer.close()
    path = answer.partition(b"/images/")[2].partition(b'"')[0].decode()
    if path:
        many = [enemy.send(enemy.head(f"/images/{path}", method="GET"), reads=False, hold_s=HOLD_S) for _ in range(3)]
        await asyncio.gather(*many)


async def large_photo(enemy: Enemy) -> None:
    await enemy.send(enemy.edit(photo(enemy.rng.choice(["JPEG", "WEBP", "PNG"]))))


async def damaged_photo(enemy: Enemy) -> None:
    for data in damaged_files(3, seed=enemy.rng.randrange(10**6)):
        await enemy.send(enemy.edit(data))


async def photo_and_leave(enemy: Enemy) -> None:
    await enemy.send(enemy.edit(photo("WEBP")), reads=False, hold_s=enemy.rng.random())


async def many_edits(enemy: Enemy) -> None:
    await asyncio.gather(*(enemy.send(enemy.edit(png(600, 600))) for _ in range(8)))


async def idempotency_flood(enemy: Enemy) -> None:
    for _ in range(50):
        await enemy.send(enemy.ask(f"Idempotency-Key: {enemy.rng.random()}", steps=1), reads=False)


async def full_queue(enemy: Enemy) -> None:
    asked = [enemy.send(enemy.ask(prompt="a [slow:step:0.05]", n=4, seed=i)) for i in range(12)]
    await asyncio.gather(*asked)


async def slow_filter(enemy: Enemy) -> None:
    await asyncio.gather(*(enemy.send(enemy.ask(prompt="a cat", steps=1)) for _ in range(6)))


async def silence(enemy: Enemy) -> None:
    many = [enemy.send(b"GET /liv"[: enemy.rng.randrange(8)], reads=False, hold_s=HOLD_S) for _ in range(20)]
    await asyncio.gather(*many)


async def not_http(enemy: Enemy) -> None:
    for junk in (b"\0" * 1000, b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5_000, b"X" * 40_000):
        await enemy.send(junk)


async def wrong_keys(enemy: Enemy) -> None:
    request = enemy.ask().replace(enemy.key.encode(), b"wrong")
    for _ in range(50):
        await enemy.send(request)


async def pipelined(enemy: Enemy) -> None:
    await enemy.send(enemy.head("/images/" + "A" * 54 + ".png", method="GET") * 500)


Attack = Callable[[Enemy], Awaitable[None]]
ATTACKS: tuple[Attack, ...] = (
    bodies_that_do_not_come,
    bodies_that_stop,
    crumbs,
    many_keys,
    many_values,
    depth,
    many_parts,
    large_document,
    unread_answer,
    unread_stream,
    unread_zip,
    unread_picture,
    large_photo,
    damaged_photo,
    photo_and_leave,
    many_edits,
    idempotency_flood,
    full_queue,
    slow_filter,
    silence,
    not_http,
    wrong_keys,
    pipelined,
)


async def attack(url: str, seconds: float, connections: int, keys: list[str]) -> None:
    """Until the time is over, or nobody answers."""
    end = time.monotonic() + seconds

    async def one(number: int) -> None:
        enemy = Enemy(url, keys[number % len(keys)], number)
        for kind in itertools.islice(itertools.cycle(ATTACKS), number % len(ATTACKS), None):
            if time.monotonic() > end:
                return
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(MOST_S):
                    await kind(enemy)
            print(kind.__name__, flush=True)
            await asyncio.sleep(0.01)

    await asyncio.gather(*(one(number) for number in range(connections)))


if __name__ == "__main__":
    asyncio.run(attack(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]))
