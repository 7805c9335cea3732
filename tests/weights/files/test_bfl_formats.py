"""The formats in which Black Forest Labs publishes packed FLUX.2 files, against diffusers' reading of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.quantizers.bfl.utils import dequantize_fp8r, dequantize_nvfp4, quantize_fp8r, quantize_nvfp4
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.flux2.family import TRANSFORMER
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.describe import describe
from fluxserve.weights.files.identify import components, open_file
from tests.conftest import MakeCheckpoint
from tests.models.loading import error, latents, load
from tests.weights.stored_files import rewrite

Tensors = dict[str, Tensor]


def fp8r(layer: str, weight: Tensor) -> Tensors:
    values, scale = quantize_fp8r(weight)
    return {f"{layer}.weight": values, f"{layer}.weight_scale": scale}


def nvfp4(layer: str, weight: Tensor) -> Tensors:
    values, scale, scale_2 = quantize_nvfp4(weight)
    stored = {"weight": values, "weight_scale": scale, "weight_scale_2": scale_2, "input_scale": torch.tensor(0.1)}
    return {f"{layer}.{name}": tensor for name, tensor in stored.items()}


def packed_blocks(tensors: Tensors, pack: Callable[[str, Tensor], Tensors]) -> Tensors:
    """As published: the blocks' matrices are packed, the rest is not."""
    stored: Tensors = {}
    for key, tensor in tensors.items():
        matrix = tensor.ndim == 2 and "_blocks." in key
        stored |= pack(key.removesuffix(".weight"), tensor) if matrix else {key: tensor}
    return stored


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: MakeCheckpoint) -> Tensors:
    return load_file(tiny_checkpoint("klein", "bfl") / "flux-2-klein.safetensors")


def reader_of(path: Path, tensors: Tensors) -> TensorReader:
    save_file(tensors, path)
    return components(open_file(path))[TRANSFORMER]


def expected_fp8r(stored: Tensors, layer: str) -> Tensor:
    return dequantize_fp8r(stored[f"{layer}.weight"], stored[f"{layer}.weight_scale"])


def expected_nvfp4(stored: Tensors, layer: str) -> Tensor:
    return dequantize_nvfp4(*(stored[f"{layer}.{name}"] for name in ("weight", "weight_scale", "weight_scale_2")))


FORMATS = {
    "fp8r": (fp8r, expected_fp8r, "float8_e4m3fn with scales", 0.2),
    "nvfp4": (nvfp4, expected_nvfp4, "nvfp4", 1.0),
}


@pytest.mark.parametrize("name", FORMATS)
def test_matrices_are_those_that_diffusers_reads(plain: Tensors, tmp_path: Path, name: str) -> None:
    pack, expected, called, _ = FORMATS[name]
    stored = packed_blocks(plain, pack)
    reader = reader_of(tmp_path / "a.safetensors", stored)
    assert set(reader.keys()) == set(plain)
    for key, tensor in plain.items():
        assert reader.shape(key) == tuple(tensor.shape)
        weight, planned = reader.packed(key), reader.packed_meta(key)
        if tensor.ndim == 2 and "_blocks." in key:
            assert weight is not None
            assert planned is not None
            assert (weight.scheme.name, weight.nbytes) == (called, planned.nbytes)
            assert torch.equal(reader.read(key), expected(stored, key.removesuffix(".weight")))
            assert torch.equal(weight.unpack(torch.float32), reader.read(key))
            rows = weight.rows(slice(8, 24)).unpack(torch.float32)
            assert torch.equal(rows, reader.read(key)[8:24])
        else:
            assert weight is None
            assert torch.equal(reader.read(key), tensor)


@pytest.mark.parametrize("name", FORMATS)
def test_they_draw_nearly_what_the_plain_file_draws(
    tiny_checkpoint: MakeCheckpoint, plain: Tensors, tmp_path: Path, name: str
) -> None:
    pack, _, called, tolerance = FORMATS[name]
    files = tiny_checkpoint("klein", "bfl")
    for path in files.iterdir():
        if path.stem != "flux-2-klein":
            (tmp_path / path.name).symlink_to(path)
    save_file(packed_blocks(plain, pack), tmp_path / "flux-2-klein.safetensors")
    (tmp_path / "flux-2-klein.json").symlink_to(files / "flux-2-klein.json")
    drawn = latents(load(tmp_path / "flux-2-klein.safetensors"))
    assert 0 < error(drawn, latents(load(files / "flux-2-klein.safetensors"))) < tolerance
    assert called in str(describe(tmp_path / "flux-2-klein.safetensors"))


LAYER = "single_blocks.0.linear1"


def narrower(stored: Tensors) -> None:
    stored[f"{LAYER}.weight_scale"] = stored[f"{LAYER}.weight_scale"][:, :-1].contiguous()


def several(stored: Tensors) -> None:
    stored[f"{LAYER}.weight_scale_2"] = torch.ones(3)


def lost(stored: Tensors) -> None:
    del stored[f"{LAYER}.weight_scale"]


def bytes_as_scales(stored: Tensors) -> None:
    stored[f"{LAYER}.weight_scale"] = stored[f"{LAYER}.weight_scale"].view(torch.uint8)


def marked(stored: Tensors) -> None:
    stored[f"{LAYER}.comfy_quant"] = torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)


@pytest.mark.fault(105)
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (narrower, rf"{LAYER} of shape \(576, 64\) has scales of shapes \(576, 3\) and \(\)"),
        (several, rf"{LAYER} of shape \(576, 64\) has scales of shapes .* and \(3,\)"),
        (lost, f"missing {LAYER}.weight_scale"),
        (bytes_as_scales, f"{LAYER}.weight_scale is no matrix of float8_e4m3fn"),
        (marked, f"{LAYER} is quantised as nvfp4; fluxserve reads"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    plain: Tensors, tmp_path: Path, change: Callable[[Tensors], None], says: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(packed_blocks(plain, nvfp4), path)
    rewrite(path, change)
    with pytest.raises(CheckpointError, match=says):
        components(open_file(path))
