"""What stores, the rate limit and detached jobs do at their bounds; clocks are turned by hand."""

from __future__ import annotations

import asyncio
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
from fluxserve.server.jobs.idempotency import IdempotencyStore
from fluxserve.server.jobs.image_store import ImageStore
from fluxserve.server.jobs.outcome import Outcome
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
            made = ImageStore(folder, ttl_s=3600, quota_bytes=quota, clock=clock)
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
    assert (store.has(first), store.has(second), store.size_bytes) == (False, True, 600)
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
    assert (await store.get(name)).expires_in_s == 3600
    clock.now += 3599
    assert (await store.get(name)).expires_in_s == 1
    clock.now += 1
    assert not store.has(name)


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


async def test_answers_end_by_age(tmp_path: Path) -> None:
    clock = Clock()
    store = IdempotencyStore(tmp_path, url_ttl_s=60, clock=clock)
    assert await store.open("a", "f", made(outcome())).outcome() == outcome()
    await store.open("u", "f", made(outcome(names=("x.png",)))).outcome()
    clock.now += 61
    assert store.find("u", "f") is None
    entry = store.find("a", "f")
    assert entry is not None
    assert await entry.outcome() == outcome()
    with pytest.raises(InvalidRequest):
        store.find("a", "other")
    clock.now += 24 * 3600
    assert store.find("a", "f") is None
    assert list(tmp_path.iterdir()) == []


async def test_answers_end_by_number_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "_MOST_ENTRIES", 3)
    monkeypatch.setattr(idempotency, "_QUOTA_BYTES", 2500)
    store = IdempotencyStore(tmp_path, url_ttl_s=60)
    for i in range(5):
        await store.open(str(i), "f", made(outcome(100))).outcome()
    assert [store.find(str(i), "f") is not None for i in range(5)] == [False, False, True, True, True]
    await store.open("large", "f", made(outcome(1200))).outcome()
    assert len(list(tmp_path.iterdir())) < 3


async def test_a_failure_that_is_not_final_frees_its_key(tmp_path: Path) -> None:
    store = IdempotencyStore(tmp_path, url_ttl_s=60)
    for error, kept in ((ValueError("bug"), False), (StorageFull("full"), False), (NonFiniteOutput("nan"), True)):
        entry = store.open(type(error).__name__, "f", failed(error))
        with pytest.raises(type(error)):
            await entry.outcome()
        assert (store.find(type(error).__name__, "f") is not None) == kept


async def test_files_of_another_kind_are_swept(tmp_path: Path) -> None:
    for name in ("junk.answer", "half.tmp", "empty.answer"):
        (tmp_path / name).write_bytes(b"junk" if name[0] != "e" else b"")
    IdempotencyStore(tmp_path, url_ttl_s=60)
    assert list(tmp_path.iterdir()) == []


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
