"""Encodes pixels as files in a thread of its own, beside the next denoise step, and sends them. Touches no device."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from time import perf_counter
from typing import TYPE_CHECKING, Generic

from fluxserve import wire
from fluxserve.worker.channel import Channel
from fluxserve.worker.failures import failed, log_failure
from fluxserve.worker.pipeline_protocol import Pipeline, S
from fluxserve.worker.task import Image, Task

if TYPE_CHECKING:
    from fluxserve.worker.pipeline_protocol import Pixels


AHEAD = 2


class ImageWriter(Generic[S]):
    """One thread, so a job's messages leave in the order they were asked for.

    Whoever asks for more than AHEAD pictures waits: what is drawn faster than it is written would pile up.
    """

    def __init__(self, pipeline: Pipeline[S], channel: Channel) -> None:
        self._pipeline = pipeline
        self._channel = channel
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="image writer")
        self._ahead = BoundedSemaphore(AHEAD)

    def preview(self, task: Task[S], image: Image[S], number: int, pixels: Pixels) -> None:
        """Sends preview `number` (from 0) of the image."""
        self._later(task, lambda: self._send_preview(task, image, number, pixels))

    def finish(self, task: Task[S], image: Image[S], pixels: Pixels) -> None:
        """Sends the finished image."""
        self._later(task, lambda: self._send_image(task, image, pixels))

    def close(self, task: Task[S], image: Image[S]) -> None:
        """After its last image: sends that the job is done."""
        self._later(task, lambda: self._channel.send(wire.Done(task.job_id, image.sample.timings(task.spent_ms))))

    def _later(self, task: Task[S], act: Callable[[], None]) -> None:
        self._ahead.acquire()
        self._thread.submit(self._guarded, task, act)

    def _guarded(self, task: Task[S], act: Callable[[], None]) -> None:
        try:
            if not task.dropped:
                act()
        except Exception as error:  # one job's failure must not end the thread that serves all
            log_failure(task.job_id, error)
            task.dropped = True
            self._channel.send(failed(task.job_id, error))
        finally:
            self._ahead.release()

    def _send_preview(self, task: Task[S], image: Image[S], number: int, pixels: Pixels) -> None:
        picture = self._pipeline.encode(pixels, image.sample)
        self._channel.send(wire.Previewed(task.job_id, number, picture))

    def _send_image(self, task: Task[S], image: Image[S], pixels: Pixels) -> None:
        start = perf_counter()
        picture = self._pipeline.encode(pixels, image.sample)
        seconds = perf_counter() - start
        for spent_ms in (task.spent_ms, image.spent_ms):
            spent_ms["encode_ms"] += seconds * 1000
        self._channel.send(wire.Measured("encode", picture.width * picture.height, seconds))
        self._channel.send(wire.Finished(task.job_id, picture, image.sample.timings(image.spent_ms)))
