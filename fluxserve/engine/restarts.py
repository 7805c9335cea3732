"""When a dead worker is replaced, and when that is given up. Pure accounting, without processes or a clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fluxserve.config import EngineConfig
from fluxserve.exit_codes import DEVICE_LOST, GAVE_UP, REFUSALS

Reason = Literal["exit", "killed", "hung", "device"]


@dataclass(frozen=True)
class Fatal:
    """Why no worker will come back: end the process with `exit_code`, see `exit_codes`."""

    exit_code: int
    message: str


@dataclass(frozen=True)
class Death:
    """How one worker ended. exit_code: negative for a signal, None when it could not even be reaped.

    finished_a_job: in this life. refusal: what it said when it found the configuration unusable.
    """

    exit_code: int | None
    was_ready: bool
    finished_a_job: bool
    hung: bool = False
    refusal: str | None = None

    @property
    def reason(self) -> Reason:
        if self.hung:
            return "hung"
        if self.exit_code == DEVICE_LOST:
            return "device"
        return "killed" if self.exit_code is None or self.exit_code < 0 else "exit"


class RestartPolicy:
    """Restarts go on as long as jobs get finished; a row of deaths without one is a crash loop."""

    def __init__(self, limits: EngineConfig) -> None:
        self._limits = limits
        self._failed_starts = 0
        self._barren_deaths = 0

    def after(self, death: Death) -> float | Fatal:
        """Seconds to wait before the next start, or why there is none."""
        if death.exit_code is None:
            return Fatal(GAVE_UP, "the worker process could not be ended: its device driver holds it")
        if death.exit_code in REFUSALS:
            return Fatal(death.exit_code, death.refusal or "the worker refused its configuration")
        self._failed_starts = 0 if death.was_ready else self._failed_starts + 1
        self._barren_deaths = 0 if death.finished_a_job else self._barren_deaths + 1
        if self._failed_starts >= self._limits.max_failed_starts:
            return Fatal(GAVE_UP, f"the worker failed to start {self._failed_starts} times in a row")
        if self._barren_deaths >= self._limits.max_barren_deaths:
            return Fatal(GAVE_UP, f"the worker died {self._barren_deaths} times in a row without finishing a job")
        if death.finished_a_job:
            return 0.0
        return min(self._limits.back_off_s * 2 ** (self._barren_deaths - 1), self._limits.back_off_max_s)
