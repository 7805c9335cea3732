"""Skipped blocks: when, for whom, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fluxserve.completion import complete_request
from fluxserve.config import PipelineConfig
from fluxserve.models.step_cache import BlockCache, run_others
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.pipeline.samples import Sample
from tests.conftest import MakeCheckpoint

Load = Callable[..., FluxPipeline]


def one(value: float) -> Tensor:
    return torch.full((1, 4, 8), value)


def test_what_changed_as_before_is_taken_for_the_same() -> None:
    """The first block adds 1, then 1.05, then 1.2; the threshold is a tenth."""
    cache, ran = BlockCache(0.1), []

    def others(_: object) -> Tensor:
        ran.append(len(ran))
        return one(10.0 + len(ran))

    for first, expected in ((1.0, 11.0), (1.05, 1.05 + 10.0), (1.2, 12.0), (1.25, 1.25 + 10.8)):
        behind = run_others(one(0.0), one(first), others, [cache])
        cache.keep()
        assert torch.allclose(behind, one(expected))
    assert (len(ran), cache.skipped) == (2, 2)


def test_a_step_that_fails_is_not_remembered() -> None:
    cache = BlockCache(0.1)
    for _ in range(2):
        run_others(one(0.0), one(1.0), lambda _: one(5.0), [cache])
        assert cache.changes is None
    cache.keep()
    run_others(one(0.0), one(1.0), lambda _: one(5.0), [cache])
    run_others(one(0.0), one(1.0), lambda _: one(5.0), [cache])
    cache.keep()
    assert cache.skipped == 1


def test_what_is_not_a_number_is_never_skipped() -> None:
    cache = BlockCache(1.0)
    for first in (1.0, float("nan"), float("nan")):
        behind = run_others(one(0.0), one(first), lambda _: one(5.0), [cache])
        cache.keep()
        assert torch.equal(behind, one(5.0))
    assert cache.skipped == 0


@pytest.fixture
def load(tiny_checkpoint: MakeCheckpoint) -> Load:
    def load(variant: str = "schnell", **options: object) -> FluxPipeline:
        config = PipelineConfig(str(tiny_checkpoint(variant)), device="cpu", dtype="float32", **options)  # type: ignore[arg-type]
        return FluxPipeline.load(config, lambda *_: None)

    return load


def begun(pipeline: FluxPipeline, seed: int = 1, steps: int = 60, **options: float) -> Sample:
    request = complete_request(pipeline.card, "a cat", width=64, height=64, seed=seed, num_inference_steps=steps)
    (sample,) = pipeline.begin(replace(request, **options))  # type: ignore[arg-type]
    return sample


def finish(pipeline: FluxPipeline, *samples: Sample) -> None:
    while not samples[0].done:
        pipeline.step(samples)


def skipped(sample: Sample) -> int:
    return sample.timings({}).skipped_steps


@pytest.mark.parametrize("variant", ["schnell", "dev", "klein", "zimage"])
def test_families_skip_and_few_steps_never_do(load: Load, variant: str) -> None:
    pipeline, plain = load(variant, step_cache=1.0), load(variant)
    many, few, reference = begun(pipeline), begun(pipeline, steps=8), begun(plain, steps=8)
    for each in (many, few):
        finish(pipeline, each)
    finish(plain, reference)
    assert 0 < skipped(many) < 60
    assert skipped(few) == skipped(reference) == 0
    assert torch.equal(few.latents, reference.latents)


def test_where_nothing_is_alike_nothing_changes(load: Load) -> None:
    pipeline, plain = load(step_cache=1e-6), load()
    ours, theirs = begun(pipeline), begun(plain)
    finish(pipeline, ours)
    finish(plain, theirs)
    assert skipped(ours) == 0
    assert torch.equal(ours.latents, theirs.latents)


@pytest.mark.parametrize("guided", [1.0, 3.0])
def test_each_sample_of_a_batch_decides_as_it_would_alone(load: Load, guided: float) -> None:
    pipeline = load(step_cache=0.6)
    alone, together = ([begun(pipeline, seed, true_cfg_scale=guided) for seed in (1, 2)] for _ in range(2))
    for sample in alone:
        finish(pipeline, sample)
    pipeline.step(together[:1])
    while not together[0].done:
        pipeline.step(together)
    finish(pipeline, together[1])
    for one, other in zip(alone, together, strict=True):
        assert skipped(one) == skipped(other) > 0
        assert torch.allclose(one.latents, other.latents, atol=1e-3)


def test_streamed_blocks_may_be_skipped(load: Load) -> None:
    resident, streamed = (load(step_cache=0.6, offload=offload) for offload in ("none", "stream"))
    ours, theirs = begun(streamed), begun(resident)
    finish(streamed, ours)
    finish(resident, theirs)
    assert streamed.plan.streamed
    assert skipped(ours) == skipped(theirs) > 0
    assert torch.equal(ours.latents, theirs.latents)


def test_the_plan_counts_what_is_remembered(load: Load) -> None:
    plans = [load(**options).plan for options in ({"step_cache": 0.3}, {})]  # type: ignore[arg-type]
    hidden = plans[0].work.hidden
    assert plans[0].work.extra_bytes - plans[1].work.extra_bytes == 3 * hidden * 4
