"""The parts of jobs that wait for a worker, and which is next.

Clients share by what was handed over (start-time fair queuing: whoever has cost least goes next); within one client the
smallest `rank` goes first. What comes back from a lost worker goes before all, in its old order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from fluxserve.engine.job import Job, Part

RankOf = Callable[[Part], float]
CostOf = Callable[[Part], float]


class JobQueue:
    """rank_of: the smaller, the sooner; ties by arrival. cost_of: what a job counts against its client."""

    def __init__(self, rank_of: RankOf, cost_of: CostOf) -> None:
        self.returned: deque[Part] = deque()
        self._rank_of = rank_of
        self._cost_of = cost_of
        self._waiting: dict[str, list[Part]] = {}
        self._served: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.returned) + sum(len(parts) for parts in self._waiting.values())

    def __iter__(self) -> Iterator[Part]:
        yield from self.returned
        for parts in self._waiting.values():
            yield from parts

    def share(self, client: str) -> tuple[int, int]:
        """(jobs of this client that wait, jobs of all others)."""
        jobs = {part.job for part in self}
        mine = sum(job.client == client for job in jobs)
        return mine, len(jobs) - mine

    def add(self, part: Part) -> None:
        """A new one, at the end of its client's."""
        if part.client not in self._waiting:
            self._waiting[part.client] = []
            self._level(part.client)
        self._waiting[part.client].append(part)

    def put_back(self, parts: Sequence[Part]) -> None:
        """What a lost worker had, oldest first."""
        self.returned.extendleft(reversed(parts))

    def discard(self, job: Job) -> None:
        """The job is wanted no more; does nothing when none of it is here."""
        for part in [part for part in self if part.job is job]:
            if part in self.returned:
                self.returned.remove(part)
            else:
                self._remove(part)

    def take(self) -> Part | None:
        """The next one in fairness, None when nothing new waits."""
        if not self._waiting:
            return None
        client = min(self._waiting, key=lambda name: (self._served[name], self._waiting[name][0].job.id))
        return self._hand_out(min(self._waiting[client], key=self._rank_of))

    def take_below(self, limit: float) -> Part | None:
        """The one of smallest rank, whoever's it is, if that is below `limit`."""
        parts = [part for waiting in self._waiting.values() for part in waiting]
        first = min(parts, key=self._rank_of, default=None)
        return self._hand_out(first) if first is not None and self._rank_of(first) < limit else None

    def _level(self, newcomer: str) -> None:
        """A client that had nothing waiting starts level with the one that has had least: idling saves nothing up."""
        least = min((self._served[client] for client in self._waiting if client != newcomer), default=0.0)
        ahead = {client: served for client, served in self._served.items() if served > least}
        level = dict.fromkeys(self._waiting, least)
        self._served = level | ahead if len(self._waiting) > 1 else level

    def _hand_out(self, part: Part) -> Part:
        self._served[part.client] += self._cost_of(part)
        self._remove(part)
        return part

    def _remove(self, part: Part) -> None:
        waiting = self._waiting[part.client]
        waiting.remove(part)
        if not waiting:
            del self._waiting[part.client]
