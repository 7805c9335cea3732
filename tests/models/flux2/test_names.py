"""Names and shapes of FLUX.2 [klein] at full size, in every spelling, and how its models are told apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from safetensors.torch import load_file, save_file

from fluxserve.errors import CheckpointError
from fluxserve.models.companions.flux2_autoencoder import AUTOENCODER, FLUX2_AE, autoencoder_config
from fluxserve.models.companions.qwen3 import PREFIX, qwen3_params, qwen3_shapes
from fluxserve.models.family import Component, Told
from fluxserve.models.flux2 import dimensions
from fluxserve.models.flux2.family import FLUX2_FAMILY, QWEN3, TRANSFORMER
from fluxserve.models.flux2.sizes import FULL, FULL_9B, KLEIN_4B, KLEIN_9B, Flux2Params
from fluxserve.models.flux2.synthetic import transformer_config
from fluxserve.models.parts.autoencoder_sizes import autoencoder_params
from fluxserve.tensors.reader import Shapes, require_exact
from fluxserve.weights.files.identify import components
from tests.conftest import MakeCheckpoint
from tests.weights.stored_files import ListedReader, open_quietly

ARCHITECTURES = {
    size: FLUX2_FAMILY.synthetic(size, "klein", "bfl", "bf16").networks[0].shapes for size in ("full", "full-9b")
}


def stored_by_diffusers(model: type, config: dict[str, object]) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(tensor.shape) for key, tensor in model.from_config(config).state_dict().items()}


@pytest.mark.parametrize(
    ("size", "params", "single_file", "diffusers"), [("full", KLEIN_4B, 149, 169), ("full-9b", KLEIN_9B, 201, 233)]
)
def test_the_transformers_names_are_complete(size: str, params: Flux2Params, single_file: int, diffusers: int) -> None:
    shapes = ARCHITECTURES[size]
    assert len(shapes) == single_file
    assert dimensions.transformer_params(ListedReader(shapes), {}) == params
    stored = stored_by_diffusers(Flux2Transformer2DModel, transformer_config(params))
    assert len(stored) == diffusers
    reader = components(ListedReader(stored))[TRANSFORMER]  # refuses what is missing or left over
    assert {key: reader.shape(key) for key in reader.keys()} == shapes


def test_parameters_are_as_many_as_published() -> None:
    counts = [sum(torch.Size(shape).numel() for shape in shapes.values()) for shapes in ARCHITECTURES.values()]
    assert counts == [3_875_544_576, 9_078_581_248]


def test_the_autoencoders_names_are_complete() -> None:
    ours = FLUX2_FAMILY.synthetic("full", "klein", "bfl", "bf16").networks[1].shapes
    stored = stored_by_diffusers(AutoencoderKLFlux2, autoencoder_config(FLUX2_AE))
    assert len(stored) == 251
    for names in (stored, {**ours, "bn.num_batches_tracked": ()}):
        reader = components(ListedReader(names))[AUTOENCODER]
        require_exact(reader, ours, "itself")
    assert autoencoder_params(ListedReader(ours), {}) == FLUX2_AE


@pytest.mark.parametrize("sizes", [FULL, FULL_9B])
def test_of_qwen3_only_27_layers_are_read(sizes: object) -> None:
    assert sizes in (FULL, FULL_9B)
    read = qwen3_shapes(sizes.qwen3)  # type: ignore[attr-defined]
    stored = qwen3_shapes(replace(sizes.qwen3, num_layers=36)) | {"norm.weight": (sizes.qwen3.hidden_size,)}  # type: ignore[attr-defined]
    named = {PREFIX + key: shape for key, shape in stored.items()} | {"lm_head.weight": stored["embed_tokens.weight"]}
    reader = components(ListedReader(named))[QWEN3]
    assert {key: reader.shape(key) for key in reader.keys()} == read
    assert qwen3_params(reader, {}) == sizes.qwen3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("params", "told", "variant"),
    [
        (KLEIN_4B, Told(), "klein"),
        (KLEIN_4B, Told(flags={"is_distilled": False}), "klein-base"),
        (KLEIN_4B, Told(name="flux-2-klein-base-4b"), "klein-base"),
        (KLEIN_9B, Told(name="flux-2-klein-9b"), "klein-9b"),
        (KLEIN_9B, Told(flags={"is_distilled": False}, name="klein"), "klein-base-9b"),
        (KLEIN_9B, Told(variant="klein-9b", flags={"is_distilled": False}), "klein-9b"),
    ],
)
def test_variants_are_told_by_width_flag_and_name(params: Flux2Params, told: Told, variant: str) -> None:
    shapes = ARCHITECTURES["full" if params == KLEIN_4B else "full-9b"]
    assert FLUX2_FAMILY.variant(Component(ListedReader(shapes), {}), told).name == variant


@pytest.mark.fault(106)
@pytest.mark.parametrize("name", ["black-forest-labs/FLUX.2-klein-9b-kv", "flux-2-klein-9b-kv-fp8", "klein_KV"])
def test_the_kv_edition_is_refused_by_name(name: str) -> None:
    component = Component(ListedReader(ARCHITECTURES["full-9b"]), {})
    with pytest.raises(CheckpointError, match=r"is FLUX\.2 \[klein\] KV.*use FLUX\.2-klein-9B"):
        FLUX2_FAMILY.variant(component, Told(name=name))
    assert FLUX2_FAMILY.variant(component, Told(name="klein-kvasir")).name == "klein-9b"


def test_dev_is_refused_by_name() -> None:
    shapes = ARCHITECTURES["full"] | {"guidance_in.in_layer.weight": (3072, 256)}
    with pytest.raises(CheckpointError, match=r"is FLUX\.2 \[dev\]"):
        FLUX2_FAMILY.variant(Component(ListedReader(shapes), {}), Told())


def test_a_folder_says_whether_it_is_distilled(tiny_checkpoint: MakeCheckpoint) -> None:
    for variant in ("klein", "klein-base"):
        folder = tiny_checkpoint(variant)
        assert json.loads((folder / "model_index.json").read_text())["is_distilled"] == (variant == "klein")
        assert open_quietly(folder).variant.name == variant


def test_an_encoder_with_too_few_layers_is_refused(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    files = tiny_checkpoint("klein", "bfl")
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "qwen_3_4b.safetensors").unlink()
    narrower = {
        key: tensor for key, tensor in load_file(files / "qwen_3_4b.safetensors").items() if ".layers.26." not in key
    }
    save_file(narrower, tmp_path / "qwen_3_4b.safetensors")
    (tmp_path / "qwen_3_4b.json").unlink()
    with pytest.raises(CheckpointError, match="has 26 layers, 27 are read"):
        open_quietly(tmp_path / "flux-2-klein.safetensors")


def test_a_folder_of_another_family_than_its_class_is_refused(tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    for path in tiny_checkpoint("schnell").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "Flux2KleinPipeline"}))
    with pytest.raises(CheckpointError, match="incomplete: found no autoencoder, no qwen3, no transformer"):
        open_quietly(tmp_path)
