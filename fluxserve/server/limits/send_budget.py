"""What answers that wait to be read may hold in memory, and how long a client may let them wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from fluxserve.server.limits.pace import Pace

ALL_ANSWERS_CAP, CLIENT_CAP = 96 * 2**20, 48 * 2**20
WAIT_S = 60.0
BYTES_A_SECOND = 256 * 1024
"""An answer may wait for its client for WAIT_S in all, and a second more for each of these bytes that it has taken."""
_CHECK_EVERY_S = 0.5

Buffers = Iterable[bytes]


@dataclass(eq=False)
class Outgoing:
    """One answer. client: whose. held: what of it lies in memory; several may hold the same. end: gives it up."""

    client: Callable[[], str]
    held: Callable[[], Buffers]
    end: Callable[[], None]
    waited_s: float = 0.0
    sent: int = 0
    waiting: bool = False
    pace: Pace = field(default_factory=lambda: Pace(time.monotonic()))

    @property
    def patience_s(self) -> float:
        """How much longer it may wait for its client."""
        return max(0.0, WAIT_S + self.sent / BYTES_A_SECOND - self.waited_s)

    @contextmanager
    def sending(self, size: int) -> Iterator[None]:
        """While `size` bytes are given to the connection."""
        began, self.waiting = time.monotonic(), True
        try:
            yield
        finally:
            now, self.waiting = time.monotonic(), False
            self.waited_s += now - began
            self.sent += size
            self.pace.add(size, now)


class SendBudget:
    """Where a client's answers, or all, hold more than they may, the slowest that wait to be read end; one may stay.

    Sizes: bytes. Belongs to one event loop.
    """

    def __init__(self, total: int = ALL_ANSWERS_CAP, share: int = CLIENT_CAP) -> None:
        self._total, self._share = total, share
        self._answers: set[Outgoing] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, answer: Outgoing) -> None:
        """It is sent from now on, and what is too much ends."""
        self._answers.add(answer)
        self.check()
        self._check_later()

    def end(self, answer: Outgoing) -> None:
        """It has been sent, or given up."""
        self._answers.discard(answer)

    def check(self) -> None:
        """Ends what is too much."""
        holding = {answer: held for answer in self._answers if (held := {id(data): data for data in answer.held()})}
        if len(holding) < 2:
            return
        for client in {answer.client() for answer in holding}:
            self._keep_within(
                self._share, {answer: held for answer, held in holding.items() if answer.client() == client}
            )
        self._keep_within(self._total, {answer: held for answer, held in holding.items() if answer in self._answers})

    def _keep_within(self, cap: int, holding: dict[Outgoing, dict[int, bytes]]) -> None:
        holders = Counter(number for held in holding.values() for number in held)
        size = sum({number: len(data) for held in holding.values() for number, data in held.items()}.values())
        now = time.monotonic()
        slowest = sorted((answer for answer in holding if answer.waiting), key=lambda answer: answer.pace.rate(now))
        for answer in slowest[: len(holding) - 1]:
            if size <= cap:
                return
            held = holding[answer]
            holders.subtract(list(held))
            size -= sum(len(data) for number, data in held.items() if not holders[number])
            self._answers.discard(answer)
            answer.end()

    def _check_later(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_CHECK_EVERY_S, self._check_again)

    def _check_again(self) -> None:
        self._timer = None
        self.check()
        if self._answers:
            self._check_later()
