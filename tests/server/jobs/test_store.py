"""What stores, the rate limit and detached jobs do at their bounds; clocks are turned by hand."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fluxserve.engine.events import JobResult
from fluxserve.engine.job import Job
from fluxserve.errors import ConfigError, InUse, InvalidRequest, NonFiniteOutput, RateLimitExceeded, StorageFull
from fluxserve.request import GeneratedImage, Timings
from fluxserve.server.jobs import detached, idempotency, image_store
from fluxserve.server.jobs.detached import DetachedJobs
from fluxserve.server.jobs.homes import Claim
from fluxserve.server.jobs.idempotency import IdempotencyStore
from fluxserve.server.jobs.image_store import ImageStore
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.store_folder import MARK, StoreFolder
from fluxserve.server.limits.rate_limit import RateLimiter
from tests.jobs import request

pytestmark = pytest.mark.anyio


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def image(size: int = 100, index: int = 0) -> GeneratedImage:
    return GeneratedImage(bytes(size), "png", 64, 64, 7, index)


MakeStore = Callable[..., ImageStore]


@pytest.fixture
def make_store(tmp_path: Path) -> Iterator[MakeStore]:
    """make_store(clock, quota=1000, folder=tmp_path / "pictures"): a store that is closed at the end."""
    with ExitStack() as opened:

        def make(clock: Clock, quota: int = 1000, folder: Path = tmp_path / "pictures") -> ImageStore:
            made = ImageStore(StoreFolder(folder), ttl_s=3600, quota_bytes=quota, clock=clock)
            opened.callback(made.close)
            return made

        yield make


async def test_the_oldest_pictures_make_room_and_young_ones_do_not(make_store: MakeStore) -> None:
    clock = Clock()
    store = make_store(clock)
    [first] = await store.put([image(600)])
    with pytest.raises(StorageFull):
        await store.put([image(600)])
    assert await store.probe(), "a full quota is no broken disk"
    clock.now += 61
    [second] = await store.put([image(600)])
    assert (await store.has([first]), await store.has([second]), store.size_bytes) == (False, True, 600)
    with pytest.raises(InvalidRequest) as gone:
        await store.get(first)
    assert gone.value.code == "image_expired"
    with pytest.raises(StorageFull):
        await store.put([image(1001)])


async def test_times_are_of_the_monotonic_clock(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    store = make_store(clock)
    [name] = await store.put([image()])
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert (await store.get(name)).expires_at == clock.now + 3600
    clock.now += 3599
    assert (await store.get(name)).expires_at == clock.now + 1
    clock.now += 1
    assert not await store.has([name])


async def test_the_expired_names_remembered_are_bounded(make_store: MakeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "_REMEMBERED", 2)
    clock = Clock()
    pictures = make_store(clock)
    names = await pictures.put([image(), image(), image()])
    clock.now += 3600
    codes = []
    for name in names:
        with pytest.raises(InvalidRequest) as missing:
            await pictures.get(name)
        codes.append(missing.value.code)
    assert codes == ["image_not_found", "image_expired", "image_expired"]


async def test_a_folder_is_private_and_held_by_one(make_store: MakeStore, tmp_path: Path) -> None:
    first = make_store(Clock())
    assert (tmp_path / "pictures").stat().st_mode & 0o777 == 0o700
    with pytest.raises(InUse, match="output-dir"):
        make_store(Clock())
    first.close()
    make_store(Clock())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        make_store(Clock(), folder=tmp_path / "file")


async def test_names_cannot_be_guessed(make_store: MakeStore) -> None:
    names = await make_store(Clock(), 10**6).put([image(1, i) for i in range(100)])
    assert len({name[:10] for name in names}) == 100
    assert all(image_store.PICTURE_NAME.fullmatch(name) for name in names)


def outcome(size: int = 100, names: tuple[str, ...] = ()) -> Outcome:
    result = JobResult((image(size),), Timings(steps=4), 3, None)
    return Outcome(1, "model", result, names)


async def made(answer: Outcome) -> Outcome:
    return answer


async def failed(error: Exception) -> Outcome:
    raise error


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StoreFolder]:
    opened = StoreFolder(tmp_path / "store")
    yield opened
    opened.close()


def kept(tmp_path: Path) -> list[Path]:
    """The files of the folder, but for its mark."""
    return [path for path in (tmp_path / "store").iterdir() if path.name != MARK]


async def answer_of(store: IdempotencyStore, scope: str, answer: Outcome, client: str = "me") -> Outcome:
    """What the first request under a key is given."""
    entry = store.open(Claim(client, scope, "f", ()), made(answer))
    assert entry.work is not None
    return await entry.work


async def recalled(store: IdempotencyStore, scope: str) -> Outcome | None:
    """What a later one is given; None: it has to be drawn anew."""
    entry = store.find(scope, "f")
    answer = await store.recall(entry) if entry else None
    return answer.result() if answer else None


async def test_answers_end_by_age(folder: StoreFolder, tmp_path: Path) -> None:
    clock = Clock()
    store = IdempotencyStore(folder, url_ttl_s=60, clock=clock)
    assert await answer_of(store, "a", outcome()) == outcome()
    await answer_of(store, "u", outcome(names=("x.png",)))
    clock.now += 61
    assert store.find("u", "f") is None
    assert await recalled(store, "a") == outcome()
    with pytest.raises(InvalidRequest):
        store.find("a", "other")
    clock.now += 24 * 3600
    assert store.find("a", "f") is None
    assert kept(tmp_path) == []


async def test_answers_end_by_number_and_size(
    folder: StoreFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idempotency, "MOST_ENTRIES", 3)
    monkeypatch.setattr(idempotency, "QUOTA_BYTES", 2500)
    store = IdempotencyStore(folder, url_ttl_s=60)
    for i in range(5):
        await answer_of(store, str(i), outcome(100))
    assert [store.find(str(i), "f") is not None for i in range(5)] == [False, False, True, True, True]
    await answer_of(store, "large", outcome(1200))
    assert len(kept(tmp_path)) < 3


@pytest.mark.fault(112)
async def test_nobodys_answers_push_out_anothers(folder: StoreFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "MOST_ENTRIES", 10)
    monkeypatch.setattr(idempotency, "QUOTA_BYTES", 100_000)
    store = IdempotencyStore(folder, url_ttl_s=60)
    await answer_of(store, "first", outcome(1000), "other")
    await answer_of(store, "second", outcome(1000), "other")
    for i in range(30):
        await answer_of(store, str(i), outcome(100))
    for i in range(3):
        await answer_of(store, f"large {i}", outcome(60_000))
    assert await recalled(store, "first") == await recalled(store, "second") == outcome(1000)
    assert [store.find(f"large {i}", "f") is not None for i in range(3)] == [False, False, True]
    again = IdempotencyStore(folder, url_ttl_s=60)
    for i in range(30):
        await answer_of(again, str(i), outcome(100))
    assert await recalled(again, "first") == outcome(1000), "a restart forgets no client"


async def test_a_failure_that_is_not_final_frees_its_key(folder: StoreFolder) -> None:
    store = IdempotencyStore(folder, url_ttl_s=60)
    for error, is_kept in ((ValueError("bug"), False), (StorageFull("full"), False), (NonFiniteOutput("nan"), True)):
        entry = store.open(Claim("me", type(error).__name__, "f", ()), failed(error))
        assert entry.work is not None
        with pytest.raises(type(error)):
            await entry.work
        assert (store.find(type(error).__name__, "f") is not None) == is_kept
    with pytest.raises(NonFiniteOutput, match="nan"):
        await recalled(store, "NonFiniteOutput")


@pytest.mark.fault(61)
@pytest.mark.parametrize("damage", ["removed", "emptied", "cut", "cut in its head", "flipped", "a folder"])
async def test_a_damaged_answer_frees_its_key(folder: StoreFolder, tmp_path: Path, damage: str) -> None:
    store = IdempotencyStore(folder, url_ttl_s=60)
    await answer_of(store, "a", outcome())
    [path] = kept(tmp_path)
    content = path.read_bytes()
    path.unlink()
    match damage:
        case "a folder":
            path.mkdir()
        case "removed":
            pass
        case _:
            flipped = content[:-1] + bytes([content[-1] ^ 1])
            left = {"emptied": b"", "cut": content[:-1], "cut in its head": content[:40], "flipped": flipped}[damage]
            path.write_bytes(left)
    assert await recalled(store, "a") is None
    assert not folder.writable, "readiness has to ask the disk"
    assert folder.check()
    assert store.find("a", "f") is None


@pytest.mark.fault(64)
async def test_after_a_restart_answers_live_as_long_as_they_would_have(
    folder: StoreFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer of URLs for their time, others for a day; a wall clock that was set back gives none more than a day."""
    store, began = IdempotencyStore(folder, url_ttl_s=60), time.time()
    await answer_of(store, "a", outcome())
    await answer_of(store, "u", outcome(names=("x.png",)))
    clock = Clock()
    for later_s, left in ((62 * 60, (True, False)), (24 * 3600 + 1, (False, False))):
        with monkeypatch.context() as patched:
            patched.setattr(time, "time", lambda later_s=later_s: began + later_s)
            patched.setattr(StoreFolder, "delete", lambda *_: None)
            again = IdempotencyStore(folder, url_ttl_s=60, clock=clock)
            assert (again.find("a", "f") is not None, again.find("u", "f") is not None) == left
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: began - 1e6)
        again = IdempotencyStore(folder, url_ttl_s=60, clock=clock)
    assert again.find("a", "f") is not None
    clock.now += 24 * 3600 + 1
    assert again.find("a", "f") is None


