"""Models that draw from pictures, against diffusers: the same checkpoint, noise, pictures and steps give the same one.

diffusers draws a picture's latents from the autoencoder's distribution; here, as there in training, they are its mean.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxControlPipeline, FluxFillPipeline
from PIL import Image
from torch import Tensor

from fluxserve.completion import complete_request
from fluxserve.errors import InvalidRequest
from fluxserve.input_images import read_inputs
from fluxserve.models.family import StepInputs
from fluxserve.models.flux1.sizes import TINY
from fluxserve.pipeline.networks import Blueprint
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.request import GenerationRequest
from tests.conftest import MakeCheckpoint

FORWARD_TOLERANCE = 1e-5
PIXEL_TOLERANCE = 2
WIDTH, HEIGHT, STEPS = 96, 64, 4
CLASSES = {"fill": FluxFillPipeline, "canny": FluxControlPipeline, "depth": FluxControlPipeline}


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded twice in float32."""

    ours: FluxPipeline
    theirs: DiffusionPipeline


@pytest.fixture(scope="module")
def pairs(tiny_checkpoint: MakeCheckpoint) -> dict[str, Pair]:
    made = {}
    for variant, theirs in CLASSES.items():
        folder = tiny_checkpoint(variant)
        pipe = theirs.from_pretrained(folder, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        pipe.vae.encode = _mean_of(pipe.vae.encode)
        made[variant] = Pair(FluxPipeline.from_pretrained(str(folder), device="cpu", dtype="float32"), pipe)
    return made


def _mean_of(encode):
    """An autoencoder's `encode` whose distribution has its mean alone."""

    def mean(pixels: Tensor) -> SimpleNamespace:
        found = encode(pixels).latent_dist.mean
        return SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda generator=None: found, mode=lambda: found))

    return mean


