"""Schedules, noise and packing against diffusers and the published figures."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from fluxserve.models.flux1.variants import linear, shifted
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.solvers import euler_step

LATENTS = PackedLatents(16)


def test_schnell_times_are_linear() -> None:
    assert linear(4, 4096) == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_dev_times_begin_and_end_as_published() -> None:
    times = shifted(28, 4096)
    assert times[:4] == pytest.approx([1, 0.988409, 0.976222, 0.963394], abs=1e-6)
    assert times[-2:] == pytest.approx([0.104721, 0], abs=1e-6)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (512, 512), (1360, 768), (2048, 2048)])
@pytest.mark.parametrize("steps", [1, 8, 50])
def test_dev_times_equal_diffusers(width: int, height: int, steps: int) -> None:
    tokens = width * height // 256
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    sigmas = torch.linspace(1.0, 1 / steps, steps).tolist()
    scheduler.set_timesteps(sigmas=sigmas, mu=calculate_shift(tokens))
    assert shifted(steps, tokens) == pytest.approx(scheduler.sigmas.tolist(), abs=2e-7)


def test_packing_equals_diffusers_and_unpacks() -> None:
    latents = torch.randn(2, 16, 12, 20)
    packed = LATENTS.pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 16, 12, 20))
    assert torch.equal(LATENTS.unpack(packed, (12, 20)), latents)


def test_noise_is_one_float32_cpu_draw_for_a_seed() -> None:
    generator = torch.Generator("cpu").manual_seed(7)
    expected = torch.randn((1, 16, 8, 6), generator=generator, dtype=torch.float32)[0]
    assert torch.equal(LATENTS.noise(7, (8, 6)), LATENTS.pack(expected))
    assert not torch.equal(LATENTS.noise(8, (8, 6)), LATENTS.pack(expected))
    assert torch.isfinite(LATENTS.noise(2**64 - 1, (8, 6))).all()


def test_an_euler_step_moves_each_sample_by_its_own_time() -> None:
    x, velocity = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    moved = euler_step(x, velocity, torch.tensor([1.0, 0.5]), torch.tensor([0.75, 0.0]))
    assert torch.allclose(moved[0], x[0] - 0.25 * velocity[0])
    assert torch.allclose(moved[1], x[1] - 0.5 * velocity[1])
