"""FLUX.1 Redux against diffusers' FluxPriorReduxPipeline and FluxPipeline: pictures as prompts, on dev and schnell."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline as DiffusersPipeline
from diffusers import FluxPriorReduxPipeline
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from PIL import Image
from safetensors.torch import save_file
from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from fluxserve.completion import complete_request
from fluxserve.errors import CheckpointError, ConfigError, InvalidRequest
from fluxserve.input_images import read_inputs
from fluxserve.models.family import SeenPicture
from fluxserve.models.flux1 import redux
from fluxserve.models.flux1.redux import REDUX, SIGLIP, ReduxParams, SiglipParams
from fluxserve.pipeline.images import to_tensor
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.request import GenerationRequest
from fluxserve.weights.files.identify import components
from tests.conftest import MakeCheckpoint
from tests.pipeline.test_picture_channels import photo, three_budgets
from tests.weights.stored_files import ListedReader

FORWARD_TOLERANCE, PIXEL_TOLERANCE = 1e-5, 2
SIDE, WIDTH, IMAGE_WIDTH = 56, 40, 32
LENGTH = 64  # text tokens
VARIANTS = ("dev", "schnell")


@pytest.fixture(scope="session")
def redux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_redux(tmp_path_factory.mktemp("redux") / "FLUX.1-Redux-dev")


def write_redux(folder: Path) -> Path:
    """A small one, as diffusers and transformers write it."""
    torch.manual_seed(4)
    siglip = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=IMAGE_WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=SIDE,
            patch_size=14,
        )
    )
    embedder = ReduxImageEncoder(redux_dim=IMAGE_WIDTH, txt_in_features=WIDTH)
    for network in (siglip, embedder):
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    processor = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    FluxPriorReduxPipeline(siglip, processor, embedder).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Pair:
    """One checkpoint, loaded twice in float32; prior: diffusers' Redux, with the text encoders."""

    ours: FluxPipeline
    theirs: DiffusersPipeline
    prior: FluxPriorReduxPipeline


@pytest.fixture(scope="module")
def pairs(tiny_checkpoint: MakeCheckpoint, redux_folder: Path) -> dict[str, Pair]:
    made = {}
    for variant in VARIANTS:
        folder = tiny_checkpoint(variant)
        theirs = DiffusersPipeline.from_pretrained(folder, dtype=torch.float32)
        theirs.set_progress_bar_config(disable=True)
        prior = FluxPriorReduxPipeline.from_pretrained(
            redux_folder,
            text_encoder=theirs.text_encoder,
            text_encoder_2=theirs.text_encoder_2,
            tokenizer=theirs.tokenizer,
            tokenizer_2=theirs.tokenizer_2,
            dtype=torch.float32,
        )
        ours = FluxPipeline.from_pretrained(str(folder), device="cpu", dtype="float32", redux=str(redux_folder))
        made[variant] = Pair(ours, theirs, prior)
    return made


def pictures() -> list[Image.Image]:
    """Of other sizes and proportions than the encoder's square."""
    return [photo(96, 64), Image.fromarray(np.asarray(photo(80, 144))[::-1])]


def ask(pair: Pair, prompt: str, images: list[Image.Image], seed: int, **options) -> GenerationRequest:
    return complete_request(
        pair.ours.card,
        prompt,
        inputs=read_inputs(images),
        width=96,
        height=64,
        num_inference_steps=3,
        seed=seed,
        max_sequence_length=LENGTH,
        **options,
    )


@torch.inference_mode()
def draw_theirs(pair: Pair, request: GenerationRequest, images: list[Image.Image]) -> np.ndarray:
    """The prior always pads text to 512, and the tiny model's widths are not its own: both embeddings are given."""
    if request.prompt:
        states, pooled, _ = pair.theirs.encode_prompt(request.prompt, None, max_sequence_length=LENGTH)
    else:
        states, pooled = torch.zeros(1, LENGTH, WIDTH), torch.zeros(1, 24)
    count, weights = len(images), list(request.redux)
    made = pair.prior(
        images,
        prompt_embeds=states.repeat(count, 1, 1),
        pooled_prompt_embeds=pooled.repeat(count, 1),
        prompt_embeds_scale=weights,
        pooled_prompt_embeds_scale=weights,
    )
    drawn = pair.theirs(
        **made,
        width=request.width,
        height=request.height,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale or 0.0,
        true_cfg_scale=request.true_cfg_scale,
        negative_prompt=request.negative_prompt if request.true_cfg_scale > 1 else None,
        max_sequence_length=LENGTH,
        generator=torch.Generator().manual_seed(request.seeds[0]),
        output_type="np",
    ).images[0]
    return np.rint(drawn * 255).astype(int)


