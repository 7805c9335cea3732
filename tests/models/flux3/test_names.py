"""Names and shapes of FLUX.3 image klein at full size, in every spelling, and how its models are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import Flux3Transformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_flux3_lora_to_diffusers
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from fluxserve.errors import CheckpointError
from fluxserve.models import registry
from fluxserve.models.companions.qwen3 import qwen3_params, qwen3_shapes
from fluxserve.models.companions.qwen3_vl import ROPE_THETA, reads_qwen3_vl, stored_qwen3_vl
from fluxserve.models.family import Component, Told
from fluxserve.models.flux2.family import FLUX2_FAMILY, QWEN3
from fluxserve.models.flux3 import dimensions
from fluxserve.models.flux3.family import FLUX3_FAMILY, QWEN3_VL, TRANSFORMER
from fluxserve.models.flux3.lora_names import lora_targets
from fluxserve.models.flux3.sizes import FLUX3_KLEIN, QWEN3_VL_4B, TINY
from fluxserve.models.flux3.synthetic import transformer_config
from fluxserve.tensors.reader import Shapes, require_exact
from fluxserve.weights.files.identify import components
from tests.conftest import MakeCheckpoint
from tests.weights.stored_files import ListedReader, open_quietly

SINGLE_FILES = {
    variant: FLUX3_FAMILY.synthetic("full", variant, "bfl", "bf16").networks[0].shapes
    for variant in ("flux3-klein", "flux3-klein-base")
}


def shapes_on_meta(model: torch.nn.Module) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("variant", "tensors", "parameters"),
    [("flux3-klein", 359, 5_548_681_984), ("flux3-klein-base", 357, 5_538_458_368)],
)
def test_the_transformers_names_are_complete(variant: str, tensors: int, parameters: int) -> None:
    shapes, params = SINGLE_FILES[variant], replace(FLUX3_KLEIN, flow_map=variant == "flux3-klein")
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == parameters
    assert dimensions.transformer_params(ListedReader(shapes), {}) == params
    with torch.device("meta"):
        stored = shapes_on_meta(Flux3Transformer2DModel.from_config(transformer_config(params)))
    assert len(stored) == tensors
    reader = components(ListedReader(stored))[TRANSFORMER]  # refuses what is missing or left over
    assert {key: reader.shape(key) for key in reader.keys()} == shapes
    config = {key: value for key, value in transformer_config(params).items() if type(value) is int}
    assert dimensions.transformer_params(reader, config) == params


def test_what_training_left_and_tools_prefix_is_read() -> None:
    shapes = SINGLE_FILES["flux3-klein"]
    prefixed = {f"model.diffusion_model.{key}": shape for key, shape in shapes.items()}
    weights = {key.replace("_norm.scale", "_norm.weight"): shape for key, shape in shapes.items()}
    for names in (prefixed, weights, {**shapes, "repa_projectors.0.weight": (8, 8)}):
        require_exact(components(ListedReader(names))[TRANSFORMER], shapes, "itself")


def test_of_qwen3_vl_only_the_text_halfs_first_32_layers_are_read() -> None:
    config = stored_qwen3_vl(QWEN3_VL_4B, 36).config
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**config))
    stored = shapes_on_meta(model)
    assert model.config.text_config.rope_parameters["rope_theta"] == ROPE_THETA
    assert any(key.startswith("model.visual.") for key in stored)
    found = components(ListedReader(stored))
    assert found.keys() == {QWEN3_VL}
    require_exact(found[QWEN3_VL], qwen3_shapes(QWEN3_VL_4B), "itself")
    assert qwen3_params(found[QWEN3_VL], {}) == QWEN3_VL_4B
    unread = {key for key in stored if not reads_qwen3_vl(32, key)}
    assert {key for key in unread if ".layers." in key and int(key.split(".")[3]) < 32} == set()
    assert "lm_head.weight" in unread


def test_qwen3_and_qwen3_vl_are_not_mistaken() -> None:
    """They have the same shapes, and other weights."""
    plain = FLUX2_FAMILY.synthetic("tiny", "klein", "bfl", "bf16").networks[2]
    named = {recipe.parts[0]: plain.shapes[key] for key, recipe in plain.recipes.items()}
    found = components(ListedReader(named))
    assert QWEN3 in found
    assert QWEN3_VL not in found


def test_the_autoencoder_alone_is_flux2s() -> None:
    """Which lends it."""
    autoencoder = next(part for part in FLUX3_FAMILY.parts if part.role == "autoencoder")
    assert registry.family_of_parts([autoencoder]) is FLUX2_FAMILY
    assert registry.family_of_parts([autoencoder, TRANSFORMER]) is FLUX3_FAMILY


def test_tensors_tell_whether_it_is_distilled(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    for variant, pipeline in (("flux3-klein", "Flux3Distilled"), ("flux3-klein-base", "Flux3")):
        folder = tiny_checkpoint(variant)
        told = json.loads((folder / "modular_model_index.json").read_text())["_class_name"]
        assert told == f"{pipeline}ModularPipeline"
        assert told in FLUX3_FAMILY.pipelines
        assert open_quietly(folder).variant.name == variant
        assert open_quietly(next(tiny_checkpoint(variant, "bfl").glob("flux-3-*.safetensors"))).variant.name == variant
    component = Component(ListedReader(SINGLE_FILES["flux3-klein"]), {})
    assert FLUX3_FAMILY.variant(component, Told(name="somebodys-base")).name == "flux3-klein"
    with pytest.raises(CheckpointError, match="is flux3-klein by its tensors, not flux3-klein-base"):
        FLUX3_FAMILY.variant(component, Told(variant="flux3-klein-base"))


@pytest.mark.fault(151)
def test_an_encoder_with_too_few_layers_is_refused(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    files = tiny_checkpoint("flux3-klein", "bfl")
    for path in files.iterdir():
        if not path.name.startswith("qwen3vl_4b"):
            (tmp_path / path.name).symlink_to(path)
    stored = load_file(files / "qwen3vl_4b.safetensors")
    shorter = {key: tensor for key, tensor in stored.items() if not {"31", "32", "33"} & set(key.split("."))}
    save_file(shorter, tmp_path / "qwen3vl_4b.safetensors")
    with pytest.raises(CheckpointError, match="has 31 layers, 32 are read"):
        open_quietly(tmp_path / "flux-3-image-klein.safetensors")


def test_loras_are_named_as_diffusers_converts_them() -> None:
    """Both spellings of a module name one Linear."""
    targets = lora_targets(TINY.transformer)
    for module in (
        "single_blocks.1.q_proj",
        "txt_mode_blocks.0.attn_out",
        "content_mode_blocks.image_cond.1.mlp_in",
        "content_mode_blocks.image.0.mlp_out",
    ):
        key = f"diffusion_model.{module}"
        converted = _convert_non_diffusers_flux3_lora_to_diffusers({f"{key}.lora_A.weight": torch.ones(1)})
        (theirs,) = (name.removesuffix(".lora_A.weight") for name in converted)
        kohyas = f"lora_unet_{module.replace('.', '_')}"
        assert targets[key] == targets[theirs] == targets[kohyas]
        assert targets[key].linear == module
    assert len({target.linear for target in targets.values()}) == 6 * (3 * 2 + 3) + 3 + 4 + 6 + 2
