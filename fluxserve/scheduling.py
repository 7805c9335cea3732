"""What work costs and who goes first: the arithmetic both processes share.

The policy is shortest remaining first, with ageing: serve the smallest `rank`. With ageing 0.1 a job that has waited
ten times its remaining time outranks every newcomer, so nothing starves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fluxserve.request import GenerationRequest, ModelCard

Stage = Literal["idle", "warm_up", "text", "denoise", "preview", "vae", "encode"]

EWMA_WEIGHT = 0.1
UNMEASURED_S_PER_PIXEL = 1e-6
"""Before anything is measured: one second a step at 1024 x 1024. It only orders jobs; nothing is promised on it."""

TEXT_AREA = 256 * 256
"""256 text tokens cost a denoise step as much as the 256 image tokens of this many pixels."""


def drawn_pixels(request: GenerationRequest, card: ModelCard) -> int:
    """What one denoise step of one image covers: pixels of the size the model draws at and of those that it draws by.

    Doubled by true CFG.
    """
    passes = 2 if request.true_cfg_scale > 1 else 1
    drawn = card.native_area if card.resamples else request.width * request.height
    return passes * (drawn + request.reference_pixels)


def rank(remaining_s: float, waited_s: float, ageing: float) -> float:
    """Smallest is served next. waited_s: time the job was not being served, in the queue or pre-empted."""
    return remaining_s - ageing * waited_s


@dataclass(frozen=True)
class RemainingWork:
    """What is left of a job. pixels: of one pass over one image (doubled by true CFG). prepared: its prompt is encoded.

    steps_left: of each image that is not decoded yet; 0 for one that only wants decoding.
    """

    pixels: int
    prepared: bool
    steps_left: tuple[int, ...]


class CostModel:
    """How long each stage takes on this machine, learnt from what has been measured.

    Holds seconds per unit of load, by stage and by size in half-octaves of pixels. A size that was never measured is
    judged by the nearest one that was.
    """

    def __init__(self) -> None:
        self._rates: dict[str, dict[int, _Average]] = {}

    def observe(self, stage: Stage, pixels: int, seconds: float) -> None:
        """`stage` took `seconds` for images of `pixels` in all."""
        rates = self._rates.setdefault(stage, {})
        rates.setdefault(_bucket(pixels), _Average()).add(seconds / _load(stage, pixels))

    @property
    def rates(self) -> dict[str, dict[int, float]]:
        """What has been measured: by stage and size, for a later process's `recall`."""
        return {stage: {size: rate.value for size, rate in rates.items()} for stage, rates in self._rates.items()}

    def recall(self, rates: Mapping[str, Mapping[int, float]]) -> None:
        """Believes what an earlier process measured, until it has been measured here."""
        for stage, by_size in rates.items():
            self._rates[stage] = {size: _Average(value) for size, value in by_size.items()}

    def measured(self, stage: Stage, pixels: int) -> bool:
        """Whether about this size has been measured, by this process."""
        rate = self._rates.get(stage, {}).get(_bucket(pixels))
        return rate is not None and rate.count > 0

    @property
    def calibrated(self) -> bool:
        """Whether any denoise step has been measured: before that, seconds mean nothing."""
        return "denoise" in self._rates

    def seconds(self, stage: Stage, pixels: int) -> float:
        """The expected time of `stage` for images of `pixels` in all."""
        rates = self._rates.get(stage)
        if not rates:
            return UNMEASURED_S_PER_PIXEL * _load(stage, pixels)
        wanted = _bucket(pixels)
        nearest = min(rates, key=lambda bucket: abs(bucket - wanted))
        return rates[nearest].value * _load(stage, pixels)

    def remaining_s(self, work: RemainingWork) -> float:
        """The expected time until the job is done, if nothing else ran."""
        text = 0.0 if work.prepared else self.seconds("text", work.pixels)
        steps = sum(work.steps_left) * self.seconds("denoise", work.pixels)
        return text + steps + len(work.steps_left) * self.seconds("vae", work.pixels)


class _Average:
    """A plain mean at first, an exponentially weighted one from the tenth value on; before any, what is believed."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(EWMA_WEIGHT, 1 / self.count)


def _bucket(pixels: int) -> int:
    return round(2 * math.log2(max(pixels, 1)))


def _load(stage: Stage, pixels: int) -> float:
    """What the time of a stage grows with: tokens for a step, pixels for the autoencoder, nothing for the text."""
    if stage == "text":
        return float(TEXT_AREA)
    return pixels + TEXT_AREA if stage == "denoise" else float(max(pixels, 1))
