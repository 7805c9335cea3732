"""How long models have taken to load, kept across restarts in the server's folder."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from fluxserve.server.jobs.store_folder import StoreFolder

LONGEST_BYTES = 256 * 1024


class StoredLoadTimes:
    """One file of seconds by model. A folder that takes nothing costs no more than the memory of a restart."""

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder
        self._name = folder.name("load-times", ".json")
        self._seconds: dict[str, float] = {}
        with suppress(OSError, ValueError, AttributeError):
            with folder.open(self._name) as file:
                found = json.loads(file.read(LONGEST_BYTES))
            self._seconds = {key: float(value) for key, value in found.items() if 0 < float(value) < 1e6}

    def get(self, key: str) -> float | None:
        """The last measured time of a load, s."""
        return self._seconds.get(key)

    async def keep(self, key: str, seconds: float) -> None:
        """Remembers it."""
        self._seconds[key] = seconds
        content = json.dumps(self._seconds).encode()
        with suppress(OSError):
            await asyncio.to_thread(self._folder.write, self._name, [content])
