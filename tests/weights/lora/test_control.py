"""Control LoRAs as BFL publishes them: all Linears with biases, a wider input, norms replaced; equal to diffusers."""

from __future__ import annotations

import inspect
import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxControlPipeline
from diffusers.loaders import lora_conversion_utils
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.completion import complete_request
from fluxserve.errors import CheckpointError
from fluxserve.input_images import read_inputs
from fluxserve.models.flux1.names import linear_parts, norm_parts
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.sizes import TINY
from fluxserve.models.lora_target import linears
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.weights.files.identify import components
from fluxserve.weights.files.safetensors_file import SafetensorsFile
from fluxserve.weights.synthetic.write import write_model
from tests.conftest import MakeCheckpoint
from tests.pipeline.test_picture_channels import HEIGHT, WIDTH, _mean_of, photo, three_budgets
from tests.weights.stored_files import rewrite

PIXEL_TOLERANCE = 2
RANK = 8
DEPTH, SINGLE_DEPTH, HIDDEN = TINY.transformer.depth, TINY.transformer.depth_single_blocks, TINY.transformer.hidden_size


def control_lora(columns: int = 128) -> dict[str, Tensor]:
    """A small one in BFL's names, for the tiny dev."""
    generator = torch.Generator().manual_seed(11)
    shapes = transformer_shapes(replace(TINY.transformer, guidance_embed=True, in_channels=columns))
    tensors: dict[str, Tensor] = {}
    for linear, (rows, inputs) in linears(shapes).items():
        rank = min(RANK, rows, inputs)
        tensors[f"{linear}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        tensors[f"{linear}.lora_B.weight"] = 0.2 * torch.randn(rows, rank, generator=generator)
        tensors[f"{linear}.lora_B.bias"] = 0.1 * torch.randn(rows, generator=generator)
    for norm in norm_parts(DEPTH, SINGLE_DEPTH):
        scale = shapes[f"{norm}.scale"]
        tensors[f"{norm}.scale"] = 1 + 0.3 * torch.randn(scale, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("control") / "flux1-depth-dev-lora.safetensors"
    save_file(control_lora(), path)
    return path


def converted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """By diffusers' own conversion, which holds the published sizes as numbers of its source.

    It exchanges the halves of the last modulation in lora_B, as it must, and in lora_A, whose halves are ranks: that
    one is put back, or the product would be another.
    """
    source = inspect.getsource(lora_conversion_utils._convert_bfl_flux_control_lora_to_diffusers)
    for name, size, here in (
        ("num_layers", "19", DEPTH),
        ("num_single_layers", "38", SINGLE_DEPTH),
        ("inner_dim", "3072", HIDDEN),
    ):
        assert source.count(f"    {name} = {size}\n") == 1
        source = source.replace(f"    {name} = {size}\n", f"    {name} = {here}\n")
    scope = vars(lora_conversion_utils).copy()
    exec(compile(source, "converted", "exec"), scope)
    made = scope["_convert_bfl_flux_control_lora_to_diffusers"](dict(tensors))
    last = "final_layer.adaLN_modulation.1.lora_A.weight"
    return made | {"transformer.norm_out.linear.lora_A.weight": tensors[last]}


@pytest.fixture(scope="module")
def dev_in_float32(tiny_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dev with a transformer in float32: a change that is merged keeps its weights' dtype."""
    folder = Path(shutil.copytree(tiny_checkpoint("dev"), tmp_path_factory.mktemp("float32") / "dev"))
    rewrite(
        folder / "transformer" / "diffusion_pytorch_model.safetensors",
        lambda tensors: tensors.update({key: tensor.float() for key, tensor in tensors.items()}),
    )
    return folder


@pytest.fixture(scope="module")
def theirs(dev_in_float32: Path) -> FluxControlPipeline:
    pipe = FluxControlPipeline.from_pretrained(dev_in_float32, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.vae.encode = _mean_of(pipe.vae.encode)
    pipe.load_lora_weights(converted(control_lora()), adapter_name="control")
    return pipe


@pytest.mark.parametrize(("given", "strength"), [("", 0.85), (":0.85", 0.85), (":0.4", 0.4)])
@pytest.mark.parametrize("seed", [3, 4])
def test_it_makes_the_control_model_that_diffusers_makes(
    dev_in_float32: Path,
    theirs: FluxControlPipeline,
    lora_file: Path,
    given: str,
    strength: float,
    seed: int,
) -> None:
    ours = FluxPipeline.from_pretrained(
        str(dev_in_float32), device="cpu", dtype="float32", loras=[f"{lora_file}{given}"]
    )
    assert (ours.card.variant, ours.card.picture, ours.card.guidance_scale) == ("depth", "control", 10.0)
    request = complete_request(
        ours.card, "a cat", inputs=read_inputs(photo()), num_inference_steps=3, seed=seed, max_sequence_length=64
    )
    theirs.set_adapters("control", strength)
    expected = theirs(
        "a cat",
        control_image=photo(),
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=3,
        guidance_scale=10.0,
        max_sequence_length=64,
        latents=ours.latents.noise(seed, (HEIGHT // 8, WIDTH // 8))[None],
        output_type="np",
    ).images[0]
    (image,) = ours.run(request)
    drawn = np.asarray(Image.open(io.BytesIO(image.data)), dtype=int)
    assert np.abs(drawn - np.rint(expected * 255)).max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("name", ["flux1-canny-dev-lora", "flux1-depth-dev-lora"])
def test_plans_at_three_budgets_draw_one_picture(
    tiny_checkpoint: MakeCheckpoint, lora_file: Path, tmp_path: Path, name: str
) -> None:
    """All blocks streamed, some, none; what it replaces and widens is counted."""
    lora = Path(shutil.copy(lora_file, tmp_path / f"{name}.safetensors"))
    options = {"device": "cpu", "dtype": "float32", "loras": (str(lora),)}
    whole = FluxPipeline.from_pretrained(str(tiny_checkpoint("dev")), **options)
    assert whole.card.variant == name.split("-")[1]
    drawn = []
    for budget in three_budgets(whole.blueprint):
        ours = FluxPipeline.from_pretrained(str(tiny_checkpoint("dev")), memory_budget=budget, **options)
        request = complete_request(
            ours.card, "a cat", inputs=read_inputs(photo()), num_inference_steps=3, seed=5, max_sequence_length=64
        )
        (image,) = ours.run(request)
        drawn.append((len(ours.plan.resident), image.data))
        assert ours.plan.peak_bytes <= budget
    blocks = len(whole.blueprint.sizes().blocks)
    assert [count for count, _ in drawn] == [0, drawn[1][0], blocks]
    assert 0 < drawn[1][0] < blocks
    assert drawn[0][1] == drawn[1][1] == drawn[2][1]


def test_published_names_are_all_taken(dev_in_float32: Path, lora_file: Path, tmp_path: Path) -> None:
    """BFL's and diffusers' spellings change the same tensors."""
    save_file(
        {k: t.contiguous() for k, t in converted(control_lora()).items()},
        tmp_path / "a-depth.safetensors",
    )
    one, other = (
        FluxPipeline.from_pretrained(str(dev_in_float32), device="cpu", dtype="float32", loras=[str(path)])
        for path in (lora_file, tmp_path / "a-depth.safetensors")
    )
    expected = one.networks.model.denoiser.state_dict()
    assert expected["img_in.weight"].shape == (HIDDEN, 128)
    for key, tensor in other.networks.model.denoiser.state_dict().items():
        assert torch.allclose(tensor, expected[key], atol=1e-6), key
    assert len(linear_parts(DEPTH, SINGLE_DEPTH)) * 3 + len(norm_parts(DEPTH, SINGLE_DEPTH)) == len(control_lora())


def test_the_original_input_is_unchanged_at_no_strength(tiny_checkpoint: MakeCheckpoint, lora_file: Path) -> None:
    """Padded with zeros: what the map holds then means nothing."""
    model = str(tiny_checkpoint("dev", "bfl"))
    plain = FluxPipeline.from_pretrained(model, device="cpu", dtype="float32").networks.model.denoiser.img_in.weight
    made = FluxPipeline.from_pretrained(model, device="cpu", dtype="float32", loras=[f"{lora_file}:0"])
    weight = made.networks.model.denoiser.img_in.weight
    assert torch.equal(weight[:, :64], plain)
    assert not weight[:, 64:].any()


@pytest.mark.parametrize("packing", ["fp8", "q4_0"])
def test_packed_models_take_it_beside_their_matrices(lora_file: Path, tmp_path: Path, packing: str) -> None:
    """The same change, with biases, in a side branch: as on the same weights unpacked."""
    write_model(tmp_path / "model", "tiny", "dev", "bfl", seed=1, packing=packing)
    made = FluxPipeline.from_pretrained(
        str(tmp_path / "model"), device="cpu", dtype="float32", loras=[str(lora_file)], storage="native"
    )
    assert made.card.picture == "control"
    assert np.asarray(made.generate("a cat", image=photo(), num_inference_steps=2, seed=1).images).size


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda t: t.update({"img_in.lora_B.bias": torch.ones(3)}),
            r"img_in.lora_B.bias is \(3,\), this model takes \(64,\)",
        ),
        (
            lambda t: t.update({"single_blocks.0.norm.key_norm.scale": torch.ones(5)}),
            r"key_norm.scale \(5,\), it is \(16,\)",
        ),
        (lambda t: t.update({"single_blocks.9.norm.key_norm.scale": torch.ones(16)}), "no place for: single_blocks.9"),
        (lambda t: t.update({"img_in.lora_A.weight": torch.ones(RANK, 96)}), "96 input channels"),
        (lambda t: t.update({"img_in.lora_A.weight": torch.ones(RANK, 32)}), r"takes \(rank, 64\)"),
        (lambda t: t.update({"single_blocks.0.norm.key_norm.scale": torch.full((16,), torch.nan)}), "not all finite"),
        (lambda t: t.update({"img_in.bias": torch.ones(64)}), "img_in.bias is a change of a bias"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    tiny_checkpoint: MakeCheckpoint, tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    tensors = control_lora()
    edit(tensors)
    save_file(tensors, tmp_path / "canny.safetensors")
    with pytest.raises(CheckpointError, match=says):
        FluxPipeline.from_pretrained(
            str(tiny_checkpoint("dev", "bfl")), device="cpu", loras=[str(tmp_path / "canny.safetensors")]
        )


def test_where_it_has_no_place_it_is_refused(tiny_checkpoint: MakeCheckpoint, lora_file: Path) -> None:
    two = [str(lora_file), str(lora_file)]
    for variant, options, says in (
        ("schnell", {"loras": two[:1]}, "takes no guidance"),
        ("klein", {"loras": two[:1]}, "no place for"),
        ("dev", {"loras": two}, "one at a time"),
        ("dev", {"lora_dir": str(lora_file.parent)}, "give it with --lora at the start"),
    ):
        with pytest.raises(CheckpointError, match=says):
            FluxPipeline.from_pretrained(str(tiny_checkpoint(variant)), device="cpu", **options)


def test_alone_it_is_called_what_it_is(lora_file: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a control LoRA \(Canny or Depth\) with FLUX.1's names, .* --lora"):
        components(SafetensorsFile(lora_file))


def test_a_plain_lora_may_have_biases(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    """peft's lora_bias: merged at the start, and beside the weights in a request."""
    tensors = {k: t for k, t in control_lora(64).items() if not k.endswith(".scale") and "blocks.1." in k}
    save_file(tensors, tmp_path / "style.safetensors")
    model = str(tiny_checkpoint("dev", "bfl"))
    merged = FluxPipeline.from_pretrained(model, device="cpu", dtype="float32", loras=[f"{tmp_path}/style.safetensors"])
    beside = FluxPipeline.from_pretrained(model, device="cpu", dtype="float32", lora_dir=str(tmp_path))
    drawn = [
        pipeline.generate("a cat", seed=1, width=64, height=64, num_inference_steps=2, loras=loras)
        for pipeline, loras in ((merged, ()), (beside, ("style",)), (beside, ()))
    ]
    one, other, without = (np.asarray(Image.open(io.BytesIO(g[0].data)), dtype=int) for g in drawn)
    assert np.abs(one - other).max() <= PIXEL_TOLERANCE
    assert np.abs(one - without).max() > 10
