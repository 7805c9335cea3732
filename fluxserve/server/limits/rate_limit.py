"""How many requests a minute a client may make: a token bucket each."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fluxserve.errors import RateLimitExceeded

_MOST_CLIENTS = 10_000


@dataclass
class _Bucket:
    tokens: float
    filled_at: float


class RateLimiter:
    """per_minute: requests a client may make at once, refilled evenly over a minute."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, client: str) -> dict[str, str]:
        """Counts one request; returns the headers that tell the client where it stands, also if it has none left."""
        bucket = self._filled(client)
        bucket.tokens -= 1
        return {
            "x-ratelimit-limit-requests": str(self._per_minute),
            "x-ratelimit-remaining-requests": str(max(0, math.floor(bucket.tokens))),
            "x-ratelimit-reset-requests": _duration(self._seconds(self._per_minute - max(0.0, bucket.tokens))),
        }

    def check(self, client: str) -> None:
        """Raises RateLimitExceeded if the request just taken was one too many, and gives it back."""
        bucket = self._buckets[client]
        if bucket.tokens < 0:
            wait_s = self._seconds(-bucket.tokens)
            bucket.tokens += 1
            raise RateLimitExceeded(
                f"more than {self._per_minute} requests per minute; try again in {math.ceil(wait_s)} s",
                retry_after_s=wait_s,
            )

    def _filled(self, client: str) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.setdefault(client, _Bucket(self._per_minute, now))
        self._buckets.move_to_end(client)
        if len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        gained = (now - bucket.filled_at) * self._per_minute / 60
        bucket.tokens = min(float(self._per_minute), bucket.tokens + gained)
        bucket.filled_at = now
        return bucket

    def _seconds(self, tokens: float) -> float:
        return tokens * 60 / self._per_minute


def _duration(seconds: float) -> str:
    """OpenAI's way to write a duration: 1s, 6m0s."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
