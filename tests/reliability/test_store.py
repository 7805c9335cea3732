"""Pictures behind URLs: never a partial or a foreign file, whatever is asked for and whatever the disk does."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from fluxserve.errors import InvalidRequest, StorageFull
from fluxserve.request import GeneratedImage
from fluxserve.server.jobs.image_store import ImageStore
from fluxserve.server.jobs.store_folder import FOLDER, MARK, StoreFolder
from tests.reliability.answers import assert_answer, parse
from tests.server.conftest import StartServer
from tests.server.running import Server, exchange, until


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def image(size: int) -> GeneratedImage:
    return GeneratedImage(bytes(size), "png", 64, 64, 0, 0)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != MARK)


@pytest.mark.fault(44)
def test_no_path_leads_out_of_the_folder(server: Server) -> None:
    name = urlsplit(server.generate().json()["data"][0]["url"]).path.removeprefix("/images/")
    secret = server.store / f"{secrets.token_urlsafe(16)}.png"
    secret.symlink_to(server.log)
    deep = ["../" * depth + "etc/passwd" for depth in range(1, 9)]
    spelled = [
        path.replace("../", dots) for path in deep[:3] for dots in ("%2e%2e/", "..%2f", "%2e%2e%2f", "..\\", "..%5c")
    ]
    forms = ["..", ".", "", "/etc/passwd", "%2fetc%2fpasswd", f"{name}%00.png", f"{name}/", f"./{name}", f"x/../{name}"]
    forms += [f"{name}%0a", name.upper(), f"{name}.html", "%c0%ae%c0%ae/", ".fluxserve-store", "~root", secret.name]
    for path in [*deep, *spelled, *forms]:
        request = f"GET /images/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        assert_answer(44, parse(exchange(server, [request])))


async def _expire(folder: Path) -> None:
    clock = Clock()
    store = ImageStore(StoreFolder(folder), ttl_s=60, quota_bytes=10**6, clock=clock)
    [name] = await store.put([image(10)])
    clock.now += 59
    assert (await store.get(name)).expires_at == pytest.approx(clock.now + 1)
    clock.now += 2
    for asked, code in ((name, "image_expired"), ("A" * 22 + ".png", "image_not_found")):
        with pytest.raises(InvalidRequest) as refusal:
            await store.get(asked)
        assert refusal.value.code == code
    assert files(folder) == []
    store.close()


@pytest.mark.fault(43)
def test_an_expired_name_is_told_from_one_that_never_was(tmp_path: Path, start_server: StartServer) -> None:
    asyncio.run(_expire(tmp_path / "store"))
    server = start_server("--url-ttl", "0.2")
    url = server.generate().json()["data"][0]["url"]
    time.sleep(0.3)
    assert_answer(43, server.get(url), 410)
    assert_answer(43, server.get(f"/images/{secrets.token_urlsafe(16)}.png"), 404)


@pytest.mark.fault(47)
def test_the_wall_clock_moves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def jump() -> None:
        store = ImageStore(StoreFolder(tmp_path / "store"), ttl_s=60, quota_bytes=10**6)
        [name] = await store.put([image(10)])
        for years in (50, -50):
            monkeypatch.setattr(time, "time", lambda years=years: years * 3.15e7)
            assert 50 < (await store.get(name)).expires_at - time.monotonic() <= 60
        store.close()

    asyncio.run(jump())


@pytest.mark.fault(41)
def test_the_quota_drops_the_oldest_and_none_that_is_young(tmp_path: Path) -> None:
    async def fill() -> None:
        clock = Clock()
        store = ImageStore(StoreFolder(tmp_path / "store"), ttl_s=3600, quota_bytes=1000, clock=clock)
        names = []
        for _ in range(3):
            names += await store.put([image(300)])
            clock.now += 61
        [fourth] = await store.put([image(300)])
        assert files(tmp_path / "store") == sorted([*names[1:], fourth])
        with pytest.raises(StorageFull):
            await store.put([image(800)])
        assert await store.has([fourth])
        store.close()

    asyncio.run(fill())


@pytest.mark.fault(41)
def test_a_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel enforces in the middle of a write."""

    async def fill() -> None:
        store = ImageStore(StoreFolder(tmp_path / "store"), ttl_s=60, quota_bytes=10**9)
        [whole] = await store.put([image(5000)])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            with pytest.raises(StorageFull):
                await store.put([image(20_000), image(100_000)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert files(tmp_path / "store") == [whole]
        assert await store.probe()
        assert await store.put([image(100_000)])
        store.close()

    asyncio.run(fill())


@pytest.mark.fault(41, 42)
def test_a_store_that_goes_away_and_comes_back(start_server: StartServer) -> None:
    server = start_server()
    pictures = server.folder / "pictures"
    shutil.rmtree(pictures)
    pictures.write_text("a file in the folder's place")
    assert_answer(42, server.generate(seed=4100))
    assert_answer(41, server.generate(seed=4101), 503)
    assert server.count("begin", 4101) == 0
    assert server.get("/readyz").json() == {"status": "store"}
    assert_answer(41, server.generate(response_format="b64_json"), 200)
    pictures.unlink()
    pictures.mkdir()
    assert server.get("/readyz").status_code == 200
    assert_answer(41, server.generate(), 200)
    assert "Traceback" not in server.log.read_text()


@pytest.mark.fault(45, 46)
def test_a_picture_is_nothing_but_a_picture(server: Server) -> None:
    url = server.generate("<script>alert(1)</script>").json()["data"][0]["url"]
    size = len(server.get(url).content)
    bomb = "bytes=" + ",".join(f"{i}-{i}" for i in range(10_000))[:30_000]
    for fault, headers in ((45, {"accept": "text/html"}), (46, {"range": bomb}), (46, {"range": "bytes=0-,0-"})):
        asked = time.monotonic()
        response = server.get(url, headers=headers)
        assert time.monotonic() - asked < 1
        assert_answer(fault, response)
        assert response.headers["content-type"] == "image/png"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-security-policy"] == "sandbox"
        assert len(response.content) == size


@pytest.mark.fault(44)
def test_the_folder_is_its_owners_alone(server: Server) -> None:
    mode = os.stat(server.store).st_mode & 0o777
    assert mode == 0o700


@pytest.mark.fault(59, 90)
def test_a_persons_own_files_are_left_alone(start_server: StartServer, tmp_path: Path) -> None:
    """With names like the server's, older than any picture's life, at the start and at every request."""
    given = tmp_path / "holiday"
    (given / "answers").mkdir(parents=True, mode=0o755)
    mine = [given / "answers" / "diary.txt", given / "answers" / "half.tmp", given / ".tmp-draft.png", given / ".lock"]
    mine += [given / f"{secrets.token_urlsafe(16)}.{suffix}" for suffix in ("png", "jpg", "webp")]
    mine += [given / f"{'x' * 54}.png"]
    for path in mine:
        path.write_bytes(path.name.encode())
        os.utime(path, (10**9, 10**9))
    for _ in range(2):
        server = start_server("--output-dir", str(given), "--url-ttl", "1")
        url = server.generate(seed=1).json()["data"][0]["url"]
        assert server.generate(seed=2, headers={"idempotency-key": "k"}).status_code == 200
        for path in [*mine, given / "answers"]:
            assert_answer(59, server.get(f"/images/{path.name}"), 404)
        written = [path for path in (given / FOLDER).iterdir() if path.is_file()]
        assert url.rpartition("/")[2] in {path.name for path in written}
        assert {path.stat().st_mode & 0o777 for path in written} == {0o600}
        assert (given / FOLDER).stat().st_mode & 0o777 == 0o700
        (given / FOLDER).chmod(0o755)
        assert server.stop() == 0
    assert [path.read_bytes() for path in mine] == [path.name.encode() for path in mine]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        half = len(content) // 2
        flipped = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        path.write_bytes({"emptied": b"", "cut": content[:half], "altered": flipped}[how])


@pytest.mark.fault(61)
@pytest.mark.parametrize("how", ["removed", "emptied", "cut", "altered"])
def test_what_is_damaged_is_drawn_once_more_and_never_served(start_server: StartServer, how: str) -> None:
    server = start_server()
    forms: list[dict[str, Any]] = [
        {"response_format": "b64_json"},
        {"response_format": "url"},
        {"response_format": "file"},
        {"stream": True},
    ]
    known: set[Path] = set()
    for seed, form in enumerate(forms):
        key, fields = {"idempotency-key": f"key-{seed}"}, {"seed": 6100 + seed, **form}
        assert server.generate(**fields, headers=key).status_code == 200
        until(lambda seed=seed: len(list(server.store.glob("*.answer"))) == seed + 1)
        time.sleep(0.5)  # a stream ends before its answer is kept
        written = {path for path in server.store.iterdir() if path.name != MARK} - known
        for path in written:
            damage(path, how)
        known |= written
        with ThreadPoolExecutor(3) as pool:
            copies = list(pool.map(lambda _, key=key, fields=fields: server.generate(**fields, headers=key), range(3)))
        for copy in copies:
            assert_answer(61, copy, 200)
            assert "event: error" not in copy.text
        if form == {"response_format": "url"}:
            assert {copy.json()["data"][0]["url"] for copy in copies} == {copies[0].json()["data"][0]["url"]}
            assert server.get(copies[0].json()["data"][0]["url"]).status_code == 200
        for path in (path for path in written if path.suffix == ".png"):
            assert_answer(61, server.get(f"/images/{path.name}"), 404)
        assert server.count("begin", 6100 + seed) == 2
    assert server.get("/readyz").status_code == 200
    assert "gone or damaged" in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


@pytest.mark.fault(62)
def test_a_folder_removed_while_it_runs_costs_no_second_drawing(start_server: StartServer) -> None:
    server = start_server()
    shutil.rmtree(server.folder / "pictures")
    for _ in range(3):
        answer = server.generate(seed=6200, response_format="b64_json", headers={"idempotency-key": "k"})
        assert_answer(62, answer, 200)
    assert server.count("begin", 6200) == 1
    shutil.rmtree(server.store)
    assert server.get("/readyz").status_code == 200
    assert (server.store / MARK).exists()
    assert_answer(62, server.generate(), 200)
    assert "made anew" in server.log.read_text()


@pytest.mark.fault(63)
def test_a_disk_that_is_full_as_an_answer_is_kept(start_server: StartServer) -> None:
    """A limit on the size of files, set on the running server: below an answer's, and below all."""
    server = start_server()

    def keyed(seed: int) -> httpx.Response:
        fields = {"seed": seed, "size": "512x512", "response_format": "b64_json"}
        return server.generate(**fields, headers={"idempotency-key": "k"})

    limits = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    assert keyed(6300).status_code == 200
    assert files(server.store) == []
    assert server.get("/readyz").json() == {"status": "store"}
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limits)
    assert server.get("/readyz").status_code == 200
    assert [keyed(6300).headers.get("idempotent-replayed") for _ in range(2)] == [None, "true"]
    assert server.count("begin", 6300) == 2


@pytest.mark.fault(64)
def test_a_keyed_answer_of_an_hour_ago_outlives_a_restart(start_server: StartServer, tmp_path: Path) -> None:
    folder = ("--output-dir", str(tmp_path / "kept"), "--url-ttl", "1")

    def keyed(server: Server) -> httpx.Response:
        return server.generate(seed=6400, response_format="b64_json", headers={"idempotency-key": "k"})

    first = start_server(*folder)
    drawn = keyed(first)
    assert first.stop() == 0
    time.sleep(1.2)
    for path in (tmp_path / "kept" / FOLDER).iterdir():
        os.utime(path, (time.time() - 62 * 60,) * 2)
    second = start_server(*folder)
    again = keyed(second)
    assert_answer(64, again, 200)
    assert (again.content, again.headers["idempotent-replayed"]) == (drawn.content, "true")
    assert second.count("begin", 6400) == 0
