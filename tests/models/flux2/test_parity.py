"""FLUX.2 [klein] of tiny random weights in float32 against diffusers and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from fluxserve import FluxPipeline
from fluxserve.completion import complete_request
from fluxserve.models.family import StepInputs
from fluxserve.models.flux2.variants import empirical_mu, times
from tests.conftest import MakeCheckpoint

PROMPTS = ("a red apple", "un café à Zürich, 雪の山の家, 사과", "a long road " * 200, "")


@pytest.fixture(scope="module", params=["klein", "klein-base"])
def folder(request: pytest.FixtureRequest, tiny_checkpoint: MakeCheckpoint) -> Path:
    return tiny_checkpoint(request.param)


@pytest.fixture(scope="module")
def ours(folder: Path) -> FluxPipeline:
    """Warm, as the worker is: a process's first products may round otherwise, and 27 random layers amplify it."""
    pipeline = FluxPipeline.from_pretrained(str(folder), dtype="float32", device="cpu")
    pipeline.run(complete_request(pipeline.card, "warm", width=64, height=64, num_inference_steps=1))
    return pipeline


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Flux2KleinPipeline:
    pipeline = Flux2KleinPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
@torch.inference_mode()
def test_text_states(ours: FluxPipeline, theirs: Flux2KleinPipeline, prompt: str) -> None:
    expected, _ = theirs.encode_prompt(prompt)
    text = ours.networks.model.encode(prompt, 512, lambda: None)
    assert text.states.shape == (512, 72)
    assert (text.states - expected[0]).abs().max() <= 1e-5
    assert (text.prompt_tokens > text.tokens) == (len(prompt) > 1000)


@pytest.mark.parametrize("references", [(), ((4, 6),), ((4, 6), (2, 2), (5, 3))])
@torch.inference_mode()
def test_velocity_with_and_without_references(
    ours: FluxPipeline, theirs: Flux2KleinPipeline, references: tuple[tuple[int, int], ...]
) -> None:
    """References are further image tokens, with grids of their own at later times."""
    network, grid = ours.networks.model.denoiser, (6, 8)
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randn(2, h * w, 32, generator=generator) for h, w in (grid, *references)]
    text = torch.randn(2, 20, 72, generator=generator)
    t = torch.tensor([0.9, 0.3])
    img_ids = theirs._prepare_latent_ids(torch.empty(2, 32, *grid))
    if references:
        images = [torch.empty(1, 32, *size) for size in references]
        img_ids = torch.cat([img_ids, theirs._prepare_image_ids(images).expand(2, -1, -1)], dim=1)
    expected = theirs.transformer(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=text,
        timestep=t,
        guidance=None,
        img_ids=img_ids,
        txt_ids=theirs._prepare_text_ids(text),
        return_dict=False,
    )[0]
    rows = network.modulation(t, None, torch.float32)
    model = ours.networks.model
    others = torch.cat(tokens[1:], dim=1) if references else None
    drawn = model.velocity(StepInputs(tokens[0], text, rows, model.positions(20, [grid, *references]), others))
    assert drawn.shape == tokens[0].shape
    assert (drawn - expected[:, : drawn.shape[1]]).abs().max() <= 1e-5
    assert rows.shape == (2, 17 * 64)


@torch.inference_mode()
def test_autoencoder(ours: FluxPipeline, theirs: Flux2KleinPipeline) -> None:
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = ours.networks.model.autoencoder.encode(pixels)
    assert latents.shape == (1, 32, 4, 6)
    assert (latents - theirs._encode_vae_image(pixels, None)).abs().max() <= 1e-5
    statistics = theirs.vae.bn
    deviation = torch.sqrt(statistics.running_var + theirs.vae.config.batch_norm_eps)[None, :, None, None]
    unpacked = theirs._unpatchify_latents(latents * deviation + statistics.running_mean[None, :, None, None])
    expected = theirs.vae.decode(unpacked, return_dict=False)[0]
    assert (ours.networks.model.autoencoder.decode(latents) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("steps", [1, 4, 50])
@pytest.mark.parametrize("tokens", [48, 1024, 4096, 4300, 4301, 16384])
def test_times(theirs: Flux2KleinPipeline, steps: int, tokens: int) -> None:
    mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
    assert empirical_mu(tokens, steps) == pytest.approx(mu, abs=1e-9)
    theirs.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    assert times(steps, tokens) == pytest.approx(theirs.scheduler.sigmas.tolist(), abs=1e-6)


@pytest.mark.parametrize(("width", "height", "prompt"), [(128, 96, PROMPTS[0]), (64, 160, PROMPTS[1])])
def test_pictures(ours: FluxPipeline, theirs: Flux2KleinPipeline, width: int, height: int, prompt: str) -> None:
    """The same seed, the same picture; base with guidance 4 and an empty negative prompt."""
    expected = theirs(
        prompt=prompt,
        width=width,
        height=height,
        num_inference_steps=4,
        guidance_scale=ours.card.true_cfg_scale,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    request = complete_request(ours.card, prompt, width=width, height=height, num_inference_steps=4, seed=7)
    (sample,) = ours.begin(request)
    while not sample.done:
        ours.step([sample])
    drawn = ours.decode(sample)
    assert drawn.std() > 5
    assert np.abs(drawn.astype(float) - np.round(expected * 255)).max() <= 2
