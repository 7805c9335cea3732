"""One admitted request: what has happened to it, who waits for it, and its parts. Knows no queue, pipe or HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

from fluxserve.engine.events import CompletedImage, EventLog, JobEvent, JobResult, PartialImage
from fluxserve.engine.progress import JobClock, JobProgress
from fluxserve.errors import Cancelled, FluxserveError
from fluxserve.request import GeneratedImage, GenerationRequest, Progress, Timings
from fluxserve.scheduling import RemainingWork


class Job:
    """An accepted request. It starts with one waiter; when the last waiter leaves, it is cancelled.

    Belongs to the event loop it was made in: no method is thread-safe.

    id: counts up from 1 in one engine. client: whose share of the queue it takes. digest: names the request's body.
    attempts: worker deaths that it was part of. alone: it was in a worker that died, so nothing runs beside it.
    """

    def __init__(
        self,
        id: int,
        request: GenerationRequest,
        *,
        client: str,
        pixels: int,
        digest: str | None,
        on_end: Callable[[Job], None],
    ) -> None:
        self.id = id
        self.request = request
        self.client = client
        self.digest = digest
        self.attempts = 0
        self.alone = False
        self.clock = JobClock()
        self.progress = JobProgress(request, pixels)
        self._events = EventLog()
        self._waiters = 1
        self._timers: list[asyncio.TimerHandle] = []
        self._on_end = on_end
        self._outcome: JobResult | FluxserveError | None = None

    @property
    def done(self) -> bool:
        """Finished, failed or cancelled: nothing more will happen to it."""
        return self._outcome is not None

    @property
    def error(self) -> FluxserveError | None:
        """Why it failed; None while it runs and when it succeeded."""
        return self._outcome if isinstance(self._outcome, FluxserveError) else None

    @property
    def timings(self) -> Timings | None:
        """Where its time went; None unless it succeeded."""
        return self._outcome.timings if isinstance(self._outcome, JobResult) else None

    @property
    def queued(self) -> bool:
        """No worker has begun it yet."""
        return self.clock.began_at is None and not self.done

    async def result(self) -> JobResult:
        """Waits for the end.

        Raises:
            GenerationFailed: it could not be finished; Cancelled and DeadlineExceeded are two of its kinds.
            InvalidRequest: the pipeline found the request impossible (an input picture that cannot be read).
            Refused: the server went down before the job was done (ShuttingDown, WorkerUnavailable).
        """
        await self._events.closed.wait()
        assert self._outcome is not None
        if isinstance(self._outcome, FluxserveError):
            raise self._outcome
        return self._outcome

    async def events(self) -> AsyncIterator[JobEvent]:
        """Everything that has happened, then everything that happens, ending with the JobResult.

        Any number of readers may iterate, each from the start. A preview or a finished image comes once, whatever
        happens to the worker; old previews do not come to a reader that is behind (see `EventLog`). Progress starts
        anew after a worker's death. Raises as `result` does.
        """
        async for event in self._events.read():
            yield event
        await self.result()

    def join(self) -> None:
        """One more waiter: a retry that takes the job over, a holder that keeps it alive for a while."""
        self._waiters += 1

    def leave(self) -> None:
        """One waiter less, whether or not the job is done. Without waiters an unfinished job is cancelled."""
        self._waiters -= 1
        if self._waiters == 0:
            self.cancel()

    def cancel(self) -> None:
        """Ends it now with `Cancelled`; the worker drops it at its next boundary. Does nothing once it is done."""
        self.fail(Cancelled("the request was cancelled"))

    def fail(self, error: FluxserveError) -> None:
        """Ends it with `error`; does nothing once it is done."""
        if not self.done:
            self._end(error)

    # The engine's side: what happens to the job.

    def fail_after(self, seconds: float, error: FluxserveError) -> None:
        """Fails it with `error` unless it is done by then."""
        self._timers.append(asyncio.get_running_loop().call_later(seconds, self.fail, error))

    def began(self) -> None:
        """The worker has taken it up."""
        self.clock.begin()

    def prepared(self, text_tokens: int, truncated_from: int | None) -> None:
        """Its prompt is encoded."""
        self.progress.prepare(text_tokens, truncated_from)

    def stepped(self, progress: Progress) -> None:
        self.progress.step(progress)
        self._events.append(progress)

    def previewed(self, partial: PartialImage) -> None:
        """A preview; one that a rerun repeats is dropped."""
        if self.progress.preview(partial):
            self._events.append(partial)

    def completed(self, image: GeneratedImage, timings: Timings) -> None:
        """One image is here."""
        self.progress.complete(image)
        self._events.append(CompletedImage(image, self.clock.stamp(timings)))

    def restart(self, places: Iterable[int]) -> None:
        """A worker is lost: what it had not finished of these images begins again."""
        self.alone = True
        self.progress.restart(places)

    def finish(self, timings: Timings) -> None:
        """The job is done; every image has been given to `completed` before."""
        progress = self.progress
        result = JobResult(progress.images, self.clock.stamp(timings), progress.text_tokens, progress.truncated_from)
        self._events.append(result)
        self._end(result)

    def _end(self, outcome: JobResult | FluxserveError) -> None:
        self._outcome = outcome
        for timer in self._timers:
            timer.cancel()
        self._events.close()
        self._on_end(self)


@dataclass(eq=False)
class Part:
    """Images of a job that one worker draws, on their way through the queue and the worker.

    places: where their seeds stand in the request. began: a worker has taken it up. prepared: the prompt is encoded
    there.
    """

    job: Job
    places: tuple[int, ...]
    began: bool = False
    prepared: bool = False

    @property
    def client(self) -> str:
        return self.job.client

    @property
    def work(self) -> int:
        """Pixel-steps of its images; see `GenerationRequest.work`."""
        request = self.job.request
        return request.work * len(self.places) // len(request.seeds)

    @property
    def missing(self) -> tuple[int, ...]:
        """Those of its places whose images have not arrived."""
        still = set(self.job.progress.missing())
        return tuple(place for place in self.places if place in still)

    def remaining_work(self) -> RemainingWork:
        return self.job.progress.remaining_work(self.places, self.prepared)

    def restart(self) -> None:
        """Its worker is lost."""
        self.job.attempts += self.began
        self.job.restart(self.places)
        self.began = self.prepared = False


def parts_of(job: Job, workers: int) -> list[Part]:
    """The job's images as parts that differ by one image at most, one for each of `workers` if there are enough."""
    places = job.progress.missing()
    count = max(1, min(workers, len(places)))
    bounds = [len(places) * i // count for i in range(count + 1)]
    return [Part(job, places[begin:end]) for begin, end in pairwise(bounds)]
