"""How many threads a model computes with on a CPU: a small one loses more by waiting for them than they save."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from fluxserve.request import GenerationRequest

if TYPE_CHECKING:
    from fluxserve.pipeline.pipeline import FluxPipeline

log = logging.getLogger(__name__)

QUICK_S = 0.25
"""A model that takes longer for one step and its picture is large: all threads pay, and measuring would take long."""
_REPEATS = 3
_EQUAL = 1.1
_SMALLEST_SIDE = 64


def settle_threads(pipeline: FluxPipeline) -> None:
    """Sets the number of threads of this process, on a CPU. OMP_NUM_THREADS, where it is set, is left as it is."""
    most = torch.get_num_threads()
    if pipeline.device.type != "cpu" or most == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    side, own = _SMALLEST_SIDE, pipeline.card.default_width
    while (seconds := _drawing_s(pipeline, side)) < QUICK_S and side < own:
        side = min(2 * side, own)
    if seconds < QUICK_S:
        threads = fewest_threads(partial(_drawing_s, pipeline, side), most)
        torch.set_num_threads(threads)
        log.info("%d of %d threads", threads, most)


def fewest_threads(time: Callable[[], float], most: int) -> int:
    """The smallest of 1, 2, 4 ... `most` with which `time` tells about the fewest seconds."""
    counts = sorted({most, *(2**power for power in range(most.bit_length()))})
    seconds = dict.fromkeys(counts, float("inf"))
    try:
        for _ in range(_REPEATS):
            for count in counts:
                torch.set_num_threads(count)
                seconds[count] = min(seconds[count], time())
    finally:
        torch.set_num_threads(most)
    best = min(seconds.values())
    return next(count for count in counts if seconds[count] <= _EQUAL * best)


def _drawing_s(pipeline: FluxPipeline, side: int) -> float:
    """Seconds of one step of one picture, and the picture."""
    began = perf_counter()
    card = pipeline.card
    request = GenerationRequest("", side, side, (0,), 1, card.guidance_scale, card.max_sequence_length)
    samples = pipeline.begin(request)
    pipeline.step(samples)
    pipeline.decode(samples[0])
    return perf_counter() - began
