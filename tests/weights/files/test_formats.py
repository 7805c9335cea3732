"""Quantised files: unpacked as their reference libraries do, kept packed where a Linear can use them so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.placement.bind import bind
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.quantize import QuantMode
from fluxserve.tensors.quantize import quantize as quantize_rows
from fluxserve.weights.describe import describe
from fluxserve.weights.files.bitsandbytes import FourBitReader
from fluxserve.weights.files.safetensors_file import SafetensorsFile
from fluxserve.weights.synthetic.tensors import Packing
from tests.weights.conftest import PUBLISHED_WIDTHS, PackedModel
from tests.weights.stored_files import DATA, QKV, open_quietly, relative_error, transformer_of

FLOAT8 = torch.float8_e4m3fn


def test_plain_float8_files_are_cast_wholly(plain: dict[str, Tensor], tmp_path: Path) -> None:
    """Norms and biases too are float8 there."""
    cast = {key: tensor.to(FLOAT8) for key, tensor in plain.items()}
    save_file(cast, tmp_path / "fp8.safetensors")
    reader = transformer_of(tmp_path / "fp8.safetensors")
    for key in plain:
        assert reader.dtype(key) == torch.float32
        assert torch.equal(reader.read(key), cast[key].float())
        packed = reader.packed(key)
        assert (packed is None) == (plain[key].ndim != 2)
        assert packed is None or torch.equal(packed.unpack(torch.float32), cast[key].float())
    assert describe(tmp_path / "fp8.safetensors").networks[0].packings["float8_e4m3fn"] > 3_000_000


def scaled(plain: Mapping[str, Tensor], scale_name: str, scale_shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Every matrix in float8 with a scale, the rest as it is."""
    tensors: dict[str, Tensor] = {}
    for key, tensor in plain.items():
        if tensor.ndim == 2:
            scale = tensor.float().abs().max() / 448
            tensors[key] = (tensor.float() / scale).to(FLOAT8)
            tensors[key.removesuffix("weight") + scale_name] = scale.expand(scale_shape or ()).clone()
        else:
            tensors[key] = tensor
    return tensors


@pytest.mark.parametrize("generation", ["old", "new", "metadata"])
def test_scaled_float8_files_are_scaled(plain: dict[str, Tensor], tmp_path: Path, generation: str) -> None:
    path = tmp_path / "fp8.safetensors"
    layer = QKV.removesuffix("weight")
    metadata = {}
    if generation == "old":
        tensors = scaled(plain, "scale_weight", ())
        tensors |= {"scaled_fp8": torch.empty(0, dtype=FLOAT8), f"{layer}scale_input": torch.ones(1)}
    else:
        tensors = scaled(plain, "weight_scale", (1,)) | {f"{layer}input_scale": torch.ones(())}
        described = {"format": "float8_e4m3fn"}
        if generation == "new":
            tensors[f"{layer}comfy_quant"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
        else:
            metadata["_quantization_metadata"] = json.dumps({"layers": {layer.rstrip("."): described}})
    prefix = "model.diffusion_model."
    save_file({prefix + key: tensor for key, tensor in tensors.items()}, path, metadata=metadata)
    reader = transformer_of(path)
    assert set(reader.keys()) == set(plain)
    for key, tensor in plain.items():
        assert relative_error(reader.read(key), tensor) < (0.04 if tensor.ndim == 2 else 1e-9)
    packed = reader.packed(QKV)
    assert packed is not None
    assert torch.equal(packed.unpack(torch.float32), reader.read(QKV))
    assert packed.nbytes < plain[QKV].nbytes * 0.51


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8", "awq_w4a16"])
@pytest.mark.parametrize("place", ["tensor", "metadata"])
def test_other_formats_of_the_same_files_are_refused_by_name(tmp_path: Path, name: str, place: str) -> None:
    described = json.dumps({"format": name})
    tensors = {"a.weight": torch.ones(2, 2)}
    if place == "tensor":
        tensors["a.comfy_quant"] = torch.tensor(list(described.encode()), dtype=torch.uint8)
    metadata = {"_quantization_metadata": json.dumps({"layers": {"a": json.loads(described)}})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata if place == "metadata" else None)
    with pytest.raises(CheckpointError, match=f"a is quantised as {name}; fluxserve reads float8_e4m3fn"):
        describe(tmp_path / "a.safetensors")


def test_scales_of_the_wrong_size_are_refused(plain: dict[str, Tensor], tmp_path: Path) -> None:
    tensors = scaled(plain, "scale_weight", ())
    tensors[QKV.removesuffix("weight") + "scale_weight"] = torch.ones(3)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="scale_weight has 3 values"):
        transformer_of(tmp_path / "a.safetensors")


def assert_same_sizes(meta: PackedWeight | None, packed: PackedWeight) -> None:
    """What is told without reading is what reading gives."""
    assert meta is not None
    assert meta.device.type == "meta"
    assert (meta.scheme, meta.shape, meta.nbytes) == (packed.scheme, packed.shape, packed.nbytes)
    kinds = {name: (part.dtype, part.shape) for name, part in packed.parts.items()}
    assert {name: (part.dtype, part.shape) for name, part in meta.parts.items()} == kinds


def test_packed_parts_of_a_diffusers_folder_are_stacked_packed(
    packed_model: PackedModel, plain: dict[str, Tensor]
) -> None:
    reader = open_quietly(packed_model("fp8", "diffusers")).readers["transformer"]
    for key in (QKV, "single_blocks.0.linear1.weight", "final_layer.adaLN_modulation.1.weight"):
        packed = reader.packed(key)
        assert packed is not None
        assert packed.shape == tuple(plain[key].shape)
        assert_same_sizes(reader.packed_meta(key), packed)
        assert torch.equal(packed.unpack(torch.bfloat16), plain[key].to(FLOAT8).to(torch.bfloat16))


