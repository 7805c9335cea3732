"""How long models have taken to load and to draw, kept across restarts in the server's folder."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress

from fluxserve.server.jobs.store_folder import StoreFolder

Rates = Mapping[str, Mapping[int, float]]
LONGEST_BYTES = 256 * 1024


class StoredLoadTimes:
    """One file: seconds of a load by model, and rates of drawing. A folder that takes nothing costs no more than the
    memory of a restart.
    """

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        self._name = folder.name("load-times", ".json")
        self._seconds: dict[str, float] = {}
        self._rates: dict[str, Rates] = {}
        with suppress(OSError, ValueError, AttributeError, TypeError, KeyError):
            with folder.open(self._name) as file:
                found = json.loads(file.read(LONGEST_BYTES))
            self._seconds = {key: _sane(value) for key, value in found["loads"].items()}
            self._rates = {key: _rates(value) for key, value in found["rates"].items()}

    def get(self, key: str) -> float | None:
        """The last measured time of a load, s."""
        return self._seconds.get(key)

    def rates(self, key: str) -> Rates:
        """The last that were kept; see `CostModel.rates`."""
        return self._rates.get(key, {})

    async def keep(self, key: str, seconds: float, rates: Rates) -> None:
        """Remembers both."""
        self._seconds[key], self._rates[key] = seconds, rates
        content = json.dumps({"loads": self._seconds, "rates": self._rates}).encode()
        with suppress(OSError):
            await asyncio.to_thread(self._folder.write, self._name, [content])


def _rates(found: Mapping[str, Mapping[str, float]]) -> Rates:
    return {stage: {int(size): _sane(rate) for size, rate in by_size.items()} for stage, by_size in found.items()}


def _sane(value: float) -> float:
    """Raises: ValueError: no time that anything takes."""
    if not 0 <= float(value) < 1e6:
        raise ValueError(value)
    return float(value)
