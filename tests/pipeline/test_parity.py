"""Whole pictures against diffusers' FluxPipeline: the same checkpoint, seed, size and steps give the same picture."""

from __future__ import annotations

import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline as DiffusersPipeline
from PIL import Image

from fluxserve.completion import complete_request
from fluxserve.errors import NonFiniteOutput
from fluxserve.models.flux1.variants import linear
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.request import GenerationRequest
from tests.conftest import MakeCheckpoint

LATENT_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 2
DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded twice in float32."""

    ours: FluxPipeline
    theirs: DiffusersPipeline


def load_pair(folder: Path) -> Pair:
    theirs = DiffusersPipeline.from_pretrained(folder, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    return Pair(FluxPipeline.from_pretrained(str(folder), device="cpu", dtype="float32"), theirs)


@pytest.fixture(scope="module")
def pairs(tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """schnell and dev, with the published vocabularies in place of the small ones."""
    made = {}
    for variant in ("schnell", "dev"):
        folder = tmp_path_factory.mktemp("real-tokenizers") / variant
        shutil.copytree(tiny_checkpoint(variant), folder)
        for theirs, ours in (("clip", "tokenizer"), ("t5", "tokenizer_2")):
            shutil.rmtree(folder / ours)
            shutil.copytree(DATA / "tokenizers" / theirs, folder / ours)
        made[variant] = load_pair(folder)
    return made


def asked(pair: Pair, prompt: str, width: int, height: int, steps: int, seed: int) -> GenerationRequest:
    return complete_request(pair.ours.card, prompt, width=width, height=height, num_inference_steps=steps, seed=seed)


def draw_theirs(pair: Pair, request: GenerationRequest, output_type: str) -> np.ndarray:
    result = pair.theirs(
        request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale or 0.0,
        max_sequence_length=request.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(request.seeds[0]),
        output_type=output_type,
    )
    return np.asarray(result.images[0])


@pytest.mark.parametrize(("variant", "steps"), [("schnell", 4), ("dev", 8)])
def test_final_latents(pairs: dict[str, Pair], variant: str, steps: int) -> None:
    pair = pairs[variant]
    request = asked(pair, "A photo of a cat", 96, 64, steps, seed=3)
    (sample,) = pair.ours.begin(request)
    while not sample.done:
        pair.ours.step([sample])
    expected = draw_theirs(pair, request, "latent")
    assert np.abs(sample.latents.numpy() - expected).max() <= LATENT_TOLERANCE


@pytest.mark.parametrize(
    ("variant", "prompt", "width", "height", "seed"),
    [
        ("schnell", "Ein Äpfelchen, ça brûle: élan naïf", 64, 64, 0),
        ("schnell", "山の中の鮮やかな夕日、4K 🌄", 64, 112, 2**32 - 1),
        ("dev", "红苹果 on a table", 128, 80, 7),
        ("dev", "a very long prompt " * 60, 64, 96, 8),
    ],
)
def test_pictures(pairs: dict[str, Pair], variant: str, prompt: str, width: int, height: int, seed: int) -> None:
    pair = pairs[variant]
    request = asked(pair, prompt, width, height, 4, seed)
    (image,) = pair.ours.run(request)
    ours = np.asarray(Image.open(io.BytesIO(image.data)), dtype=int)
    theirs = np.rint(draw_theirs(pair, request, "np") * 255).astype(int)
    assert ours.shape == theirs.shape == (height, width, 3)
    assert np.abs(ours - theirs).max() <= PIXEL_TOLERANCE
    assert ours.std() > 5  # a picture, not a plain area


def test_true_cfg_equals_diffusers(pairs: dict[str, Pair]) -> None:
    from dataclasses import replace

    pair = pairs["schnell"]
    request = replace(asked(pair, "a cat", 64, 64, 3, seed=5), negative_prompt="a dog", true_cfg_scale=4.0)
    (image,) = pair.ours.run(request)
    theirs = pair.theirs(
        request.prompt,
        negative_prompt=request.negative_prompt,
        true_cfg_scale=request.true_cfg_scale,
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=0.0,
        max_sequence_length=request.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="np",
    ).images[0]
    ours = np.asarray(Image.open(io.BytesIO(image.data)), dtype=int)
    assert np.abs(ours - np.rint(theirs * 255)).max() <= PIXEL_TOLERANCE


def test_previews_equal_diffusers_x0(pairs: dict[str, Pair]) -> None:
    """The estimate of the finished picture at a step, x - t v, through the decoder."""
    pair = pairs["schnell"]
    request = asked(pair, "a cat", 64, 64, 4, seed=11)
    states: list[torch.Tensor] = []
    pair.theirs(
        request.prompt,
        width=64,
        height=64,
        num_inference_steps=4,
        guidance_scale=0.0,
        max_sequence_length=request.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(11),
        output_type="latent",
        callback_on_step_end=lambda _pipe, _i, _t, kwargs: states.append(kwargs["latents"].clone()) or {},
    )
    (sample,) = pair.ours.begin(request)
    times = linear(4, 16)
    before = sample.latents[None]
    for i, after in enumerate(states[:3]):
        pair.ours.step([sample])
        velocity = (after - before) / (times[i + 1] - times[i])
        x0 = PackedLatents(16).unpack(before - times[i] * velocity, (8, 8))
        vae = pair.theirs.vae
        with torch.inference_mode():
            expected = vae.decode(x0 / vae.config.scaling_factor + vae.config.shift_factor).sample[0]
        levels = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy().astype(int)
        assert np.abs(pair.ours.preview(sample).astype(int) - levels).max() <= PIXEL_TOLERANCE
        before = after


def test_an_image_does_not_depend_on_its_batch(pairs: dict[str, Pair]) -> None:
    """Stepped beside others, at other times, from other prompts: the same latents."""
    ours = pairs["dev"].ours
    alone = asked(pairs["dev"], "a cat", 64, 64, 5, seed=1)
    (expected,) = ours.begin(alone)
    while not expected.done:
        ours.step([expected])
    (sample,) = ours.begin(alone)
    (late,) = ours.begin(asked(pairs["dev"], "a dog on a hill", 64, 64, 7, seed=2))
    ours.step([late])
    while not sample.done:
        ours.step([late, sample])
    assert (sample.latents - expected.latents).abs().max() <= 1e-5


def test_an_image_does_not_depend_on_its_batch_in_bfloat16(tiny_checkpoint: MakeCheckpoint) -> None:
    ours = FluxPipeline.from_pretrained(str(tiny_checkpoint()), device="cpu", dtype="bfloat16")
    request = complete_request(ours.card, "a cat", n=3, width=64, height=64, seed=1)
    alone, beside = ours.begin(request), ours.begin(request)
    while not beside[0].done:
        ours.step(beside)
        for sample in alone:
            ours.step([sample])
    for one, other in zip(alone, beside, strict=True):
        assert (one.latents - other.latents).abs().max() <= 0.03 * one.latents.std()


def test_same_seed_same_bytes_and_n_equals_singles(pairs: dict[str, Pair]) -> None:
    ours = pairs["schnell"].ours
    several = ours.generate("a cat", n=3, seed=7, width=64, height=64)
    assert [image.seed for image in several] == [7, 8, 9]
    singles = [ours.generate("a cat", seed=seed, width=64, height=64)[0] for seed in (7, 8, 9)]
    assert [image.data for image in several] == [image.data for image in singles]
    assert len({image.data for image in several}) == 3


def test_latents_that_are_no_longer_finite_end_the_job_within_four_steps(pairs: dict[str, Pair]) -> None:
    ours = pairs["schnell"].ours
    (sample,) = ours.begin(asked(pairs["schnell"], "a cat", 64, 64, 8, seed=1))
    sample.latents = sample.latents.clone()
    sample.latents[0, 0] = float("nan")
    for _ in range(3):
        ours.step([sample])
    with pytest.raises(NonFiniteOutput):
        ours.step([sample])
    assert sample.step == 3
