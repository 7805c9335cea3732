"""How long a client says it waits, and whether it has left because that time was up. Follows openai-python
`_base_client.py` and openai-node `client.ts`, which announce their timeout and count their retries in headers.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from fluxserve.errors import InvalidRequest

OPENAI_TIMEOUT_S = 600.0
"""What both official clients wait when nothing else is set."""
_OTHERS_TIMEOUT_S = 300.0
_AT_THE_END = 0.95
_MOST_RETRIES_TO_COME = 1
"""The official clients retry twice, so that a retry count of 2 is not followed by another."""
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?", re.ASCII)


@dataclass(frozen=True)
class ClientTimeout:
    """limit_s: the client's own bound on the whole request, if it set one. announced_s: when its library gives up.

    retry_count: which try this is, from 0; None for clients that do not say.
    """

    limit_s: float | None
    announced_s: float | None
    retry_count: int | None

    def start_timeout_s(self, stream: bool) -> float | None:
        """How long the request may wait for its start; None: for ever."""
        if self.limit_s is not None or stream:
            return self.limit_s
        if self.announced_s is not None:
            return self.announced_s
        return _OTHERS_TIMEOUT_S if self.retry_count is None else OPENAI_TIMEOUT_S

    def has_expired(self, waited_s: float) -> bool:
        """Whether a client that leaves after `waited_s` seconds has timed out and will send the same again."""
        if self.retry_count is None or self.retry_count > _MOST_RETRIES_TO_COME:
            return False
        return waited_s >= _AT_THE_END * (self.announced_s or OPENAI_TIMEOUT_S)

    @property
    def is_retry(self) -> bool:
        return bool(self.retry_count)


def read_client_timeout(headers: Headers) -> ClientTimeout:
    """What the request's headers say.

    Raises:
        InvalidRequest: X-Request-Timeout is no positive number of seconds.
    """
    limit = headers.get("x-request-timeout")
    limit_s = _seconds(limit)
    if limit is not None and limit_s is None:
        raise InvalidRequest(f"X-Request-Timeout must be a positive number of seconds, got {limit[:32]!r}")
    announced_s = _seconds(headers.get("x-stainless-read-timeout")) or _seconds(headers.get("x-stainless-timeout"))
    count = headers.get("x-stainless-retry-count", "")
    return ClientTimeout(limit_s, announced_s, int(count) if re.fullmatch(r"[0-9]{1,3}", count) else None)


def _seconds(text: str | None) -> float | None:
    if text is None or not _SECONDS.fullmatch(text):
        return None
    seconds = float(text)
    return seconds if 0 < seconds < math.inf else None