@pytest.mark.fault(54, 59)
async def test_only_what_is_provably_its_own_is_swept(folder: StoreFolder, tmp_path: Path) -> None:
    own = folder.name("A" * 38, ".png")
    forged = "A" * 54 + ".png"
    foreign = ["junk.answer", "half.tmp", ".tmp-half.png", forged, f".tmp-{forged}", "a" * 80 + ".answer", "naïve.png"]
    for name in [*foreign, own, f".tmp-{own}"]:
        (tmp_path / "store" / name).write_bytes(b"x")
    os.utime(tmp_path / "store" / own, (1, 1))
    folder.close()
    again = StoreFolder(tmp_path / "store")
    IdempotencyStore(again, url_ttl_s=60)
    pictures = ImageStore(again, ttl_s=60, quota_bytes=1000)
    await pictures.put([image()])
    left = {path.name for path in kept(tmp_path)}
    assert left >= set(foreign)
    assert not left & {own, f".tmp-{own}"}
    for name in foreign:
        assert not await pictures.has([name])
    again.close()


@pytest.mark.fault(60)
def test_files_in_the_servers_place_are_refused_by_its_name(tmp_path: Path) -> None:
    place = tmp_path / "store"

    def refused() -> None:
        with pytest.raises(ConfigError, match=re.escape(str(place))):
            StoreFolder(place)

    place.write_text("a file")
    refused()
    assert place.read_text() == "a file"
    place.unlink()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    refused()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    place.unlink()
    place.mkdir(mode=0o755)
    (place / "holiday.png").write_bytes(b"mine")
    refused()
    assert [path.name for path in place.iterdir()] == ["holiday.png"]
    assert place.stat().st_mode & 0o777 == 0o755
    (place / MARK).write_text("not the server's\n")
    refused()
    (place / MARK).unlink()
    (place / "holiday.png").unlink()
    StoreFolder(place).close()


