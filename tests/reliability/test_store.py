"""Pictures behind URLs: never a partial or a foreign file, whatever is asked for and whatever the disk does."""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import shutil
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fluxserve.errors import InvalidRequest, StorageFull
from fluxserve.request import GeneratedImage
from fluxserve.server.jobs.image_store import ImageStore
from tests.reliability.answers import assert_answer, parse
from tests.server.conftest import StartServer
from tests.server.running import Server, exchange


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def image(size: int) -> GeneratedImage:
    return GeneratedImage(bytes(size), "png", 64, 64, 0, 0)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


@pytest.mark.fault(44)
def test_no_path_leads_out_of_the_folder(server: Server) -> None:
    name = urlsplit(server.generate().json()["data"][0]["url"]).path.removeprefix("/images/")
    secret = server.folder / "pictures" / f"{secrets.token_urlsafe(16)}.png"
    secret.symlink_to(server.log)
    deep = ["../" * depth + "etc/passwd" for depth in range(1, 9)]
    spelled = [
        path.replace("../", dots) for path in deep[:3] for dots in ("%2e%2e/", "..%2f", "%2e%2e%2f", "..\\", "..%5c")
    ]
    forms = ["..", ".", "", "/etc/passwd", "%2fetc%2fpasswd", f"{name}%00.png", f"{name}/", f"./{name}", f"x/../{name}"]
    forms += [f"{name}%0a", name.upper(), f"{name}.html", "%c0%ae%c0%ae/", ".lock", "answers", "~root", secret.name]
    for path in [*deep, *spelled, *forms]:
        request = f"GET /images/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        assert_answer(44, parse(exchange(server, [request])))


async def _expire(folder: Path) -> None:
    clock = Clock()
    store = ImageStore(folder, ttl_s=60, quota_bytes=10**6, clock=clock)
    [name] = await store.put([image(10)])
    clock.now += 59
    assert (await store.get(name)).expires_in_s == pytest.approx(1)
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
        store = ImageStore(tmp_path / "store", ttl_s=60, quota_bytes=10**6)
        [name] = await store.put([image(10)])
        for years in (50, -50):
            monkeypatch.setattr(time, "time", lambda years=years: years * 3.15e7)
            assert 50 < (await store.get(name)).expires_in_s <= 60
        store.close()

    asyncio.run(jump())


@pytest.mark.fault(41)
def test_the_quota_drops_the_oldest_and_none_that_is_young(tmp_path: Path) -> None:
    async def fill() -> None:
        clock = Clock()
        store = ImageStore(tmp_path / "store", ttl_s=3600, quota_bytes=1000, clock=clock)
        names = []
        for _ in range(3):
            names += await store.put([image(300)])
            clock.now += 61
        [fourth] = await store.put([image(300)])
        assert files(tmp_path / "store") == sorted([*names[1:], fourth])
        with pytest.raises(StorageFull):
            await store.put([image(800)])
        assert store.has(fourth)
        store.close()

    asyncio.run(fill())


@pytest.mark.fault(41)
def test_a_full_disk_leaves_no_partial_file(tmp_path: Path) -> None:
    """A limit on the size of files, which the kernel enforces in the middle of a write."""

    async def fill() -> None:
        store = ImageStore(tmp_path / "store", ttl_s=60, quota_bytes=10**9)
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
    mode = os.stat(server.folder / "pictures").st_mode & 0o777
    assert mode == 0o700
