"""Claims, leases and sweeping, in one process over a shared folder; clocks are turned by hand."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from pathlib import Path

import pytest

from fluxserve.engine.events import JobResult
from fluxserve.errors import ConfigError, InvalidRequest, NonFiniteOutput, StorageFull
from fluxserve.request import GeneratedImage, Timings
from fluxserve.server.jobs.homes import Claim, DrawnElsewhere, Entry
from fluxserve.server.jobs.outcome import Outcome
from fluxserve.server.jobs.shared import answers as shared_answers
from fluxserve.server.jobs.shared.answers import SharedAnswers
from fluxserve.server.jobs.shared.claims import LEASE_S, ClaimRecord, Claims
from fluxserve.server.jobs.shared.objects import ObjectStorage
from fluxserve.server.jobs.shared.pictures import SharedPictures

pytestmark = pytest.mark.anyio
DAY_S = 24 * 3600.0


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def image(size: int = 100) -> GeneratedImage:
    return GeneratedImage(bytes(size), "png", 64, 64, 7, 0)


def outcome(size: int = 100, names: tuple[str, ...] = ()) -> Outcome:
    return Outcome(1, "model", JobResult((image(size),), Timings(steps=4), 3, None), names)


async def opened(folder: Path) -> ObjectStorage:
    return await ObjectStorage.open(f"file://{folder}/store")


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Moves the store's clock for this process, not for the files."""
    began = ObjectStorage.now
    monkeypatch.setattr(ObjectStorage, "now", lambda self: began(self) + seconds)


async def drawn(answers: SharedAnswers, key: str, made: Outcome | Exception, client: str = "me") -> Outcome:
    """What the first request under a key is given."""

    async def work() -> Outcome:
        if isinstance(made, Exception):
            raise made
        return made

    claim = await answers.claim(client, key, "f", (7,))
    assert isinstance(claim, Claim)
    entry = answers.open(claim, work())
    assert entry.work is not None
    return await entry.work


async def test_servers_that_begin_at_once_agree_on_the_mark(tmp_path: Path) -> None:
    stores = await asyncio.gather(*(opened(tmp_path) for _ in range(8)))
    assert len({store.name("stem", ".png") for store in stores}) == 1
    assert all(store.wrote(stores[0].name("stem", ".png")) for store in stores)
    assert not stores[0].wrote("stem.png")
    assert (tmp_path / "store").stat().st_mode & 0o777 == 0o700


async def test_a_place_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match=r"--store file:.*store holds what is not"):
        await opened(tmp_path)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["holiday.png"]


async def test_one_of_many_takes_a_claim(tmp_path: Path) -> None:
    stores = [Claims(await opened(tmp_path)) for _ in range(8)]
    for number in range(20):
        taken = await asyncio.gather(*(claims.take("key", number, ClaimRecord("me", "f", (1,))) for claims in stores))
        assert Counter(taken)[True] == 1


async def test_a_claim_lapses_by_the_clock_of_who_looks(tmp_path: Path) -> None:
    clock, objects = Clock(), await opened(tmp_path)
    holding, looking = Claims(objects), Claims(objects, clock)
    assert await holding.take("key", 0, ClaimRecord("me", "f", (1,)))
    for beat in range(4):
        claim = await looking.last("key")
        assert claim is not None
        assert not looking.lapsed(claim)
        clock.now += LEASE_S - 1
        await holding.write(claim._replace(record=ClaimRecord("me", "f", (1,), "g", "h", beat)))
    claim = await looking.last("key")
    assert claim is not None
    assert not looking.lapsed(claim)
    clock.now += LEASE_S
    assert looking.lapsed(claim)


async def test_a_freed_key_keeps_its_seeds_for_the_same_request(tmp_path: Path) -> None:
    first, second = [SharedAnswers(await opened(tmp_path), 60) for _ in range(2)]
    claim = await first.claim("me", "key", "f", (1, 2))
    assert isinstance(claim, Claim)
    assert isinstance(await second.claim("me", "key", "f", (3, 4)), DrawnElsewhere)
    with pytest.raises(InvalidRequest, match="another request"):
        await second.claim("me", "key", "other", (3, 4))
    await first.release(claim)
    taken = await second.claim("me", "key", "f", (3, 4))
    assert isinstance(taken, Claim)
    assert taken.seeds == (1, 2)
    await second.release(taken)
    other = await first.claim("me", "key", "other", (5, 6))
    assert isinstance(other, Claim)
    assert other.seeds == (5, 6)


async def test_failures_that_are_final_are_kept_and_others_free_the_key(tmp_path: Path) -> None:
    first, second = [SharedAnswers(await opened(tmp_path), 60) for _ in range(2)]
    for error, is_kept in ((ValueError("bug"), False), (StorageFull("full"), False), (NonFiniteOutput("nan"), True)):
        with pytest.raises(type(error)):
            await drawn(first, str(error), error)
        found = await second.claim("me", str(error), "f", (7,))
        assert isinstance(found, Entry) == is_kept
    assert isinstance(found, Entry)
    recalled = await second.recall(found)
    assert recalled is not None
    with pytest.raises(NonFiniteOutput, match="nan"):
        await recalled


async def test_a_holder_that_died_between_answer_and_note_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = [SharedAnswers(await opened(tmp_path), 60) for _ in range(2)]

    async def dies(*_: object) -> None:
        return None

    monkeypatch.setattr(first._claims, "write", dies)
    assert await drawn(first, "key", outcome()) == outcome()
    monkeypatch.setattr(second._claims, "_clock", clock := Clock())
    assert isinstance(await second.claim("me", "key", "f", (8,)), DrawnElsewhere)
    clock.now += LEASE_S
    for _ in range(2):
        found = await second.claim("me", "key", "f", (8,))
        assert isinstance(found, Entry)
        recalled = await second.recall(found)
        assert recalled is not None
        assert await recalled == outcome()


