"""What first come, first served would have given each request of a pool, from what was recorded as it came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Served:
    """One answered request. arrived, began, answered: monotonic seconds.

    loaded: when it came, for each model that was loaded or loading, the seconds until it was ready.
    """

    model: str
    images: int
    arrived: float
    began: float
    answered: float
    loaded: Mapping[str, float]

    def left_s(self, image_s: float, moment: float) -> float:
        """Of each image at that moment, if one takes a worker so long."""
        return max(image_s - max(moment - self.began, 0.0) / self.images, 0.0)


@dataclass(frozen=True)
class Pool:
    """models: how many are loaded together. workers: of each. load_s, image_s: how long a load takes, or a restart, and
    one image.
    """

    models: int
    workers: int
    load_s: float
    image_s: float


def ratios(served: Iterable[Served], pool: Pool, kills: Sequence[float]) -> list[float]:
    """The time each took, in what it would have been. kills: when workers were killed, which costs either a restart."""
    found, open_ones = [], list[Served]()
    for one in sorted(served, key=lambda one: one.arrived):
        open_ones = [other for other in open_ones if other.answered > one.arrived]
        killed = sum(one.arrived <= moment <= one.answered for moment in kills)
        due_s = first_come_s(one, open_ones, pool) + killed * (pool.load_s + pool.image_s)
        found.append((one.answered - one.arrived) / due_s)
        open_ones.append(one)
    return found


def first_come_s(one: Served, ahead: Sequence[Served], pool: Pool) -> float:
    """Until `one` is answered, if all that was open when it came is begun in the order of coming and nothing passes it.

    A model that has to be loaded takes the place of the one that is done first.
    """
    free = {model: [ready_s] * pool.workers for model, ready_s in one.loaded.items()}
    begun = ended = 0.0
    for request in (*ahead, one):
        if request.model not in free:
            given_up = 0.0
            if len(free) >= pool.models:
                given_up = max(free.pop(min(free, key=lambda model: max(free[model]))))
            free[request.model] = [max(given_up, begun) + pool.load_s] * pool.workers
        begun = max(min(free[request.model]), begun)
        for _ in range(request.images):
            workers = free[request.model]
            worker = workers.index(min(workers))
            workers[worker] = ended = max(workers[worker], begun) + request.left_s(pool.image_s, one.arrived)
    return ended
