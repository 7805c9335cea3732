"""Names and shapes at full size equal those of the published files, in every spelling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fluxserve.models.companions.flux1_autoencoder import FLUX1_AE, autoencoder_shapes
from fluxserve.models.flux1 import dimensions
from fluxserve.models.flux1.family import AUTOENCODER, CLIP, T5, TRANSFORMER
from fluxserve.models.flux1.shapes import transformer_shapes
from fluxserve.models.flux1.sizes import CLIP_L, FLUX1, T5_XXL, FluxParams
from fluxserve.models.flux1.text.names import clip_shapes, t5_shapes
from fluxserve.models.parts.autoencoder import AutoencoderParams
from fluxserve.models.parts.autoencoder_sizes import autoencoder_params
from fluxserve.tensors.reader import Mapped, Recipe
from fluxserve.weights.files.identify import components
from tests.weights.stored_files import ListedReader, listed

FLUX1_DEV = replace(FLUX1, guidance_embed=True)


WIDE = "img_in.weight"


@pytest.mark.parametrize("columns", [128, 384])
def test_tools_have_the_names_and_shapes_of_dev_but_for_a_wider_input(columns: int) -> None:
    """As FLUX.1 Fill, Canny and Depth are published: both layouts, complete, and no matrix of another shape."""
    bfl = listed("bfl_flux1_dev") | {WIDE: (3072, columns)}
    stored = listed("diffusers_flux1_dev") | {"x_embedder.weight": (3072, columns)}
    params = replace(FLUX1_DEV, in_channels=columns)
    assert transformer_shapes(params) == bfl
    transformer = components(ListedReader(stored))[TRANSFORMER]
    assert {key: transformer.shape(key) for key in transformer.keys()} == bfl
    assert dimensions.transformer_params(transformer, {}) == params


@pytest.mark.parametrize(("name", "params"), [("bfl_flux1_schnell", FLUX1), ("bfl_flux1_dev", FLUX1_DEV)])
def test_transformer_has_the_published_names_and_shapes(name: str, params: FluxParams) -> None:
    assert transformer_shapes(params) == listed(name)


def test_autoencoder_has_the_published_names_and_shapes() -> None:
    assert autoencoder_shapes(FLUX1_AE) == listed("bfl_ae")


def test_text_encoders_have_the_published_names_and_shapes() -> None:
    t5 = listed("t5xxl_encoder")
    assert t5.pop("encoder.embed_tokens.weight") == t5["shared.weight"]  # tied
    assert t5_shapes(T5_XXL) == t5
    assert clip_shapes(CLIP_L) == listed("clip_l_text")


@pytest.mark.parametrize("variant", ["schnell", "dev"])
def test_diffusers_names_cover_the_transformer_with_none_left_over(variant: str) -> None:
    stored = ListedReader(listed(f"diffusers_flux1_{variant}"))
    transformer = components(stored)[TRANSFORMER]  # refuses what is missing or left over
    assert {key: transformer.shape(key) for key in transformer.keys()} == listed(f"bfl_flux1_{variant}")


def test_diffusers_names_cover_the_autoencoder_with_none_left_over() -> None:
    autoencoder = components(ListedReader(listed("diffusers_ae")))[AUTOENCODER]
    assert {key: autoencoder.shape(key) for key in autoencoder.keys()} == listed("bfl_ae")


def test_sizes_are_read_from_the_published_shapes() -> None:
    def reader(name: str, prefix: str = "") -> ListedReader:
        return ListedReader({prefix + key: shape for key, shape in listed(name).items()})

    assert dimensions.transformer_params(reader("bfl_flux1_dev"), {}) == FLUX1_DEV
    assert autoencoder_params(reader("bfl_ae"), {}) == FLUX1_AE
    t5 = components(reader("t5xxl_encoder"))[T5]
    clip = components(reader("clip_l_text", "text_model."))[CLIP]
    assert dimensions.t5_params(t5, {}) == T5_XXL
    assert dimensions.clip_params(clip, {}) == CLIP_L


def test_autoencoders_of_other_depths_are_read_too() -> None:
    params = AutoencoderParams(
        in_channels=3, ch=16, ch_mult=(1, 2, 2, 2), num_res_blocks=1, z_channels=16, num_groups=8
    )
    assert autoencoder_params(ListedReader(autoencoder_shapes(params)), {"norm_num_groups": 8}) == params


def test_joined_tensors_equal_torch() -> None:
    class Numbers(ListedReader):
        def read(self, key: str) -> torch.Tensor:
            return torch.arange(6.0).view(2, 3) + 10 * ord(key[0])

    recipes = {"rows": Recipe(("a", "b")), "swap": Recipe(("a",), "swap_halves"), "conv": Recipe(("b",), "conv1x1")}
    stored = Numbers({"a": (2, 3), "b": (2, 3)})
    mapped = Mapped(stored, recipes)
    a, b = stored.read("a"), stored.read("b")
    assert torch.equal(mapped.read("rows"), torch.cat([a, b]))
    assert torch.equal(mapped.read("swap"), a[[1, 0]])
    assert torch.equal(mapped.read("conv"), b.reshape(2, 3, 1, 1))
    assert [mapped.shape(key) for key in ("rows", "swap", "conv")] == [(4, 3), (2, 3), (2, 3, 1, 1)]