@pytest.mark.parametrize("layer", ["nf4", "nf4_nested", "fp4_nested", "nf4_wide"])
def test_four_bit_matrices_equal_bitsandbytes_own(layer: str) -> None:
    """The file was written by bitsandbytes, and holds what it unpacks."""
    stored = SafetensorsFile(DATA / "bitsandbytes.safetensors")
    reader = FourBitReader(stored)
    reference = stored.read(f"{layer}.reference")
    assert set(reader.keys()) == {key for key in stored.keys() if key.endswith(("weight", "bias", "reference"))}
    assert reader.shape(f"{layer}.weight") == (48, 384)
    assert torch.equal(reader.read(f"{layer}.weight"), reference)
    packed = reader.packed(f"{layer}.weight")
    assert packed is not None
    assert packed.scheme.name == layer[:3]
    assert packed.nbytes <= 48 * 384 * (1 / 2 + 4 / 64)
    assert_same_sizes(reader.packed_meta(f"{layer}.weight"), packed)
    assert torch.equal(packed.rows(slice(8, 16)).unpack(torch.float32), reference[8:16])
    assert torch.equal(type(packed).stack([packed, packed]).unpack(torch.float32), torch.cat([reference, reference]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("nf4_nested.weight.nested_absmax"), "nested_absmax has 0 values"),
        (lambda t: t.update({"nf4.weight.absmax": torch.ones(3)}), "absmax has 3 values, expected 288"),
        (lambda t: t.update({"nf4.weight": torch.ones(5, 1, dtype=torch.uint8)}), "nf4.weight has 5 values"),
        (
            lambda t: t.update({"nf4.weight.quant_state.bitsandbytes__nf4": torch.ones(4, dtype=torch.uint8)}),
            "no valid JSON",
        ),
        (
            lambda t: t.update(
                {"nf4.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(b"{}"), dtype=torch.uint8)}
            ),
            "does not describe a four-bit matrix",
        ),
    ],
)
def test_damaged_four_bit_files_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    tensors = load_file(DATA / "bitsandbytes.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=says):
        FourBitReader(SafetensorsFile(tmp_path / "a.safetensors"))


@pytest.mark.parametrize(("storage", "bound"), [("fp8", 0.028), ("int8", 0.009)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_rows_are_quantised_within_the_stated_error(storage: QuantMode, bound: float, scale: float) -> None:
    weight = torch.randn(128, 3072, generator=torch.Generator().manual_seed(0)) * scale
    weight[5] = 0
    packed = quantize_rows(weight, storage)
    unpacked = packed.unpack(torch.float32)
    assert relative_error(unpacked, weight) < bound
    assert torch.equal(unpacked[5], torch.zeros(3072))
    assert packed.nbytes == 128 * 3072 + 128 * 4
    outlier = weight.clone()
    outlier[7, 0] = 100 * scale
    rows = torch.arange(128) != 7
    assert torch.equal(quantize_rows(outlier, storage).unpack(torch.float32)[rows], unpacked[rows])


@pytest.mark.parametrize(("packing", "bound"), [("fp8", 0.08), ("q4_0", 0.2)])
def test_the_transformer_computes_with_packed_weights(
    packed_model: PackedModel,
    published_widths: Path,
    plain: dict[str, Tensor],
    packing: Packing,
    bound: float,
) -> None:
    """Within the format's error of bfloat16's output, and within rounding of the same weights unpacked."""
    reader = open_quietly(packed_model(packing, "bfl")).readers["transformer"]
    unpacked = {key: reader.read(key).float() for key in reader.keys()}
    packed = {key: value if (value := reader.packed(key)) is not None else unpacked[key] for key in reader.keys()}
    outputs = []
    for weights in (packed, unpacked, {key: tensor.float() for key, tensor in plain.items()}):
        with torch.device("meta"):
            model = FluxTransformer(PUBLISHED_WIDTHS.transformer)
        bind(model, weights)
        outputs.append(_velocity(model))
    with_packed, with_unpacked, with_plain = outputs
    assert torch.allclose(with_packed, with_unpacked, atol=1e-5)
    assert 0 < relative_error(with_packed, with_plain) < bound


def _velocity(model: FluxTransformer) -> Tensor:
    noise = torch.Generator().manual_seed(3)
    img, txt, pooled = (torch.randn(1, *size, generator=noise) for size in ((16, 64), (8, 256), (64,)))
    with torch.no_grad():
        modulation = model.modulation(torch.tensor([0.7]), None, pooled)
        return model(img, txt, modulation, model.rope(8, [(4, 4)]))


def test_a_folder_is_described_in_a_line_a_network(packed_model: PackedModel) -> None:
    folder = packed_model("fp8", "bfl")
    lines = str(describe(folder)).splitlines()
    assert lines[0] == str(folder)
    assert lines[1].startswith("  FLUX.1 transformer, schnell: 3,")
    assert "parameters, float8_e4m3fn" in lines[1]
    assert [line.split(":")[0].strip() for line in lines[2:5]] == [
        "FLUX.1 autoencoder",
        "T5 text encoder",
        "CLIP text encoder",
    ]
    assert lines[5] == "  a whole model"
    alone = str(describe(folder / "ae.safetensors"))
    assert "missing for a whole model: FLUX.1 transformer, T5 text encoder, CLIP text encoder, tokenizer" in alone
