"""The jobs that wait for the worker, and who is next.

Clients share by what was handed over (start-time fair queuing: whoever has cost least goes next); within one client the
smallest `rank` goes first. Jobs that come back from a lost worker go before all, in their old order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from fluxserve.engine.job import Job

RankOf = Callable[[Job], float]
CostOf = Callable[[Job], float]


class JobQueue:
    """rank_of: the smaller, the sooner; ties by arrival. cost_of: what a job counts against its client."""

    def __init__(self, rank_of: RankOf, cost_of: CostOf) -> None:
        self.returned: deque[Job] = deque()
        self._rank_of = rank_of
        self._cost_of = cost_of
        self._waiting: dict[str, list[Job]] = {}
        self._served: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self.returned) + sum(len(jobs) for jobs in self._waiting.values())

    def __iter__(self) -> Iterator[Job]:
        yield from self.returned
        for jobs in self._waiting.values():
            yield from jobs

    def share(self, client: str) -> tuple[int, int]:
        """(jobs of this client that wait, jobs of all others)."""
        mine = sum(job.client == client for job in self)
        return mine, len(self) - mine

    def add(self, job: Job) -> None:
        """A new job, at the end of its client's."""
        if job.client not in self._waiting:
            self._waiting[job.client] = []
            self._level(job.client)
        self._waiting[job.client].append(job)

    def put_back(self, jobs: Sequence[Job]) -> None:
        """Jobs of a lost worker, oldest first."""
        self.returned.extendleft(reversed(jobs))

    def discard(self, job: Job) -> None:
        """The job is wanted no more; does nothing when it is not here."""
        if job in self.returned:
            self.returned.remove(job)
        elif job in self._waiting.get(job.client, ()):
            self._remove(job)

    def take(self) -> Job | None:
        """The next job in fairness, None when no new job waits."""
        if not self._waiting:
            return None
        client = min(self._waiting, key=lambda name: (self._served[name], self._waiting[name][0].id))
        return self._hand_out(min(self._waiting[client], key=self._rank_of))

    def take_below(self, limit: float) -> Job | None:
        """The job of smallest rank, whoever's it is, if that is below `limit`."""
        jobs = [job for waiting in self._waiting.values() for job in waiting]
        first = min(jobs, key=self._rank_of, default=None)
        return self._hand_out(first) if first is not None and self._rank_of(first) < limit else None

    def _level(self, newcomer: str) -> None:
        """A client that had nothing waiting starts level with the one that has had least: idling saves nothing up."""
        least = min((self._served[client] for client in self._waiting if client != newcomer), default=0.0)
        ahead = {client: served for client, served in self._served.items() if served > least}
        level = dict.fromkeys(self._waiting, least)
        self._served = level | ahead if len(self._waiting) > 1 else level

    def _hand_out(self, job: Job) -> Job:
        self._served[job.client] += self._cost_of(job)
        self._remove(job)
        return job

    def _remove(self, job: Job) -> None:
        waiting = self._waiting[job.client]
        waiting.remove(job)
        if not waiting:
            del self._waiting[job.client]
