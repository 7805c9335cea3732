"""Turns by client at what there are few of: nobody's requests hold all of it, or fill the room where others wait."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fluxserve.errors import QueueFull

_MOST_CLIENTS = 1_000

T = TypeVar("T")


@dataclass(frozen=True)
class Room:
    """Where requests wait. requests, size: how many, and of how many bytes; half is for others than one client.

    wait_s: the longest that one waits. full: what is said where there is no room.
    """

    requests: int
    size: int
    wait_s: float
    full: str


@dataclass(eq=False)
class _Waiting(Generic[T]):
    client: str
    size: int
    turn: asyncio.Future[T]


class Turns(Generic[T]):
    """Hands each thing to one request at a time. Who holds fewest goes first, then who was served longest ago.

    A quarter of the things is kept for clients that hold none; in a full room who waits with most gives up the newest
    place to who waits with less. each: the most that one client holds. Belongs to one event loop.
    """

    def __init__(self, things: Sequence[T], each: int, room: Room) -> None:
        self._idle = list(things)
        self._kept = len(things) // 4
        self._each = each
        self._room = room
        self._waiting: list[_Waiting[T]] = []
        self._held: Counter[str] = Counter()
        self._taken_at: dict[int, float] = {}
        self._served_at: OrderedDict[str, float] = OrderedDict()
        self._mean_s = 0.5

    async def take(self, client: str, size: int = 0) -> T:
        """One of the things, to be given back. size: bytes of what the request holds as it waits.

        Raises:
            QueueFull: too many are waiting, or it was not its turn for too long.
        """
        self._admit(client, size)
        waiting = _Waiting[T](client, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._hand_out()
        try:
            async with asyncio.timeout(self._room.wait_s):
                return await asyncio.shield(waiting.turn)
        except BaseException as error:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.turn.exception() is None:  # it came in the moment it was given up
                self.give_back(waiting.turn.result(), client)
            if isinstance(error, TimeoutError):
                raise self._full() from None
            raise

    def give_back(self, thing: T, client: str) -> None:
        """The client's request is done with it."""
        now = time.monotonic()
        self._mean_s += 0.1 * (now - self._taken_at.pop(id(thing), now) - self._mean_s)
        self._idle.append(thing)
        self._held[client] -= 1
        self._held += Counter()  # forgets who holds nothing
        self._served_at[client] = now
        self._served_at.move_to_end(client)
        if len(self._served_at) > _MOST_CLIENTS:
            self._served_at.popitem(last=False)
        self._hand_out()

    def _admit(self, client: str, size: int) -> None:
        mine = [waiting for waiting in self._waiting if waiting.client == client]
        for those, share in ((self._waiting, 1.0), (mine, 0.5)):
            if those and sum(waiting.size for waiting in those) + size > share * self._room.size:
                raise self._full()  # nobody gives way to bytes: one large request would cost others many small ones
        if len(mine) >= 0.5 * self._room.requests:
            raise self._full()
        if len(self._waiting) >= self._room.requests:
            self._give_way(client)

    def _give_way(self, client: str) -> None:
        """The client who waits with most requests loses the newest of them to this one, who waits with two fewer."""
        places = Counter(waiting.client for waiting in self._waiting)
        greediest, most = places.most_common(1)[0]
        if most < places[client] + 2:
            raise self._full()
        newest = [waiting for waiting in self._waiting if waiting.client == greediest][-1]
        self._waiting.remove(newest)
        newest.turn.set_exception(self._full())

    def _full(self) -> QueueFull:
        return QueueFull(self._room.full, retry_after_s=max(1.0, len(self._waiting) * self._mean_s))

    def _hand_out(self) -> None:
        while self._idle:
            most = self._each if len(self._idle) > self._kept else 1
            free = [waiting for waiting in self._waiting if self._held[waiting.client] < most]
            if not free:
                return
            chosen = min(free, key=lambda each: (self._held[each.client], self._served_at.get(each.client, 0.0)))
            self._waiting.remove(chosen)
            self._held[chosen.client] += 1
            thing = self._idle.pop()
            self._taken_at[id(thing)] = time.monotonic()
            chosen.turn.set_result(thing)
