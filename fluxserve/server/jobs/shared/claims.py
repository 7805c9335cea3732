"""Who may draw what a key stands for: claims in a store that several servers have, with a lease.

The claims of a key are numbered. One is created only where there is none, so that of any who try one server has it;
the last counts. Its holder writes it anew every few seconds. One that stays the same for the length of a lease, by the
clock of who looks, lost its holder: whoever creates the next goes on with its seeds.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Literal, NamedTuple

from fluxserve.server.jobs.shared.objects import ObjectStorage, Status

LEASE_S, BEAT_S = 15.0, 4.0
_FOLDER = "claims"
_MOST_WATCHED = 10_000


def _token() -> str:
    return secrets.token_hex(16)


@dataclass(frozen=True)
class ClaimRecord:
    """One claim as it is written.

    holder: the attempt that created it. generation: names the one answer that all claims of a key work towards, until
    that has expired or is lost. free: its holder gave it up. expires_at: of the answer, Unix time, s. error: why it
    was given up, as code and message.
    """

    client: str
    fingerprint: str
    seeds: tuple[int, ...]
    generation: str = field(default_factory=_token)
    holder: str = field(default_factory=_token)
    beat: int = 0
    state: Literal["drawing", "answered", "free"] = "drawing"
    expires_at: float = 0.0
    error: tuple[str, str] | None = None

    def has_expired(self, now: float) -> bool:
        """Whether its answer has. now: Unix time, s."""
        return self.state == "answered" and self.expires_at <= now


class Numbered(NamedTuple):
    """A claim and where it lies. name: of the key."""

    name: str
    number: int
    record: ClaimRecord


class Claims:
    """The claims of one store. clock: monotonic, s."""

    def __init__(self, objects: ObjectStorage, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects = objects
        self._clock = clock
        self._seen: OrderedDict[tuple[str, int], tuple[str, int, float]] = OrderedDict()

    async def last(self, name: str) -> Numbered | None:
        """The key's claim that counts. Raises StoreUnavailable."""
        numbers = [_number(status) for status in await self._objects.list(f"{_FOLDER}/{name}")]
        if not numbers:
            return None
        found = await self._objects.get(_path(name, max(numbers)))
        return Numbered(name, max(numbers), _read(found.data) if found else _DAMAGED)

    async def take(self, name: str, number: int, record: ClaimRecord) -> bool:
        """Creates a claim; whether no other server was first. Raises StoreUnavailable."""
        if await self._objects.create(_path(name, number), _written(record)):
            return True
        found = await self._objects.get(_path(name, number))
        return found is not None and _read(found.data).holder == record.holder  # written by a try of which none heard

    async def write(self, claim: Numbered) -> None:
        """Writes a claim anew. Raises StoreUnavailable."""
        await self._objects.put(_path(claim.name, claim.number), _written(claim.record))

    def lapsed(self, claim: Numbered) -> bool:
        """Whether a claim that is being drawn has lost its holder."""
        at, record, now = (claim.name, claim.number), claim.record, self._clock()
        holder, beat, since = self._seen.get(at, ("", 0, now))
        if (holder, beat) != (record.holder, record.beat):
            since = now
        self._seen[at] = (record.holder, record.beat, since)
        if len(self._seen) > _MOST_WATCHED:
            self._seen.popitem(last=False)
        return now - since >= LEASE_S

    async def sweep(self, older_than_s: float) -> None:
        """Deletes claims that nobody has written for so long."""
        for status in await self._objects.list(_FOLDER):
            name = status.path.split("/")[-2]
            if self._objects.wrote(name) and self._objects.age_s(status) > older_than_s:
                await self._objects.delete(status.path)


def _path(name: str, number: int) -> str:
    return f"{_FOLDER}/{name}/{number}"


def _number(status: Status) -> int:
    number = status.path.rpartition("/")[2]
    return int(number) if number.isdecimal() else 0


def _written(record: ClaimRecord) -> bytes:
    return json.dumps(asdict(record)).encode()


def _read(data: bytes) -> ClaimRecord:
    try:
        told = json.loads(data)
        return ClaimRecord(**{**told, "seeds": tuple(told["seeds"])})
    except (ValueError, TypeError, KeyError):
        return _DAMAGED


_DAMAGED = ClaimRecord("", "", (), state="free")
"""What stands in place of one that cannot be read: the next begins anew."""
