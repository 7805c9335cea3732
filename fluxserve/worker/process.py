"""The life of the worker process: harden, load, warm up, serve. Knows no model: a loader makes the pipeline."""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from fluxserve import logs, wire
from fluxserve.errors import CheckpointError, FluxserveError, NonFiniteOutput
from fluxserve.exit_codes import REFUSALS, exit_code
from fluxserve.request import GenerationRequest
from fluxserve.scheduling import drawn_pixels
from fluxserve.worker.channel import Channel
from fluxserve.worker.loop import Loop
from fluxserve.worker.pipeline_protocol import Describer, Loader, Pipeline, ProgressCallback, S
from fluxserve.worker.stage_timer import StageTimer

log = logging.getLogger(__name__)

LOADING_MESSAGES_A_SECOND = 10
OOM_SCORE_ADJ = 500
PR_SET_PDEATHSIG = 1


def serve(load: Loader[S], describe: Describer) -> NoReturn:
    """The whole process. The first message says which: `load` makes a pipeline to serve, `describe` only tells."""
    channel = connect("worker")
    try:
        first = channel.inbox.get()
        if isinstance(first, wire.Describe):
            channel.send(wire.Described(*describe(first.config)))
            sys.exit(0)
        assert isinstance(first, wire.Load)
        run(load, channel, first)
    except FluxserveError as error:
        code = exit_code(error)
        if code not in REFUSALS:
            raise
        channel.send(wire.Unusable(code, error.message))
        sys.exit(code)


def connect(name: str) -> Channel:
    """The way to the front, for a process that it has started. name: in the log."""
    parser = argparse.ArgumentParser(description="A process of the server, which starts it.")
    parser.add_argument("--fd", type=int, required=True, help="the socket to the front")
    parser.add_argument("--parent", type=int, required=True, help="the front's process id")
    arguments = parser.parse_args()
    harden(arguments.parent)
    logs.configure(name)
    pipe = socket.socket(fileno=arguments.fd)
    pipe.set_inheritable(False)
    return Channel(pipe)


def run(load: Loader[S], channel: Channel, first: wire.Load) -> NoReturn:
    """Loads what the first message names, draws one small image, and serves."""
    if first.threads is not None:  # read by the libraries that compute when they are imported
        os.environ.setdefault("OMP_NUM_THREADS", str(first.threads))
    timer = StageTimer(channel)
    try:
        pipeline = load(first.config, _progress(channel), first.shared)
        warm_up(pipeline, timer)
    except NonFiniteOutput as error:
        raise CheckpointError(error.message) from error  # not one seed's misfortune: these weights draw nothing
    channel.send(wire.Ready(pipeline.card, pipeline.max_batch))
    Loop(pipeline, channel, timer, first.ageing).run()


def warm_up(pipeline: Pipeline[S], timer: StageTimer) -> None:
    """One small image: proves that pictures are finite, and measures each stage for a first guess at other sizes.

    Raises:
        NonFiniteOutput: the picture is not finite.
    """
    card = pipeline.card
    request = GenerationRequest("", 64, 64, (0,), 1, card.guidance_scale, card.max_sequence_length)
    pixels = drawn_pixels(request, card)

    def cancellation() -> None:
        timer.beat("warm_up", pixels)

    with timer.run("text", pixels):
        samples = pipeline.begin(request, cancellation)
    with timer.run("denoise", pixels):
        pipeline.step(samples)
    with timer.run("vae", pixels):
        pipeline.decode(samples[0], cancellation)


def harden(parent: int) -> None:
    """Dies with the front, before the front, and by no signal meant for the front."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with suppress(OSError):  # a read-only /proc: the kernel then picks its victim by size alone
            Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    if os.getppid() != parent:  # it died before the kernel was told to watch it
        os._exit(0)


def _progress(channel: Channel) -> ProgressCallback:
    """Sends every new stage and every end, and what lies between a few times a second."""
    last = ("", 0.0)

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if stage != last[0] or done >= total or now - last[1] > 1 / LOADING_MESSAGES_A_SECOND:
            last = (stage, now)
            channel.send(wire.Loading(stage, done, total))

    return progress
