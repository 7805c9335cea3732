"""The worker's main loop: take messages, pick a job, do its next piece of work, report. Knows no model and no device.

A piece is one `begin`, one denoise step of a batch, one preview or one decode; between two pieces anything may change:
jobs arrive, are dropped, overtake each other. What goes wrong in a piece fails its job, never the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Generic, NoReturn

from fluxserve import wire
from fluxserve.errors import Cancelled, DeviceError
from fluxserve.exit_codes import DEVICE_LOST
from fluxserve.scheduling import Stage, drawn_pixels
from fluxserve.worker.channel import Channel
from fluxserve.worker.failures import device_lost, failed, log_failure, out_of_memory
from fluxserve.worker.image_writer import ImageWriter
from fluxserve.worker.pipeline_protocol import CancellationCallback, Pipeline, S
from fluxserve.worker.scheduler import batch, next_task
from fluxserve.worker.stage_timer import StageTimer
from fluxserve.worker.task import Image, Task

IDLE_BEAT_S = 1.0

Batch = Sequence[tuple[Task[S], Image[S]]]


class Loop(Generic[S]):
    """Owns the pipeline. ageing: see `scheduling.rank`."""

    def __init__(self, pipeline: Pipeline[S], channel: Channel, timer: StageTimer, ageing: float) -> None:
        self._pipeline = pipeline
        self._channel = channel
        self._timer = timer
        self._ageing = ageing
        self._writer = ImageWriter(pipeline, channel)
        self._tasks: list[Task[S]] = []

    def run(self) -> NoReturn:
        """For ever: the channel ends the process when the front is gone."""
        while True:
            if not self._tasks:
                self._timer.beat("idle", 0)
            self._take_messages(wait_s=0 if self._tasks else IDLE_BEAT_S)
            if self._tasks:
                task = next_task(self._tasks, self._timer.costs, self._ageing, time.monotonic())
                with self._answering(task):
                    self._advance(task)

    def _take_messages(self, wait_s: float = 0) -> None:
        message = self._channel.receive(wait_s)
        while message is not None:
            if isinstance(message, wire.Submit):
                self._admit(message)
            elif isinstance(message, wire.Cancel):
                self._drop(message.job_id)
            message = self._channel.receive(0)
        self._tasks = [task for task in self._tasks if not task.dropped]

    def _admit(self, message: wire.Submit) -> None:
        pixels = drawn_pixels(message.request, self._pipeline.card)
        self._tasks.append(Task(message.job_id, message.request, pixels, time.monotonic() - message.waited_s))

    def _drop(self, job_id: int) -> None:
        for task in self._tasks:
            if task.job_id == job_id:
                task.dropped = True

    @contextmanager
    def _answering(self, task: Task[S]) -> Iterator[None]:
        """Whatever goes wrong inside becomes the job's answer."""
        try:
            yield
        except Cancelled:
            task.dropped = True
        except Exception as error:  # one job's failure, whatever it is, must not take the others along
            if not self._made_room(task, error):
                self._fail(task, error)

    def _made_room(self, task: Task[S], error: Exception) -> bool:
        """Once a job, running out of memory is answered by a smaller plan; then it goes on where it was."""
        if task.replanned or not out_of_memory(error):
            return False
        task.replanned = True
        try:
            self._pipeline.replan(lambda: self._timer.beat("warm_up", task.pixels))
        except DeviceError:
            return False
        return True

    def _fail(self, task: Task[S], error: Exception) -> None:
        log_failure(task.job_id, error)
        if device_lost(error):
            os._exit(DEVICE_LOST)
        task.dropped = True
        self._channel.send(failed(task.job_id, error))

    def _advance(self, task: Task[S]) -> None:
        """One piece of work for the job."""
        images = task.images
        if images is None:
            self._begin(task)
        elif image := next((image for image in images if image.sample.done), None):
            self._decode(task, images, image)
        elif image := next((image for image in images if image.preview_due), None):
            self._preview(task, image)
        else:
            self._step(batch(task, self._tasks, self._pipeline.most_together(images[0].sample)))

    def _begin(self, task: Task[S]) -> None:
        self._channel.send(wire.Began(task.job_id))
        with self._timer.run("text", task.pixels), task.spending("text_ms"):
            samples = self._pipeline.begin(task.request, self._cancellation(task, "text"))
        task.begin_with(samples)
        self._channel.send(wire.Prepared(task.job_id, *self._pipeline.text_usage(samples)))

    def _step(self, steppable: Batch[S]) -> None:
        """A batch that fails is tried again one by one, so that only the job at fault is answered with the failure."""
        try:
            self._step_together(steppable)
        except Exception as error:  # any failure of a batch; a job's own failure is met again below, or by the caller
            if len(steppable) == 1 or device_lost(error):
                raise
            for task, image in steppable:
                if not task.dropped:
                    with self._answering(task):
                        self._step_together([(task, image)])

    def _step_together(self, steppable: Batch[S]) -> None:
        with self._timer.run("denoise", sum(task.pixels for task, _ in steppable)), ExitStack() as clocks:
            for task in {task for task, _ in steppable}:
                clocks.enter_context(task.spending("denoise_ms", *(image for t, image in steppable if t is task)))
            self._pipeline.step([image.sample for _, image in steppable])
        for task, image in steppable:
            sample = image.sample
            self._channel.send(wire.Stepped(task.job_id, sample.index, sample.step, sample.steps))

    def _preview(self, task: Task[S], image: Image[S]) -> None:
        with self._timer.run("preview", task.pixels), task.spending("decode_ms", image):
            pixels = self._pipeline.preview(image.sample, self._cancellation(task, "preview"))
        image.previews.pop(0)
        self._writer.preview(task, image, image.sent_previews, pixels)
        image.sent_previews += 1

    def _decode(self, task: Task[S], images: list[Image[S]], image: Image[S]) -> None:
        with self._timer.run("vae", task.pixels), task.spending("decode_ms", image):
            pixels = self._pipeline.decode(image.sample, self._cancellation(task, "vae"))
        self._writer.finish(task, image, pixels)
        images.remove(image)
        if not images:
            self._tasks.remove(task)
            self._writer.close(task, image)

    def _cancellation(self, task: Task[S], stage: Stage) -> CancellationCallback:
        """For the inside of long methods: beats, and ends the method when nobody wants its result any more."""

        def cancellation() -> None:
            self._timer.beat(stage, task.pixels)
            self._take_messages()
            if task.dropped:
                raise Cancelled("dropped")

        return cancellation
