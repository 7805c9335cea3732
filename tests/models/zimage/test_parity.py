"""Z-Image of tiny random weights in float32 against diffusers and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from transformers import Qwen2Tokenizer

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.models.family import StepInputs
from fluxserve.models.zimage.variants import times
from tests.conftest import MakeCheckpoint

PROMPTS = ("a red apple", "un café à Zürich, 雪の山の家, 사과", "a long road " * 200, "")


@pytest.fixture(scope="module")
def folder(tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint("zimage")


@pytest.fixture(scope="module")
def ours(folder: Path) -> FluxPipeline:
    """Warm, as the worker is: a process's first products may round otherwise, and 35 random layers amplify it."""
    pipeline = FluxPipeline.from_pretrained(str(folder), dtype="float32", device="cpu")
    pipeline.run(complete_request(pipeline.card, "warm", width=64, height=64, num_inference_steps=1))
    return pipeline


@pytest.fixture(scope="module")
def theirs(folder: Path) -> ZImagePipeline:
    pipeline = ZImagePipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
@torch.inference_mode()
def test_text_states(ours: FluxPipeline, theirs: ZImagePipeline, prompt: str) -> None:
    assert isinstance(theirs.tokenizer, Qwen2Tokenizer)
    (expected,), _ = theirs.encode_prompt(prompt, do_classifier_free_guidance=False)
    text = ours.networks.model.encode(prompt, 512, lambda: None)
    assert text.states.shape == expected.shape == (text.tokens, 32)
    assert (text.states - expected).abs().max() <= 1e-5 * expected.std()  # of about 4: the layers add to one stream
    assert (text.tokens == 512, text.prompt_tokens > 512) == (len(prompt) > 1000,) * 2


@pytest.mark.parametrize("text_tokens", [20, 32, 33])
@pytest.mark.parametrize("grid", [(6, 8), (16, 8), (10, 22)])
@torch.inference_mode()
def test_velocity(ours: FluxPipeline, theirs: ZImagePipeline, grid: tuple[int, int], text_tokens: int) -> None:
    """Tokens that fill a multiple of 32, image's and text's, and tokens that do not."""
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 8, *grid, generator=generator)
    text = torch.randn(2, text_tokens, 32, generator=generator)
    t = torch.tensor([0.9, 0.3])
    expected = theirs.transformer(list(latents.unsqueeze(2)), 1 - t, list(text), return_dict=False)[0]
    model, space = ours.networks.model, ours.latents
    rows = model.denoiser.modulation(t, torch.float32)
    inputs = StepInputs(space.pack(latents), text, rows, model.positions(text_tokens, [grid]))
    drawn = space.unpack(model.velocity(inputs), grid)
    assert (drawn + torch.stack(expected).squeeze(2)).abs().max() <= 1e-5
    assert rows.shape == (2, (4 * 5 + 1) * 96)


@pytest.mark.parametrize("steps", [1, 4, 8, 50])
def test_times(theirs: ZImagePipeline, steps: int) -> None:
    theirs.scheduler.set_timesteps(sigmas=get_default_z_image_sigmas(steps), mu=0.0)
    assert times(steps, 4096) == pytest.approx(theirs.scheduler.sigmas.tolist(), abs=1e-6)
    assert times(8, 1) == pytest.approx((1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3, 0), abs=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 5.0], ids=["turbo", "base"])
@pytest.mark.parametrize(
    ("width", "height", "prompt", "negative"),
    [(128, 96, PROMPTS[0], ""), (64, 160, PROMPTS[1], ""), (96, 80, PROMPTS[2], "a blurred picture, 模糊 " * 3)],
)
def test_pictures(
    ours: FluxPipeline, theirs: ZImagePipeline, width: int, height: int, prompt: str, negative: str, guidance: float
) -> None:
    """The same seed, the same picture; diffusers' guidance is what is added to the prompt's own prediction."""
    expected = theirs(
        prompt=prompt,
        negative_prompt=negative,
        width=width,
        height=height,
        num_inference_steps=4,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    request = complete_request(
        ours.card,
        prompt,
        width=width,
        height=height,
        num_inference_steps=4,
        seed=7,
        negative_prompt=negative,
        true_cfg_scale=1 + guidance,
    )
    (sample,) = ours.begin(request)
    while not sample.done:
        ours.step([sample])
    drawn = ours.decode(sample)
    assert drawn.std() > 5
    assert np.abs(drawn.astype(float) - np.round(expected * 255)).max() <= 2


def test_the_cards_guidance_is_the_published_one(ours: FluxPipeline) -> None:
    assert ours.card.true_cfg_scale == 1 + 5
