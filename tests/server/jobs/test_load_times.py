"""How long loads and pictures took outlives a restart; a file that was damaged is forgotten."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxserve.server.jobs.load_times import StoredLoadTimes
from fluxserve.server.jobs.store_folder import StoreFolder

RATES = {"denoise": {24: 1e-7, 30: 0.0}, "vae": {24: 2e-8}}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[StoreFolder]:
    opened = StoreFolder(tmp_path / "store")
    yield opened
    opened.close()


def test_what_was_kept_is_found_again(folder: StoreFolder) -> None:
    times = StoredLoadTimes(folder)
    assert (times.get("a"), times.rates("a")) == (None, {})
    asyncio.run(times.keep("a", 1.5, RATES))
    asyncio.run(times.keep("b", 2.5, {}))
    again = StoredLoadTimes(folder)
    assert (again.get("a"), again.rates("a")) == (1.5, RATES)
    assert (again.get("b"), again.rates("b")) == (2.5, {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"a": 1.5}',
        b'{"loads": {"a": -1}, "rates": {}}',
        b'{"loads": {"a": NaN}, "rates": {}}',
        b'{"loads": {"a": 1e9}, "rates": {}}',
        b'{"loads": {"a": null}, "rates": {}}',
        b'{"loads": 3, "rates": {}}',
        b'{"loads": {}, "rates": {"a": {"denoise": {"x": 1}}}}',
        b'{"loads": {}, "rates": {"a": {"denoise": 1}}}',
        b'{"loads": {}, "rates": {"a": {"denoise": {"24": Infinity}}}}',
    ],
)
def test_what_is_no_time_is_forgotten(folder: StoreFolder, content: bytes) -> None:
    folder.write(folder.name("load-times", ".json"), [content])
    times = StoredLoadTimes(folder)
    assert (times.get("a"), times.rates("a")) == (None, {})
    asyncio.run(times.keep("a", 1.5, RATES))
    with folder.open(folder.name("load-times", ".json")) as file:
        assert json.loads(file.read())["loads"] == {"a": 1.5}
