"""A streamed model draws exactly what a resident one draws, from either layout, and says what it moved."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fluxserve.completion import complete_request
from fluxserve.config import PipelineConfig
from fluxserve.errors import DeviceError
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.placement.plan import Plan
from fluxserve.weights.files.safetensors_file import SafetensorsFile
from tests.conftest import MakeCheckpoint


def load(model: str, **changes: object) -> FluxPipeline:
    config = PipelineConfig(model, device="cpu", **changes)  # type: ignore[arg-type]
    return FluxPipeline.load(config, lambda *_: None)


@pytest.mark.parametrize("layout", ["diffusers", "bfl"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_streamed_equals_resident(tiny_checkpoint: MakeCheckpoint, layout: str, dtype: str) -> None:
    model = str(tiny_checkpoint("schnell", layout))
    resident = load(model, offload="none", dtype=dtype)
    streamed = load(model, offload="stream", dtype=dtype)
    for prompt in ("a cat", "a dog on a hill"):
        request = complete_request(resident.card, prompt, n=2, width=64, height=96, seed=5)
        assert [image.data for image in streamed.run(request)] == [image.data for image in resident.run(request)]


def test_a_cpu_streams_the_file_as_it_is_whatever_the_storage(tiny_checkpoint: MakeCheckpoint) -> None:
    model = str(tiny_checkpoint())
    plain, packed = load(model, offload="stream"), load(model, offload="stream", storage="int8")
    request = complete_request(plain.card, "a cat", width=64, height=64, seed=5)
    assert packed.run(request)[0].data == plain.run(request)[0].data


def test_a_budget_that_cannot_work_is_refused_with_the_smallest_that_can(tiny_checkpoint: MakeCheckpoint) -> None:
    model = str(tiny_checkpoint())
    with pytest.raises(
        DeviceError, match=r"a memory budget of 1,000,000 bytes .* the smallest that can work is"
    ) as caught:
        load(model, memory_budget=1_000_000)
    smallest = int(caught.value.message.split("can work is ")[1].split(" bytes")[0].replace(",", ""))
    load(model, memory_budget=smallest)
    with pytest.raises(DeviceError):
        load(model, memory_budget=smallest - 1)


def test_pages_that_were_copied_from_are_given_back(
    tiny_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of fused matrices after loading; those of the modulation after use, if memory is short."""
    released: set[str] = set()
    release = SafetensorsFile.release

    def record(file: SafetensorsFile, key: str) -> None:
        released.add(key)
        release(file, key)

    monkeypatch.setattr(SafetensorsFile, "release", record)
    fused, modulation = "transformer_blocks.0.attn.to_q.weight", "transformer_blocks.0.norm1.linear.weight"
    for offload in ("none", "stream"):
        pipeline = load(str(tiny_checkpoint()), offload=offload)
        assert fused in released or offload == "stream"
        released.clear()
        pipeline.begin(complete_request(pipeline.card, "a cat", width=64, height=64, seed=5))
        assert (modulation in released) == (offload == "stream")


def test_a_smaller_plan_goes_on_in_the_middle_of_a_picture(tiny_checkpoint: MakeCheckpoint) -> None:
    model = str(tiny_checkpoint())
    whole, replanned = load(model), load(model)
    take_plan(replanned, replace(replanned.plan, peak_bytes=smallest_budget(model) * 4 // 3 + 4))
    request = complete_request(whole.card, "a cat", width=64, height=64, seed=5)
    (expected,) = whole.run(request)
    (sample,) = replanned.begin(request)
    replanned.step([sample])
    replanned.replan()
    assert replanned.plan.streamed
    while not sample.done:
        replanned.step([sample])
    assert replanned.encode(replanned.decode(sample), sample).data == expected.data


def test_a_step_takes_as_many_samples_as_the_plan_has_room_for(tiny_checkpoint: MakeCheckpoint) -> None:
    """As on a GPU; true CFG runs each sample twice."""
    pipeline = load(str(tiny_checkpoint("dev")))
    request = complete_request(pipeline.card, "a cat", width=64, height=64)
    (plain,), (guided,) = (pipeline.begin(replace(request, true_cfg_scale=scale)) for scale in (1.0, 2.0))
    assert (pipeline.card.max_batch, pipeline.most_together(plain)) == (1, 1)
    pipeline.max_batch = 4
    assert (pipeline.most_together(plain), pipeline.most_together(guided)) == (4, 4)
    tight = replace(pipeline.plan.work, width=64, height=64, batch=3)
    take_plan(pipeline, replace(pipeline.plan, work=tight, budget_bytes=0, tiled=True))
    fitting = pipeline.plan.room_bytes // replace(tight, batch=1).step_bytes
    pipeline.max_batch = 10 * fitting
    assert (pipeline.most_together(plain), pipeline.most_together(guided)) == (fitting, fitting // 2)


def take_plan(pipeline: FluxPipeline, plan: Plan) -> None:
    pipeline.networks = replace(pipeline.networks, plan=plan)


def smallest_budget(model: str) -> int:
    with pytest.raises(DeviceError) as caught:
        load(model, memory_budget=1_000_000)
    return int(caught.value.message.split("can work is ")[1].split(" bytes")[0].replace(",", ""))


@pytest.mark.parametrize(("storage", "tolerance"), [("fp8", 0.15), ("int8", 0.05)])
def test_packed_storage_halves_the_blocks_and_draws_nearly_the_same(
    tiny_checkpoint: MakeCheckpoint, storage: str, tolerance: float
) -> None:
    """The error is of the final latents, relative to their spread, on random weights."""
    model = str(tiny_checkpoint())
    native, packed = load(model, dtype="float32"), load(model, dtype="float32", storage=storage)
    assert packed.plan.peak_bytes < native.plan.peak_bytes
    request = complete_request(native.card, "a cat", width=64, height=64, seed=5)
    latents = []
    for pipeline in (native, packed):
        (sample,) = pipeline.begin(request)
        while not sample.done:
            pipeline.step([sample])
        latents.append(sample.latents)
    error = (latents[1] - latents[0]).square().mean().sqrt() / latents[0].std()
    assert 0 < error < tolerance
