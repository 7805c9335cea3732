"""The networks against diffusers on the same tiny random weights, biases and norms included, in float32."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from fluxserve.models.family import StepInputs
from fluxserve.models.flux1.variants import shifted
from fluxserve.models.parts.attention import rotary_table
from fluxserve.pipeline.pipeline import FluxPipeline as OurPipeline
from tests.conftest import MakeCheckpoint

TOLERANCE = 1e-5


@pytest.mark.parametrize("variant", ["schnell", "dev"])
@pytest.mark.parametrize("time", [1.0, 0.7, 0.05])
@torch.inference_mode()
def test_transformer_forward(tiny_checkpoint: MakeCheckpoint, variant: str, time: float) -> None:
    folder = tiny_checkpoint(variant)
    ours = OurPipeline.from_pretrained(str(folder), dtype="float32", device="cpu").networks.model.denoiser
    theirs = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    params = ours.params
    rows, columns, text_tokens = 6, 4, 10
    generator = torch.Generator().manual_seed(0)
    img = torch.randn(2, rows * columns, params.in_channels, generator=generator)
    txt = torch.randn(2, text_tokens, params.context_in_dim, generator=generator)
    pooled = torch.randn(2, params.vec_in_dim, generator=generator)
    t = torch.tensor([time, 0.4])
    guidance = torch.tensor([3.5, 1.0]) if variant == "dev" else None
    expected = theirs(
        hidden_states=img,
        encoder_hidden_states=txt,
        pooled_projections=pooled,
        timestep=t,
        guidance=guidance,
        img_ids=FluxPipeline._prepare_latent_image_ids(2, rows, columns, torch.device("cpu"), torch.float32),
        txt_ids=torch.zeros(text_tokens, 3),
        return_dict=False,
    )[0]
    actual = ours(img, txt, ours.modulation(t, guidance, pooled), ours.rope(text_tokens, [(rows, columns)]))
    assert (actual - expected).abs().max() <= TOLERANCE
    assert expected.std() > 0.1  # the weights do something


@torch.inference_mode()
def test_autoencoder_encode_and_decode(tiny_checkpoint: MakeCheckpoint) -> None:
    folder = tiny_checkpoint()
    ours = OurPipeline.from_pretrained(str(folder), dtype="float32", device="cpu").pictures.autoencoder
    theirs = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float32)
    pixels = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = theirs.encode(pixels).latent_dist.mean
    latents = (mean - theirs.config.shift_factor) * theirs.config.scaling_factor
    assert (ours.encode(pixels) - latents).abs().max() <= TOLERANCE
    expected = theirs.decode(latents / theirs.config.scaling_factor + theirs.config.shift_factor).sample
    assert (ours.decode(latents) - expected).abs().max() <= TOLERANCE


def test_rotary_tables_are_exact_far_beyond_bfloat16() -> None:
    ids = torch.tensor([[0.0, 257.0, 511.0]])
    table = rotary_table(ids, (4, 6, 6), 10_000)
    angle = torch.tensor(511.0, dtype=torch.float64)
    assert table[0, 5, 0].item() == pytest.approx(torch.cos(angle).item(), abs=1e-6)


@torch.inference_mode()
def test_modulation_of_all_steps_equals_one_at_a_time(tiny_checkpoint: MakeCheckpoint) -> None:
    transformer = OurPipeline.from_pretrained(
        str(tiny_checkpoint("dev")), dtype="float32", device="cpu"
    ).networks.model.denoiser
    times = torch.tensor(shifted(8, 256)[:-1])
    pooled = torch.randn(1, transformer.params.vec_in_dim)
    together = transformer.modulation(times, torch.full_like(times, 3.5), pooled.expand(8, -1))
    for row, t in zip(together, times, strict=True):
        alone = transformer.modulation(t[None], torch.tensor([3.5]), pooled)
        assert torch.allclose(row, alone[0], atol=1e-6)


def test_further_channels_of_a_step_stand_behind_the_latents() -> None:
    latents, channels = torch.randn(1, 6, 64), torch.randn(1, 6, 320)
    nothing = torch.empty(0)
    image = StepInputs(latents, nothing, nothing, nothing, channels=channels).image
    assert torch.equal(image, torch.cat([latents, channels], dim=-1))
    assert StepInputs(latents, nothing, nothing, nothing).image is latents