async def test_answers_end_by_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = SharedAnswers(await opened(tmp_path), 60)
    await drawn(answers, "day", outcome())
    await drawn(answers, "urls", outcome(names=("x.png",)))
    later(monkeypatch, 61)
    assert isinstance(await answers.claim("me", "day", "f", (8,)), Entry)
    fresh = await answers.claim("me", "urls", "other", (8,))
    assert isinstance(fresh, Claim)
    assert fresh.seeds == (8,)
    await answers.sweep()
    assert len(list(tmp_path.rglob("*.answer"))) == 2
    later(monkeypatch, DAY_S)
    await asyncio.gather(*[SharedAnswers(await opened(tmp_path), 60).sweep() for _ in range(3)])
    assert list(tmp_path.rglob("*.answer")) == []
    assert len(list(tmp_path.rglob("*.key/*"))) == 3, "claims outlive their answers"
    later(monkeypatch, 3600)
    await answers.sweep()
    assert list(tmp_path.rglob("*.key")) == []


async def test_nobodys_answers_push_out_anothers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_answers, "QUOTA_BYTES", 50_000)
    answers = SharedAnswers(await opened(tmp_path), 60)
    await drawn(answers, "first", outcome(10_000), "other")
    for number in range(6):
        await drawn(answers, str(number), outcome(10_000))
    await answers.sweep()
    left = [
        await answers.recall(found) for key in ("0", "1", "2", "3", "4", "5") if (found := await kept(answers, key))
    ]
    assert [answer is not None for answer in left] == [False] * 3 + [True] * 3
    found = await kept(answers, "first", "other")
    assert found is not None
    assert await answers.recall(found) is not None


async def kept(answers: SharedAnswers, key: str, client: str = "me") -> Entry | None:
    found = await answers.claim(client, key, "f", (7,))
    return found if isinstance(found, Entry) else None


async def test_pictures_end_by_age_and_by_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = await opened(tmp_path)
    pictures = SharedPictures(objects, 3600, 1000, redirects=False)
    foreign = tmp_path / "store" / "pictures" / ("A" * 54 + ".png")
    old = await pictures.put([image(400), image(400)])
    foreign.write_bytes(b"foreign")
    await asyncio.sleep(0.01)
    [young] = await pictures.put([image(400)])
    await pictures.sweep()
    assert await pictures.has([*old, young]), "young ones are left"
    later(monkeypatch, 61)
    await asyncio.gather(*(pictures.sweep() for _ in range(3)))
    assert pictures.size_bytes == 800
    assert [await pictures.has([name]) for name in (*old, young)].count(True) == 2
    assert await pictures.has([young])
    assert await pictures.address(young) is None
    later(monkeypatch, 3600)
    for _ in range(2):
        with pytest.raises(InvalidRequest) as gone:
            await pictures.get(young)
        assert gone.value.code == "image_expired"
        await pictures.sweep()
    assert list(tmp_path.rglob("*.png")) == [foreign]


async def test_pictures_are_stored_all_or_none(tmp_path: Path) -> None:
    objects = await opened(tmp_path)
    pictures = SharedPictures(objects, 3600, 1000, redirects=False)
    await pictures.put([image()])
    folder = tmp_path / "store" / "pictures"
    folder.rename(tmp_path / "store" / "aside")
    folder.write_bytes(b"in its place")
    with pytest.raises(StorageFull):
        await pictures.put([image(), image()])
    assert not await pictures.probe(), "asked anew in a second"
    folder.unlink()
    await asyncio.sleep(1.1)
    assert await pictures.probe()
    await pictures.put([image(), image()])
    assert len(list(folder.iterdir())) == 2


async def test_times_are_by_the_stores_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time
    for years in (50, -50):
        monkeypatch.setattr(time, "time", lambda years=years: real() + years * 3.15e7)
        objects = await opened(tmp_path / str(years))
        pictures, answers = SharedPictures(objects, 60, 10**6, redirects=False), SharedAnswers(objects, 60)
        [name] = await pictures.put([image()])
        await drawn(answers, "urls", outcome(names=("x.png",)))
        await pictures.sweep()
        await answers.sweep()
        assert 55 < (await pictures.get(name)).expires_at - time.monotonic() <= 60
        assert isinstance(await answers.claim("me", "urls", "f", (8,)), Entry)
        [file] = (tmp_path / str(years)).rglob("*.png")
        os.utime(file, (real() - 61, real() - 61))
        again = SharedPictures(await opened(tmp_path / str(years)), 60, 10**6, redirects=False)
        with pytest.raises(InvalidRequest, match="expired"):
            await again.get(name)


async def test_what_was_half_written_is_swept_and_nothing_else(tmp_path: Path) -> None:
    objects = await opened(tmp_path)
    [name] = await SharedPictures(objects, 60, 1000, redirects=False).put([image()])
    folder = tmp_path / "store" / "pictures"
    (tmp_path / "store" / "claims" / objects.name("key", ".key")).mkdir(parents=True)
    half = [folder / f"{name}#3", tmp_path / "store" / "claims" / objects.name("key", ".key") / "0#1"]
    others = [folder / "mine.png#3", folder / f"{name[1:]}#1"]
    fresh = folder / f"{name}#4"
    for path in (*half, *others, fresh):
        path.write_bytes(b"x")
    for path in (*half, *others):
        os.utime(path, (1, 1))
    await objects.tidy()
    assert [path.exists() for path in (*half, *others, fresh)] == [False, False, True, True, True]