@pytest.mark.fault(62)
@pytest.mark.parametrize("whole", [True, False])
async def test_a_folder_that_is_removed_while_in_use_is_made_again(tmp_path: Path, whole: bool) -> None:
    folder = StoreFolder(tmp_path / "given" / "store")
    pictures = ImageStore(folder, ttl_s=60, quota_bytes=1000)
    [lost] = await pictures.put([image()])
    shutil.rmtree(tmp_path / "given" / ("" if whole else "store"))
    assert not await pictures.has([lost])
    [name] = await pictures.put([image()])
    assert await pictures.has([name])
    assert (tmp_path / "given" / "store").stat().st_mode & 0o777 == 0o700
    with pytest.raises(InUse):
        StoreFolder(tmp_path / "given" / "store")
    folder.close()
    again = StoreFolder(tmp_path / "given" / "store")
    assert [found for found, _ in again.own_files([".png"])] == [name]
    again.close()


async def test_a_bucket_refills(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    limiter = RateLimiter(60, clock)

    def take() -> float | None:
        limiter.take("me")
        try:
            limiter.check("me")
        except RateLimitExceeded as refusal:
            return refusal.retry_after_s
        return None

    assert [take() for _ in range(60)] == [None] * 60
    assert take() == 1
    assert take() == 1
    clock.now += 2
    assert [take(), take(), take()] == [None, None, 1]
    limiter.take("you")
    limiter.check("you")


def job(number: int) -> Job:
    ended: list[Job] = []
    return Job(number, request(), client="me", pixels=1, digest=None, on_end=ended.append)


async def test_a_detached_job_is_kept_for_seconds_and_its_result_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "KEEP_RUNNING_S", 0.05)
    monkeypatch.setattr(detached, "KEEP_FINISHED_S", 0.3)
    detached_jobs = DetachedJobs()
    running, done = job(1), job(2)
    detached_jobs.detach("same", running)
    detached_jobs.detach("same", done)
    done.completed(image(), Timings())
    done.finish(Timings())
    await asyncio.sleep(0.12)
    assert running.done, "cancelled"
    assert detached_jobs.reattach("other") is None
    assert detached_jobs.reattach("same") is done
    assert detached_jobs.reattach("same") is None
    detached_jobs.detach("same", done)
    await asyncio.sleep(0.5)
    assert detached_jobs.reattach("same") is None


async def test_detached_jobs_are_bounded() -> None:
    detached_jobs = DetachedJobs()
    jobs = [job(number) for number in range(40)]
    for one in jobs:
        detached_jobs.detach("same", one)
    assert [one.done for one in jobs] == [True] * 8 + [False] * 32
    detached_jobs.close()
    assert all(one.done for one in jobs)


@pytest.mark.fault(120)
async def test_pictures_that_wait_for_a_retry_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detached, "KEEP_RUNNING_S", 0.05)
    monkeypatch.setattr(detached, "MOST_BYTES", 1000)
    detached_jobs, jobs = DetachedJobs(), [job(number) for number in range(5)]
    for number, one in enumerate(jobs):
        detached_jobs.detach(str(number), one)
        one.completed(image(400), Timings())
        one.finish(Timings())
    await asyncio.sleep(0.3)
    assert [detached_jobs.reattach(str(number)) is not None for number in range(5)] == [False] * 3 + [True] * 2
    detached_jobs.close()