def photo(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Smooth colours with a bright disc, so that it has edges."""
    y, x = np.mgrid[0:height, 0:width]
    disc = (x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2
    levels = np.stack([x * 255 / width, y * 255 / height, np.where(disc, 255, 40)], axis=-1)
    return Image.fromarray(levels.astype(np.uint8))


def mask(width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """Transparent in a part that is no whole number of latents."""
    drawn = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    drawn.paste((0, 0, 0, 0), (width // 3, height // 4 + 3, width, height - 7))
    return drawn


def ask(pair: Pair, seed: int, **options) -> GenerationRequest:
    inputs = read_inputs(photo(), options.pop("mask", None))
    steps = options.pop("num_inference_steps", STEPS)
    return complete_request(pair.ours.card, "a red cat", inputs=inputs, num_inference_steps=steps, seed=seed, **options)


def pixels_of(pair: Pair, request: GenerationRequest) -> np.ndarray:
    (image,) = pair.ours.run(request)
    return np.asarray(Image.open(io.BytesIO(image.data)), dtype=int)


def draw_theirs(pair: Pair, request: GenerationRequest, **pictures) -> np.ndarray:
    latents = pair.ours.latents.noise(request.seeds[0], (request.height // 8, request.width // 8))
    drawn = pair.theirs(
        request.prompt,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        max_sequence_length=request.max_sequence_length,
        latents=latents[None],
        output_type="np",
        **pictures,
    ).images[0]
    return np.rint(drawn * 255).astype(int)


@pytest.mark.parametrize("variant", CLASSES)
@torch.inference_mode()
def test_a_step_equals_diffusers(pairs: dict[str, Pair], variant: str) -> None:
    pair, rows, columns, text_tokens = pairs[variant], 4, 6, 12
    model, theirs = pair.ours.networks.model, pair.theirs.transformer
    generator = torch.Generator().manual_seed(3)
    flux = model.denoiser.params
    latents = torch.randn(2, rows * columns, flux.out_channels, generator=generator)
    channels = torch.randn(2, rows * columns, flux.in_channels - flux.out_channels, generator=generator)
    text = torch.randn(2, text_tokens, flux.context_in_dim, generator=generator)
    pooled, t = torch.randn(2, flux.vec_in_dim, generator=generator), torch.tensor([0.7, 0.2])
    guidance = torch.tensor([30.0, 30.0])
    expected = theirs(
        hidden_states=torch.cat([latents, channels], dim=2),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=t,
        guidance=guidance,
        img_ids=pair.theirs._prepare_latent_image_ids(2, rows, columns, torch.device("cpu"), torch.float32),
        txt_ids=torch.zeros(text_tokens, 3),
        return_dict=False,
    )[0]
    table = model.positions(text_tokens, [(2 * rows, 2 * columns)])
    inputs = StepInputs(latents, text, model.denoiser.modulation(t, guidance, pooled), table, channels=channels)
    assert (model.velocity(inputs) - expected).abs().max() <= FORWARD_TOLERANCE
    assert expected.std() > 0.1


@pytest.mark.parametrize("seed", [1, 2])
def test_fill_repaints_as_diffusers_does(pairs: dict[str, Pair], seed: int) -> None:
    pair = pairs["fill"]
    request = ask(pair, seed, mask=mask())
    repaint = np.asarray(mask())[:, :, 3] == 0
    theirs = draw_theirs(pair, request, image=photo(), mask_image=Image.fromarray(repaint.astype(np.uint8) * 255))
    ours = pixels_of(pair, request)
    assert ours.shape == theirs.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(ours - theirs)[repaint].max() <= PIXEL_TOLERANCE
    assert np.array_equal(ours[~repaint], np.asarray(photo(), dtype=int)[~repaint])
    assert ours[repaint].std() > 5


@pytest.mark.parametrize("variant", ["canny", "depth"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_map_leads_as_in_diffusers(pairs: dict[str, Pair], variant: str, seed: int) -> None:
    pair = pairs[variant]
    request = ask(pair, seed)
    ours, theirs = pixels_of(pair, request), draw_theirs(pair, request, control_image=photo())
    assert ours.shape == theirs.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(ours - theirs).max() <= PIXEL_TOLERANCE
    assert ours.std() > 5


def test_a_canny_map_is_made_of_the_photo_at_the_size_drawn(pairs: dict[str, Pair]) -> None:
    cv2 = pytest.importorskip("cv2")
    pair = pairs["canny"]
    request = ask(pair, 1, control="canny", width=64, height=48 + 16)
    small = np.asarray(photo().resize((64, 64), Image.Resampling.LANCZOS))
    edges = np.repeat(cv2.Canny(small, 50, 200)[:, :, None], 3, axis=2)
    assert 0 < (edges == 255).mean() < 0.5
    theirs = draw_theirs(pair, request, control_image=Image.fromarray(edges))
    assert np.abs(pixels_of(pair, request) - theirs).max() <= PIXEL_TOLERANCE


def test_what_a_map_or_a_mask_holds_changes_the_picture(pairs: dict[str, Pair]) -> None:
    """The channels are read: other pictures, other results."""
    for variant, given in {"fill": {"mask": mask()}, "depth": {}}.items():
        pair = pairs[variant]
        (one,) = pair.ours.begin(ask(pair, 1, **given))
        other = complete_request(
            pair.ours.card,
            "a red cat",
            inputs=read_inputs(Image.new("RGB", (WIDTH, HEIGHT), "navy"), given.get("mask")),
        )
        (another,) = pair.ours.begin(other)
        assert (one.given.channels - another.given.channels).abs().max() > 0.1


def test_a_model_that_fills_starts_from_noise_unless_a_strength_is_given(pairs: dict[str, Pair]) -> None:
    pair = pairs["fill"]
    (whole,) = pair.ours.begin(ask(pair, 1, mask=mask()))
    (half,) = pair.ours.begin(ask(pair, 1, mask=mask(), strength=0.5))
    assert whole.steps == STEPS
    assert half.steps == STEPS // 2
    assert torch.equal(whole.latents, pair.ours.latents.noise(1, (HEIGHT // 8, WIDTH // 8)))
    assert whole.inpaint is half.inpaint is None


@pytest.mark.parametrize("variant", CLASSES)
def test_plans_at_three_budgets_draw_one_picture(
    pairs: dict[str, Pair], tiny_checkpoint: MakeCheckpoint, variant: str
) -> None:
    """All resident, some blocks streamed, all of them; the wider input is counted."""
    whole = pairs[variant].ours
    sizes = whole.blueprint.sizes()
    columns = {"fill": 320}.get(variant, 64)  # beyond dev's
    dev = FluxPipeline.from_pretrained(str(tiny_checkpoint("dev")), device="cpu", dtype="float32").blueprint.sizes()
    assert sizes.small - dev.small == columns * TINY.transformer.hidden_size * 4
    drawn = []
    for budget in three_budgets(whole.blueprint):
        ours = FluxPipeline.from_pretrained(
            str(tiny_checkpoint(variant)), device="cpu", dtype="float32", memory_budget=budget
        )
        pair = Pair(ours, pairs[variant].theirs)
        drawn.append(
            (len(ours.plan.resident), pixels_of(pair, ask(pair, 5, **({"mask": mask()} if variant == "fill" else {}))))
        )
    assert [count for count, _ in drawn] == sorted({count for count, _ in drawn})
    assert drawn[0][0] == 0
    assert drawn[-1][0] == len(sizes.blocks)
    for _, picture in drawn[:-1]:
        assert np.array_equal(picture, drawn[-1][1])


def three_budgets(blueprint: Blueprint) -> tuple[int, int, int]:
    """For all blocks streamed, for some, for none."""
    least, blocks = blueprint.plan("stream", 1).peak_bytes, blueprint.sizes().blocks
    between = range(least, least + 2 * sum(blocks), min(blocks) // 4)
    some = next(budget for budget in between if 0 < len(blueprint.plan("auto", budget).resident) < len(blocks))
    return least, some, 2**34


def test_defaults_of_each(pairs: dict[str, Pair]) -> None:
    told = {name: (pair.ours.card.steps["medium"], pair.ours.card.guidance_scale) for name, pair in pairs.items()}
    assert told == {"fill": (50, 30.0), "canny": (50, 30.0), "depth": (50, 10.0)}


@pytest.mark.parametrize(
    ("variant", "image", "mask_given", "options", "param"),
    [
        ("fill", None, False, {}, "image"),
        ("fill", photo(), False, {}, "mask"),
        ("fill", photo(), True, {"control": "canny"}, "control"),
        ("canny", None, False, {}, "image"),
        ("canny", photo(), True, {}, "mask"),
        ("canny", photo(), False, {"control": "depth"}, "control"),
        ("depth", photo(), False, {"control": "canny"}, "control"),
    ],
)
def test_what_each_does_not_take_is_refused(
    pairs: dict[str, Pair], variant: str, image: Image.Image | None, mask_given: bool, options: dict, param: str
) -> None:
    inputs = read_inputs(image, mask() if mask_given else None)
    with pytest.raises(InvalidRequest) as refused:
        complete_request(pairs[variant].ours.card, "a cat", inputs=inputs, **options)
    assert refused.value.param == param
