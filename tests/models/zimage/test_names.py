"""Names and shapes of Z-Image at full size, in every spelling, and how its models are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file

from fluxserve.errors import CheckpointError
from fluxserve.models.companions.qwen3 import PREFIX, qwen3_params, qwen3_shapes
from fluxserve.models.family import Component, Told
from fluxserve.models.flux2.family import QWEN3 as KLEINS_QWEN3
from fluxserve.models.sizes import Config
from fluxserve.models.zimage import dimensions
from fluxserve.models.zimage.family import AUTOENCODER, QWEN3, TRANSFORMER, ZIMAGE_FAMILY, ZImageArchitecture
from fluxserve.models.zimage.sizes import FULL, Z_IMAGE
from fluxserve.models.zimage.synthetic import transformer_config
from fluxserve.tensors.reader import Shapes
from fluxserve.weights.files.identify import components
from tests.conftest import MakeCheckpoint
from tests.weights.stored_files import ListedReader, listed, open_quietly

SHAPES = ZImageArchitecture(FULL).shapes()
SINGLE_FILE = {**SHAPES["transformer"], "x_pad_token": (1, 3840), "cap_pad_token": (1, 3840)}


@pytest.fixture(scope="module")
def stored_by_diffusers() -> Shapes:
    with torch.device("meta"):
        model = ZImageTransformer2DModel.from_config(transformer_config(Z_IMAGE, 16))
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def test_the_single_files_names_are_those_that_diffusers_converts(stored_by_diffusers: Shapes) -> None:
    tensors = {key: torch.empty(shape, device="meta") for key, shape in SINGLE_FILE.items()}
    converted = convert_z_image_transformer_checkpoint_to_diffusers(tensors)
    assert {key: tuple(tensor.shape) for key, tensor in converted.items()} == stored_by_diffusers


def test_the_transformers_names_are_complete(stored_by_diffusers: Shapes) -> None:
    assert (len(SINGLE_FILE), len(stored_by_diffusers)) == (453, 521)
    vectors = {**SINGLE_FILE, "x_pad_token": (3840,), "cap_pad_token": (3840,)}
    comfyui = {f"model.diffusion_model.{key}": shape for key, shape in SINGLE_FILE.items()}
    for names in (SINGLE_FILE, vectors, comfyui, {**SINGLE_FILE, "norm_final.weight": (3840,)}, stored_by_diffusers):
        reader = components(ListedReader(dict(names)))[TRANSFORMER]  # refuses what is missing or left over
        assert {key: reader.shape(key) for key in reader.keys()} == SHAPES["transformer"]
        assert dimensions.transformer_params(reader, {}) == Z_IMAGE


def test_parameters_are_as_many_as_published() -> None:
    assert sum(torch.Size(shape).numel() for shape in SHAPES["transformer"].values()) == 6_154_908_736


def test_of_qwen3_the_last_layer_is_not_read() -> None:
    stored = qwen3_shapes(replace(FULL.qwen3, num_layers=36)) | {"norm.weight": (2560,)}
    named = {PREFIX + key: shape for key, shape in stored.items()} | {"lm_head.weight": stored["embed_tokens.weight"]}
    found = components(ListedReader(named))
    reader = found[QWEN3]
    assert {key: reader.shape(key) for key in reader.keys()} == SHAPES["qwen3"]
    assert qwen3_params(reader, {}) == FULL.qwen3
    assert len(found[KLEINS_QWEN3].keys()) == 1 + 27 * 11  # one file serves both families


def test_the_autoencoder_is_flux1s() -> None:
    for published in ("bfl_ae", "diffusers_ae"):
        reader = components(ListedReader(listed(published)))[AUTOENCODER]
        assert {key: reader.shape(key) for key in reader.keys()} == SHAPES["autoencoder"]


@pytest.mark.parametrize(
    ("told", "variant"),
    [
        (Told(), "zimage-turbo"),
        (Told(name="my-own"), "zimage-turbo"),
        (Told(name="z_image_turbo_bf16"), "zimage-turbo"),
        (Told(name="turbo_z-image"), "zimage-turbo"),
        (Told(name="somebody/moody-z-image-v1"), "zimage-turbo"),
        (Told(name="Tongyi-MAI/Z-Image-Turbo"), "zimage-turbo"),
        (Told(name="Tongyi-MAI/Z-Image"), "zimage"),
        (Told(name="z_image_bf16"), "zimage"),
        (Told(name="zImage-base-Q4_K_M"), "zimage"),
        (Told(variant="zimage-turbo", name="Tongyi-MAI/Z-Image"), "zimage-turbo"),
    ],
)
def test_variants_are_told_by_name(told: Told, variant: str) -> None:
    assert ZIMAGE_FAMILY.variant(Component(ListedReader(SINGLE_FILE), {}), told).name == variant


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(CheckpointError, match="of variant 'klein'; fluxserve knows zimage-turbo, zimage"):
        ZIMAGE_FAMILY.variant(Component(ListedReader(SINGLE_FILE), {}), Told(variant="klein"))


@pytest.mark.parametrize(
    ("lost", "says"),
    [("layers.1.attention.to_k.weight", "missing"), ("noise_refiner.1.ffn_norm2.weight", "missing"), (None, "stray")],
)
def test_a_folder_with_a_missing_or_stray_tensor_is_refused(
    tiny_checkpoint: MakeCheckpoint, tmp_path: Path, lost: str | None, says: str
) -> None:
    for path in tiny_checkpoint("zimage-turbo").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "transformer").unlink()
    (tmp_path / "transformer").mkdir()
    stored = tiny_checkpoint("zimage-turbo") / "transformer"
    tensors = load_file(stored / "diffusion_pytorch_model.safetensors") | {"stray": torch.ones(1)}
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != (lost or "none") and (key != "stray" or not lost)},
        tmp_path / "transformer" / "diffusion_pytorch_model.safetensors",
    )
    (tmp_path / "transformer" / "config.json").write_bytes((stored / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=f"{says}.*{lost or ''}"):
        open_quietly(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"n_layers": 29}, "n_layers is 29 in its config, 30 by its tensors"),
        ({"n_refiner_layers": 3}, "n_refiner_layers is 3"),
        ({"axes_dims": (32, 48, 50)}, r"axes_dims \(32, 48, 50\) are not 3 even widths"),
    ],
)
def test_a_config_that_disagrees_is_refused(config: Config, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        dimensions.transformer_params(ListedReader(SHAPES["transformer"]), config)


@pytest.mark.fault(106)
@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("control_layers.0.adaLN_modulation.0.weight", "control_all_x_embedder.2-1.weight"), "Z-Image ControlNet"),
        ((*SINGLE_FILE, "siglip_pad_token", "siglip_embedder.1.weight"), "Z-Image Omni"),
        (("layers.0.adaLN_modulation.1.weight", "cap_embedder.0.weight", "norm_final.weight"), "Lumina"),
    ],
)
def test_relatives_are_refused_by_name(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(CheckpointError, match=f"is .*{says}"):
        components(ListedReader(dict.fromkeys(names, (64, 64))))


def test_a_folder_says_which_it_is(tiny_checkpoint: MakeCheckpoint) -> None:
    for variant in ("zimage", "zimage-turbo"):
        folder = tiny_checkpoint(variant)
        assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "ZImagePipeline"
        assert open_quietly(folder).variant.name == variant