def draw_ours(pair: Pair, request: GenerationRequest) -> np.ndarray:
    (image,) = pair.ours.run(request)
    return np.asarray(Image.open(io.BytesIO(image.data)), dtype=int)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_tokens_equal_diffusers(pairs: dict[str, Pair], variant: str) -> None:
    pair, image = pairs[variant], pictures()[0]
    square = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    tokens = pair.ours.networks.model.reader.read([SeenPicture(to_tensor(square), 1.0)], lambda: None)
    expected = pair.prior.image_embedder(pair.prior.encode_image(image, "cpu", 1)).image_embeds[0]
    assert tokens.shape == expected.shape == ((SIDE // 14) ** 2, WIDTH)
    assert (tokens - expected).abs().max() <= FORWARD_TOLERANCE * expected.abs().max()
    assert expected.std() > 0.1


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [5, 6])
def test_a_variation_equals_diffusers(pairs: dict[str, Pair], variant: str, seed: int) -> None:
    pair, images = pairs[variant], pictures()[:1]
    request = ask(pair, "", images, seed)
    assert request.redux == (1.0,)
    assert (request.image, request.strength) == (None, 1.0)
    ours = draw_ours(pair, request)
    assert np.abs(ours - draw_theirs(pair, request, images)).max() <= PIXEL_TOLERANCE
    assert ours.std() > 5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.3, 0.9)])
def test_several_pictures_with_weights_and_a_prompt_equal_diffusers(
    pairs: dict[str, Pair], variant: str, weights: tuple[float, ...]
) -> None:
    pair, images = pairs[variant], pictures()
    request = ask(pair, "a red cat", images, 7, redux=weights)
    ours = draw_ours(pair, request)
    assert np.abs(ours - draw_theirs(pair, request, images)).max() <= PIXEL_TOLERANCE
    turned = draw_ours(pair, ask(pair, "a red cat", images, 7, redux=weights[::-1]))
    assert np.abs(ours - turned).max() > 5


@pytest.mark.parametrize(("variant", "seed"), [("dev", 7), ("schnell", 8)])
def test_a_negative_prompt_sees_no_picture_as_in_diffusers(pairs: dict[str, Pair], variant: str, seed: int) -> None:
    """Its states are fewer than those of the prompt and the pictures."""
    pair, images = pairs[variant], pictures()
    options = {"redux": (1.0, 0.5), "true_cfg_scale": 3.0}
    request = ask(pair, "a red cat", images, seed, negative_prompt="grey, blurred", **options)
    ours = draw_ours(pair, request)
    assert np.abs(ours - draw_theirs(pair, request, images)).max() <= PIXEL_TOLERANCE
    assert np.abs(ours - draw_ours(pair, ask(pair, "a red cat", images, seed, **options))).max() > 2


def test_edits_without_weights_start_from_their_picture(pairs: dict[str, Pair]) -> None:
    request = ask(pairs["dev"], "a red cat", pictures()[:1], 1)
    assert request.image is not None
    assert (request.redux, request.references, request.strength) == ((), (), 0.75)


@pytest.mark.behaviour(89)
def test_a_mask_is_never_dropped(pairs: dict[str, Pair]) -> None:
    card, clear = pairs["dev"].ours.card, photo().convert("RGBA")
    clear.putpixel((0, 0), (0, 0, 0, 0))
    hole = Image.new("RGBA", clear.size, (0, 0, 0, 0))
    for picture in (photo(), clear):
        masked = read_inputs(picture, hole)
        with pytest.raises(InvalidRequest, match="mask is not taken"):
            complete_request(card, "a cat", inputs=masked, redux=[1.0])
        request = complete_request(card, "", inputs=masked)
        assert (request.redux, request.mask is not None) == ((), True)
    assert complete_request(card, "a cat", inputs=read_inputs(clear), redux=[1.0]).mask is None
    assert complete_request(card, "", inputs=read_inputs(clear)).redux == (1.0,)


def test_a_picture_is_seen_once(pairs: dict[str, Pair]) -> None:
    pair = pairs["schnell"]
    request = ask(pair, "", pictures()[:1], 9)
    pair.ours.conditioner.forget()
    assert [pair.ours.begin(request)[0].cond.cached for _ in range(2)] == [False, True]
    other = ask(pair, "", pictures()[1:], 9)
    assert not pair.ours.begin(other)[0].cond.cached


