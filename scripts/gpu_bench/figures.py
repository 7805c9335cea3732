"""What is measured of one pipeline: times, memory, what was copied, where the time of a step goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_bench.models import PROMPT, Subject
from gpu_bench.report import seconds, synchronise
from torch import Tensor

from fluxserve.models.family import BlockLayout
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.placement.plan import GIB

PROFILED_KERNELS = 15


def of_pipeline(subject: Subject, pipeline: FluxPipeline, pictures: int = 3) -> dict[str, Any]:
    """One step of one image and of two where they fit, whole pictures of fresh prompts and of one prompt, memory."""
    device = subject.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    placement = pipeline.card.placement
    figures = {
        "step_s": step_s(subject, pipeline, 1),
        "step_of_2_s": step_s(subject, pipeline, 2) if pipeline.card.max_batch > 1 else None,
        "image_s": picture_s(subject, pipeline, pictures),
        "image_known_prompt_s": seconds(device, lambda: pipeline.run(subject.request(pipeline)), pictures, 1),
        "expected_step_s": round(placement.step_s, 4) if placement else None,
        "stages_ms": stages_ms(subject, pipeline),
    }
    return figures | memory(pipeline)


def memory(pipeline: FluxPipeline) -> dict[str, Any]:
    """What the plan says beside what the device's allocator counted."""
    plan = pipeline.plan
    figures: dict[str, Any] = {
        "plan_peak_gib": round(plan.peak_bytes / GIB, 2),
        "streamed_gb": round(plan.streamed_bytes / 1e9, 3),
        "blocks": f"{len(plan.resident)} resident, {len(plan.streamed)} streamed",
        "text_encoder": plan.text_encoder,
        "tiled": plan.tiled,
    }
    if pipeline.device.type == "cuda":
        figures["allocated_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
        figures["reserved_gib"] = round(torch.cuda.max_memory_reserved() / GIB, 2)
    return figures


def step_s(subject: Subject, pipeline: FluxPipeline, n: int, repeats: int = 5) -> float:
    """One step of n samples, again and again from the same state."""
    samples = pipeline.begin(subject.request(pipeline, n))
    starts = [sample.latents for sample in samples]

    def step() -> None:
        for sample, start in zip(samples, starts, strict=True):
            sample.step, sample.latents = 0, start
        pipeline.step(samples)

    return seconds(subject.device, step, repeats)


def picture_s(subject: Subject, pipeline: FluxPipeline, repeats: int) -> float:
    """A whole picture, PNG included, of a prompt that is not in the cache."""
    prompts = (f"{PROMPT} {time.perf_counter_ns()}" for _ in range(repeats + 1))
    return seconds(
        subject.device, lambda: pipeline.run(subject.request(pipeline, prompt=next(prompts))), repeats, warm_ups=1
    )


def stages_ms(subject: Subject, pipeline: FluxPipeline) -> dict[str, float]:
    """Of one picture of a fresh prompt, with the device awaited after each verb."""
    spent: dict[str, float] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = action()
        synchronise(subject.device)
        spent[name] = round(spent.get(name, 0) + (time.perf_counter() - started) * 1000, 2)
        return result

    request = subject.request(pipeline, prompt=f"{PROMPT} {time.perf_counter_ns()}")
    (sample,) = timed("begin", lambda: pipeline.begin(request))
    timed("begin_known_prompt", lambda: pipeline.begin(request))
    while not sample.done:
        timed("steps", lambda: pipeline.step([sample]))
    pixels = timed("decode", lambda: pipeline.decode(sample))
    timed("encode_png", lambda: pipeline.encode(pixels, sample))
    return spent


def idle_ms(subject: Subject, pipeline: FluxPipeline, layout: BlockLayout) -> float:
    """G6: how long the GPU has nothing to do between a picture's pixels and the next one's first block."""
    blocks = [b for p in layout.prefixes for b in pipeline.networks.model.denoiser.get_submodule(p[:-1]).children()]
    first = torch.cuda.Event(enable_timing=True)
    last = torch.cuda.Event(enable_timing=True)
    gaps = []
    for picture in range(6):
        (sample,) = pipeline.begin(subject.request(pipeline))
        hook = blocks[0].register_forward_pre_hook(lambda *_: first.record())
        pipeline.step([sample])
        hook.remove()
        while not sample.done:
            pipeline.step([sample])
        synchronise(subject.device)
        if picture > 0:
            gaps.append(last.elapsed_time(first))
        pipeline.decode(sample)
        last.record()
    return round(statistics.median(gaps), 2)


def kernels(subject: Subject, pipeline: FluxPipeline) -> dict[str, Any]:
    """Where one step's time on the GPU goes: the longest kernels in ms, and the time with no kernel at all."""
    (sample,) = pipeline.begin(subject.request(pipeline))
    pipeline.step([sample])
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    synchronise(subject.device)
    with torch.profiler.profile(activities=activities) as profile:
        started = time.perf_counter()
        pipeline.step([sample])
        synchronise(subject.device)
        wall_ms = (time.perf_counter() - started) * 1000
    events = [event for event in profile.key_averages() if event.self_device_time_total > 0]
    device_events = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
    longest = sorted(device_events, key=lambda event: -event.self_device_time_total)
    busy_ms = sum(event.self_device_time_total for event in device_events) / 1000
    return {
        "wall_ms": round(wall_ms, 2),
        "busy_ms": round(busy_ms, 2),
        "kernels": {
            f"{event.key[:70]} x{event.count}": round(event.self_device_time_total / 1000, 3)
            for event in longest[:PROFILED_KERNELS]
        },
    }


def difference(latents: Tensor, reference: Tensor) -> float:
    """The largest difference over the reference's spread."""
    return float(f"{float((latents - reference).abs().max() / reference.std()):.3g}")
