"""Which job goes on at a step boundary, and which images step with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fluxserve.scheduling import CostModel, rank
from fluxserve.worker.pipeline_protocol import S
from fluxserve.worker.task import Image, Task


def next_task(tasks: Sequence[Task[S]], costs: CostModel, ageing: float, now: float) -> Task[S]:
    """Shortest remaining first, with ageing; ties by arrival. tasks: at least one, in order of arrival."""

    def rank_of(task: Task[S]) -> float:
        waited_s = now - task.since - task.served_s
        return rank(costs.remaining_s(task.remaining_work()), waited_s, ageing)

    return min(tasks, key=rank_of)


def batch(first: Task[S], tasks: Sequence[Task[S]], max_batch: int) -> list[tuple[Task[S], Image[S]]]:
    """Up to max_batch images that can step together: those of `first`, furthest on first, then of the other jobs."""
    others = [task for task in tasks if task is not first]
    candidates = [(task, image) for task in (first, *others) for image in _steppable(task)]
    key = candidates[0][1].sample.batch_key
    return [(task, image) for task, image in candidates if image.sample.batch_key == key][:max_batch]


def _steppable(task: Task[S]) -> Iterator[Image[S]]:
    """The images that want a step now, not a preview or a decode."""
    waiting = (image for image in task.images or () if not image.sample.done and not image.preview_due)
    return iter(sorted(waiting, key=lambda image: -image.sample.step))