@pytest.mark.parametrize(
    ("images", "options", "param"),
    [
        (2, {"redux": [1.0]}, "redux"),
        (1, {"redux": [1.0, 1.0]}, "redux"),
        (0, {"redux": [1.0]}, "redux"),
        (1, {"redux": [5.0]}, "redux"),
        (1, {"redux": ["much"]}, "redux"),
        (9, {"redux": [1.0] * 9}, "image"),
        (2, {}, "image"),
    ],
)
def test_what_it_does_not_take_is_refused(pairs: dict[str, Pair], images: int, options: dict, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(pairs["dev"], "a cat", [photo()] * images, 1, **options)
    assert refused.value.param == param


def test_without_an_image_encoder_weights_are_refused(tiny_checkpoint: MakeCheckpoint) -> None:
    card = FluxPipeline.from_pretrained(str(tiny_checkpoint()), device="cpu").card
    with pytest.raises(InvalidRequest, match="--redux"):
        complete_request(card, "a cat", inputs=read_inputs(photo()), redux=[1.0])


def test_plans_at_three_budgets_draw_one_picture(tiny_checkpoint: MakeCheckpoint, redux_folder: Path) -> None:
    model, given = str(tiny_checkpoint("schnell")), {"device": "cpu", "dtype": "float32"}
    plain = FluxPipeline.from_pretrained(model, **given).blueprint
    whole = FluxPipeline.from_pretrained(model, redux=str(redux_folder), **given).blueprint
    networks = [whole.build(whole.plan("none", None), lambda *_: None).model.reader]
    own = sum(t.nbytes for reader in networks for n in (reader._siglip, reader._embedder) for t in n.parameters())
    assert 0 < own <= whole.sizes().total - plain.sizes().total < own + 1024  # aligned
    works = [blueprint.plan("none", None).work.text_tokens for blueprint in (plain, whole)]
    assert works[1] - works[0] == (SIDE // 14) ** 2
    drawn, resident = set(), []
    for budget in three_budgets(whole):
        ours = FluxPipeline.from_pretrained(model, redux=str(redux_folder), memory_budget=budget, **given)
        resident.append(len(ours.plan.resident))
        drawn.add(ours.generate(image=photo(), seed=2, num_inference_steps=2, width=64, height=64)[0].data)
    assert resident == sorted(set(resident))
    assert len(drawn) == 1


def test_names_are_those_of_the_published_files() -> None:
    """google/siglip-so400m-patch14-384 as Redux-dev and ComfyUI hold it, and BFL's flux1-redux-dev: none is left."""
    siglip = SiglipParams(1152, 4304, 27, 16, 14, 384)
    params = ReduxParams(siglip, 1152, 12288, 4096)
    with torch.device("meta"):
        published = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=1152,
                intermediate_size=4304,
                num_hidden_layers=27,
                num_attention_heads=16,
                image_size=384,
                patch_size=14,
            )
        )
    stored = {f"vision_model.{key}": tuple(tensor.shape) for key, tensor in published.state_dict().items()}
    assert len(stored) == 448
    assert stored["vision_model.embeddings.position_embedding.weight"] == (729, 1152)
    embedder = {
        "redux_up.weight": (12288, 1152),
        "redux_up.bias": (12288,),
        "redux_down.weight": (4096, 12288),
        "redux_down.bias": (4096,),
    }
    found = components(ListedReader(stored)) | components(ListedReader(embedder))
    shapes = redux.shapes(params)
    for part in (SIGLIP, REDUX):
        assert {key: found[part].shape(key) for key in found[part].keys()} == shapes[part.name]
    assert redux.redux_params(found[SIGLIP], {}, found[REDUX]) == params


def test_single_files_side_by_side_serve_too(
    tiny_checkpoint: MakeCheckpoint, redux_folder: Path, tmp_path: Path
) -> None:
    """As ComfyUI keeps them, with the names' prefix."""
    from safetensors.torch import load_file

    tensors = load_file(redux_folder / "image_encoder" / "model.safetensors")
    save_file({f"vision_model.{key}": t for key, t in tensors.items()}, tmp_path / "sigclip.safetensors")
    (tmp_path / "sigclip.json").write_bytes((redux_folder / "image_encoder" / "config.json").read_bytes())
    embedder = load_file(redux_folder / "image_embedder" / "diffusion_pytorch_model.safetensors")
    save_file(embedder, tmp_path / "flux1-redux-dev.safetensors")
    model = str(tiny_checkpoint("schnell", "bfl"))
    drawn = [
        FluxPipeline.from_pretrained(model, device="cpu", dtype="float32", redux=str(where))
        .generate(image=photo(), seed=1, num_inference_steps=2, width=64, height=64)[0]
        .data
        for where in (redux_folder, tmp_path / "flux1-redux-dev.safetensors", tmp_path)
    ]
    assert drawn[0] == drawn[1] == drawn[2]


def test_what_is_no_redux_is_refused(tiny_checkpoint: MakeCheckpoint, redux_folder: Path) -> None:
    model = tiny_checkpoint()
    lacking = {model: "no SigLIP image encoder, no FLUX.1 Redux", redux_folder / "image_encoder": "no FLUX.1 Redux"}
    for given, says in lacking.items():
        with pytest.raises(CheckpointError, match=says):
            FluxPipeline.from_pretrained(str(model), device="cpu", redux=str(given))
    with pytest.raises(ConfigError, match="--redux goes with models that draw from a prompt"):
        FluxPipeline.from_pretrained(str(tiny_checkpoint("fill")), device="cpu", redux=str(redux_folder))
    with pytest.raises(CheckpointError, match="takes no image encoder"):
        FluxPipeline.from_pretrained(str(tiny_checkpoint("klein")), device="cpu", redux=str(redux_folder))
    with pytest.raises(CheckpointError, match="describes a FluxPriorReduxPipeline"):
        FluxPipeline.from_pretrained(str(redux_folder), device="cpu")
