"""What saves time, held against the demo's own exact pictures: solvers, skipped evaluations, 8-bit products."""

from __future__ import annotations

from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.errors import DeviceError
from tests.demo.references import PROMPTS, named

SIDE = 128
SOME = tuple(PROMPTS.values())[::6]


@pytest.fixture(scope="module")
def exact() -> FluxPipeline:
    return FluxPipeline.from_pretrained("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def skipping() -> FluxPipeline:
    return FluxPipeline.from_pretrained("demo", device="cpu", dtype="float32", step_cache=0.25)


def pixels(pipeline: FluxPipeline, prompt: str, steps: int, **options: Any) -> np.ndarray[Any, Any]:
    request = complete_request(
        pipeline.card, prompt, width=SIDE, height=SIDE, seed=1, num_inference_steps=steps, **options
    )
    (sample,) = pipeline.begin(request)
    while not sample.done:
        pipeline.step([sample])
    with torch.inference_mode():
        return np.asarray(pipeline.decode(sample), float)


def psnr(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    return float(10 * np.log10(255**2 / np.square(a - b).mean()))


def test_eight_steps_of_second_order_come_nearer_than_fourteen_of_first(exact: FluxPipeline) -> None:
    """To the model's own picture of 200 steps, on the mean of some prompts."""
    near = {"dpmpp2m": [], "euler": []}  # type: dict[str, list[float]]
    for prompt in SOME:
        reference = pixels(exact, prompt, 200)
        near["dpmpp2m"].append(psnr(pixels(exact, prompt, 8, solver="dpmpp2m"), reference))
        near["euler"].append(psnr(pixels(exact, prompt, 14), reference))
    assert mean(near["dpmpp2m"]) >= mean(near["euler"]), near
    assert min(near["dpmpp2m"]) > 35


def test_more_than_half_of_many_steps_are_skipped_and_the_picture_stays(
    exact: FluxPipeline, skipping: FluxPipeline
) -> None:
    """Counted at the last block, which runs in the other steps alone."""
    runs = 0

    def count(*_: object) -> None:
        nonlocal runs
        runs += 1

    last = skipping.networks.model.denoiser.single_blocks[-1]
    with last.register_forward_hook(count):  # type: ignore[operator, union-attr]
        for prompt in SOME:
            assert psnr(pixels(skipping, prompt, 28), pixels(exact, prompt, 28)) >= 30
    assert 28 * len(SOME) * 0.35 < runs < 28 * len(SOME) * 0.5


def test_the_timings_tell_how_many(skipping: FluxPipeline) -> None:
    common: dict[str, Any] = {"width": SIDE, "height": SIDE, "seed": 1}
    many, few = (skipping.generate(SOME[0], num_inference_steps=steps, **common).timings for steps in (28, 8))
    assert (many.steps, few.steps, few.skipped_steps) == (28, 8, 0)
    assert 14 <= many.skipped_steps <= 18


def test_eight_bit_products_name_the_same_things() -> None:
    """Pictures of the twelve prompts. A CPU without such units has nothing to show."""
    try:
        packed = FluxPipeline.from_pretrained("demo", device="cpu", compute="int8")
    except DeviceError as error:
        pytest.skip(error.message)
    plain = FluxPipeline.from_pretrained("demo", device="cpu", dtype="bfloat16")
    right = 0
    for label, prompt in PROMPTS.items():
        picture = pixels(packed, prompt, 8)
        right += named(Image.fromarray(picture.astype(np.uint8))) == label
        assert psnr(picture, pixels(plain, prompt, 8)) >= 28, prompt
    assert right >= len(PROMPTS) - 1
