"""Second order against diffusers on its own grid, its order from noise on, and its steps in a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.models.solvers import clean_estimate, euler_step, second_order_weight
from fluxserve.pipeline.samples import Sample
from fluxserve.request import Solver

Velocity = Callable[[Tensor, float], Tensor]

MEANS = torch.tensor([-1.5, 0.4, 2.0], dtype=torch.float64)
SPREAD = 0.3


def mixture(x: Tensor, t: float) -> Tensor:
    """The exact velocity from noise to three normal distributions: curved, as a trained model's is."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    distance = x[..., None] - (1 - t) * MEANS
    share = torch.softmax(-(distance**2) / (2 * variance), dim=-1)
    clean = (share * (MEANS + (1 - t) * SPREAD**2 / variance * distance)).sum(-1)
    return (x - clean) / t


def solved(velocity: Velocity, x: Tensor, times: Sequence[float], solver: Solver) -> Tensor:
    before: Tensor | None = None
    for i, (t, t_next) in enumerate(pairwise(times)):
        now, after = torch.tensor([t]), torch.tensor([t_next])
        v = velocity(x.double(), t).float()
        clean = clean_estimate(x, v, now)
        x = euler_step(x, v, now, after)
        if solver == "dpmpp2m" and before is not None:
            x = x + second_order_weight(times[i - 1], t, t_next) * (clean - before)
        before = clean
    return x


def start() -> Tensor:
    return torch.randn(1, 50, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("steps", [2, 3, 8, 20, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.filterwarnings("default:__array__")  # diffusers makes an array of a tensor
def test_on_diffusers_own_grid_it_is_diffusers(steps: int, shift: float) -> None:
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, flow_shift=shift, prediction_type="flow_prediction", algorithm_type="dpmsolver++"
    )
    scheduler.set_timesteps(steps)
    assert float(scheduler.sigmas[0]) == pytest.approx(0.999 if shift == 1 else 0.99967, abs=1e-4)
    x = start()
    expected = x
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        v = mixture(expected.double(), float(sigma)).float()
        expected = scheduler.step(v, timestep, expected, return_dict=False)[0]
    ours = solved(mixture, x, scheduler.sigmas.tolist(), "dpmpp2m")
    assert (ours - expected).abs().max() < 1e-4
    assert steps == 2 or (solved(mixture, x, scheduler.sigmas.tolist(), "euler") - expected).abs().max() > 1e-3


def test_from_noise_on_twice_the_steps_quarter_the_error() -> None:
    """Where the grid begins at 1 and lambda at minus infinity."""
    x = start()
    exact = solved(mixture, x, grid(4000), "euler")
    errors = {
        (solver, steps): float((solved(mixture, x, grid(steps), solver) - exact).square().mean().sqrt())
        for solver in ("euler", "dpmpp2m")
        for steps in (16, 32)
    }
    assert errors["euler", 16] < 2.5 * errors["euler", 32]
    assert errors["dpmpp2m", 16] > 3 * errors["dpmpp2m", 32]
    assert errors["dpmpp2m", 16] < errors["euler", 32]


def grid(steps: int) -> list[float]:
    return [1 - i / steps for i in range(steps + 1)]


def test_the_first_and_the_last_step_are_eulers() -> None:
    assert torch.equal(*(solved(mixture, start(), (1.0, 0.0), solver) for solver in ("euler", "dpmpp2m")))
    assert second_order_weight(0.5, 0.25, 0.0) == 0
    assert second_order_weight(1.0, 0.75, 0.5) == pytest.approx(1 / 6)


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    return FluxPipeline.from_pretrained("demo-untrained", device="cpu", dtype="float32", solver="dpmpp2m")


def begun(pipeline: FluxPipeline, seed: int, steps: int, **options: object) -> Sample:
    request = complete_request(
        pipeline.card, "a cat", width=64, height=64, seed=seed, num_inference_steps=steps, **options
    )  # type: ignore[arg-type]
    (sample,) = pipeline.begin(request)
    return sample


def test_the_card_tells_the_default_and_requests_choose(pipeline: FluxPipeline) -> None:
    assert pipeline.card.solver == "dpmpp2m"
    own, named, euler = (
        pipeline.generate("a cat", width=64, height=64, seed=1, num_inference_steps=4, **options)[0].data
        for options in ({}, {"solver": "dpmpp2m"}, {"solver": "euler"})  # type: ignore[list-item]
    )
    assert own == named != euler


def test_samples_at_other_steps_and_of_other_solvers_share_a_step(pipeline: FluxPipeline) -> None:
    """Each goes where it would go alone."""
    alone = [begun(pipeline, 1, 5), begun(pipeline, 2, 4), begun(pipeline, 3, 6, solver="euler")]
    together = [begun(pipeline, 1, 5), begun(pipeline, 2, 4), begun(pipeline, 3, 6, solver="euler")]
    for sample in alone:
        while not sample.done:
            pipeline.step([sample])
    assert len({sample.batch_key for sample in together}) == 1
    pipeline.step([together[0]])
    pipeline.step([together[0], together[2]])
    while not together[0].done:
        pipeline.step(together)
    for sample in together:
        while not sample.done:
            pipeline.step([sample])
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.latents, other.latents, atol=1e-4)


def test_previews_are_what_is_predicted(pipeline: FluxPipeline) -> None:
    sample = begun(pipeline, 1, 4)
    noise = sample.latents
    pipeline.step([sample])
    pipeline.step([sample])
    assert sample.memory.clean is not None
    assert torch.equal(sample.predicted(), sample.memory.clean)
    euler = begun(pipeline, 1, 4, solver="euler")
    pipeline.step([euler])
    pipeline.step([euler])
    assert torch.allclose(sample.predicted(), euler.predicted(), atol=1e-5)  # the second order acts on what follows
    assert not torch.allclose(sample.latents, euler.latents, atol=1e-3)
    assert not torch.allclose(sample.predicted(), noise, atol=0.1)


def test_a_step_that_fails_leaves_everything_as_it_was(pipeline: FluxPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = begun(pipeline, 1, 4)
    pipeline.step([sample])
    latents, clean = sample.latents, sample.memory.clean
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "_velocity", lambda _: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            pipeline.step([sample])
    assert (sample.latents is latents, sample.memory.clean is clean, sample.step) == (True, True, 1)
