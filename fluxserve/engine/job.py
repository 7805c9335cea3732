"""One admitted request: what has happened to it, and who waits for it. Knows nothing of queues, pipes or HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace

from fluxserve.errors import Cancelled, FluxserveError
from fluxserve.request import GeneratedImage, GenerationRequest, Progress, Timings
from fluxserve.scheduling import RemainingWork


@dataclass(frozen=True)
class PartialImage:
    """Image `index` as it is predicted on its way. partial_index: from 0, counted for each image."""

    index: int
    partial_index: int
    image: GeneratedImage


@dataclass(frozen=True)
class CompletedImage:
    """One finished image of the job. timings: this image's; queue_ms and total_ms count from the job's submission."""

    image: GeneratedImage
    timings: Timings


@dataclass(frozen=True)
class JobResult:
    """All that a finished job made.

    images: in the order of the request's seeds. truncated_from: the tokens the prompt had when it was longer than
    `max_sequence_length`, else None.
    """

    images: tuple[GeneratedImage, ...]
    timings: Timings
    text_tokens: int
    truncated_from: int | None


JobEvent = Progress | PartialImage | CompletedImage | JobResult


class Job:
    """An accepted request. It starts with one waiter; when the last waiter leaves, it is cancelled.

    Belongs to the event loop it was made in: no method is thread-safe.

    id: counts up from 1 in one engine. client: whose share of the queue it takes. pixels: of one pass over one image.
    text_tokens, truncated_from: known from the first step on (before: 0, None). attempts: worker deaths that it was
    part of. alone: it was in a worker that died, so nothing runs beside it. digest: names the request's body.
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
        self.pixels = pixels
        self.digest = digest
        self.attempts = 0
        self.alone = False
        self.text_tokens = 0
        self.truncated_from: int | None = None
        self.submitted_at = time.monotonic()
        self.began_at: float | None = None
        self._prepared = False
        self._images: dict[int, GeneratedImage] = {}
        self._steps_left = dict.fromkeys(range(len(request.seeds)), request.num_inference_steps)
        self._partials: set[tuple[int, int]] = set()
        self._waiters = 1
        self._on_end = on_end
        self._limits: list[asyncio.TimerHandle] = []
        self._events: list[JobEvent] = []
        self._changed = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: FluxserveError | None = None
        self._result: JobResult | None = None

    @property
    def done(self) -> bool:
        """Finished, failed or cancelled: nothing more will happen to it."""
        return self._ended.is_set()

    @property
    def error(self) -> FluxserveError | None:
        """Why it failed; None while it runs and when it succeeded."""
        return self._error

    @property
    def timings(self) -> Timings | None:
        """Where its time went; None unless it succeeded."""
        return None if self._result is None else self._result.timings

    @property
    def queued(self) -> bool:
        """The worker has not begun it yet."""
        return self.began_at is None and not self.done

    async def result(self) -> JobResult:
        """Waits for the end.

        Raises:
            GenerationFailed: it could not be finished; Cancelled and DeadlineExceeded are two of its kinds.
            InvalidRequest: the pipeline found the request impossible (an input picture that cannot be read).
            Refused: the server went down before the job was done (ShuttingDown, WorkerUnavailable).
        """
        await self._ended.wait()
        return self._outcome()

    async def events(self) -> AsyncIterator[JobEvent]:
        """Everything that has happened, then everything that happens, ending with the JobResult.

        Any number of readers may iterate, each from the start. A preview or a finished image comes once, whatever
        happens to the worker; progress starts anew after a worker's death. Raises as `result` does.
        """
        position = 0
        while True:
            changed = self._changed
            while position < len(self._events):
                yield self._events[position]
                position += 1
            if self.done:
                self._outcome()
                return
            await changed.wait()

    def join(self) -> None:
        """One more waiter: a retry that adopts the job, a holder that keeps it alive for a while."""
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
            self._error = error
            self._end()

    # The engine's side: what happens to the job.

    def limit(self, seconds: float, error: FluxserveError) -> None:
        """Fails it with `error` unless it is done by then."""
        self._limits.append(asyncio.get_running_loop().call_later(seconds, self.fail, error))

    def remaining_work(self) -> RemainingWork:
        """What is left of it, for the scheduler."""
        return RemainingWork(self.pixels, self._prepared, tuple(self._steps_left.values()))

    def missing(self) -> tuple[int, ...]:
        """The places in the request whose images have not arrived."""
        return tuple(self._steps_left)

    def began(self) -> None:
        """The worker has taken it up; only the first time ends the queue wait."""
        if self.began_at is None:
            self.began_at = time.monotonic()

    def prepared(self, text_tokens: int, truncated_from: int | None) -> None:
        self._prepared = True
        self.text_tokens, self.truncated_from = text_tokens, truncated_from

    def start_over(self) -> None:
        """Its worker is lost: what is not finished begins again."""
        self.alone = True
        self._prepared = False
        self._steps_left = dict.fromkeys(self._steps_left, self.request.num_inference_steps)

    def progress(self, progress: Progress) -> None:
        self._steps_left[progress.index] = progress.steps - progress.step
        self._emit(progress)

    def partial(self, partial: PartialImage) -> None:
        """A preview; one that a rerun repeats is dropped."""
        key = (partial.index, partial.partial_index)
        if key not in self._partials:
            self._partials.add(key)
            self._emit(partial)

    def completed(self, image: GeneratedImage, timings: Timings) -> None:
        """One image is here."""
        self._images[image.index] = image
        del self._steps_left[image.index]
        self._emit(CompletedImage(image, self._clocked(timings)))

    def finish(self, timings: Timings) -> None:
        """The job is done; every image has been given to `completed` before."""
        images = tuple(self._images[index] for index in range(len(self.request.seeds)))
        self._result = JobResult(images, self._clocked(timings), self.text_tokens, self.truncated_from)
        self._events.append(self._result)
        self._end()

    def _clocked(self, timings: Timings) -> Timings:
        now = time.monotonic()
        queue_s = (self.began_at or now) - self.submitted_at
        return replace(timings, queue_ms=queue_s * 1000, total_ms=(now - self.submitted_at) * 1000)

    def _outcome(self) -> JobResult:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result

    def _emit(self, event: JobEvent) -> None:
        self._events.append(event)
        self._wake()

    def _end(self) -> None:
        for limit in self._limits:
            limit.cancel()
        self._ended.set()
        self._wake()
        self._on_end(self)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
