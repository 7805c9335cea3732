"""How long the worker may be silent: it says when silence has lasted too long, others act."""

from __future__ import annotations

import time

from fluxserve import wire
from fluxserve.config import EngineConfig
from fluxserve.scheduling import CostModel

TIMEOUT_FACTOR = 5


class Watchdog:
    """One worker life. The limit follows what the worker last said it was about to do, and how long that takes here."""

    def __init__(self, limits: EngineConfig, costs: CostModel) -> None:
        self._limits = limits
        self._costs = costs
        self._limit_s = limits.loading_grace_s
        self._heard_at = time.monotonic()

    @property
    def left_s(self) -> float:
        """Seconds of silence that are still allowed; negative once it has lasted too long."""
        return self._heard_at + self._limit_s - time.monotonic()

    def hear(self, message: wire.Message) -> None:
        """These come from the worker's main loop; nothing else proves that it turns."""
        match message:
            case wire.Loading():
                self._limit_s = self._limits.loading_grace_s
            case wire.Ready():
                self._limit_s = self._limits.watchdog_floor_s
            case wire.Beat():
                self._limit_s = self._allowed_s(message)
            case _:
                return
        self._heard_at = time.monotonic()

    def _allowed_s(self, beat: wire.Beat) -> float:
        if beat.stage == "idle":
            return self._limits.watchdog_floor_s
        known = self._costs.measured(beat.stage, beat.pixels)
        floor = self._limits.watchdog_floor_s if known else self._limits.unmeasured_grace_s
        return max(floor, TIMEOUT_FACTOR * self._costs.seconds(beat.stage, beat.pixels))
