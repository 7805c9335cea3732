"""What saves time, held against the demo's own exact pictures: solvers, skipped evaluations, 8-bit products."""

from __future__ import annotations

from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from tests.demo.references import PROMPTS

SIDE = 128
SOME = tuple(PROMPTS.values())[::6]


@pytest.fixture(scope="module")
def exact() -> FluxPipeline:
    return FluxPipeline.from_pretrained("demo", device="cpu", dtype="float32")


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
