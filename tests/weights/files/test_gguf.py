"""GGUF files: unpacked bit for bit as gguf-py does, kept packed where a Linear can use them so, refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from torch import Tensor

from fluxserve.errors import CheckpointError
from fluxserve.weights.describe import describe
from fluxserve.weights.files.gguf_blocks import BLOCKS, Gguf
from fluxserve.weights.files.gguf_file import GgufFile
from fluxserve.weights.files.gguf_writer import pack_q4_0
from fluxserve.weights.files.identify import open_file
from tests.weights.conftest import PackedModel
from tests.weights.stored_files import QKV, open_quietly, relative_error, transformer_of


def write_with_gguf(
    path: Path, tensors: Mapping[str, Tensor], kinds: Mapping[str, str], architecture: str | None = "flux"
) -> None:
    """By gguf-py itself. kinds: name -> type, F32 where it has none."""
    writer = gguf.GGUFWriter(path, architecture or "none")
    if architecture is None:
        writer.kv_data[0].pop("general.architecture")
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[kinds.get(name, "F32")]
        writer.add_tensor(name, quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", BLOCKS)
def test_gguf_blocks_unpack_bit_for_bit_as_gguf_py(name: str) -> None:
    block, kind = BLOCKS[name], gguf.GGMLQuantizationType[name]
    assert gguf.GGML_QUANT_SIZES[kind] == (block.values, block.nbytes)
    raw = np.random.default_rng(0).integers(0, 256, size=(96, 16 * block.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        reference = dequantize(raw, kind)
    finite = np.isfinite(reference)
    assert finite.mean() > 0.9
    unpacked = Gguf(name).unpack({"blocks": torch.from_numpy(raw)}, (96, 16 * block.values), torch.float32).numpy()
    assert (np.isfinite(unpacked) == finite).all()
    assert (unpacked[finite].view(np.uint32) == reference[finite].view(np.uint32)).all()


def test_q4_0_is_packed_as_gguf_py_packs_it() -> None:
    weight = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    reference = quantize(weight.numpy(), gguf.GGMLQuantizationType.Q4_0)
    assert torch.equal(pack_q4_0(weight), torch.from_numpy(reference))


def test_gguf_files_of_mixed_types_are_read(plain: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "mixed.gguf"
    kinds = {"img_in.weight": "F16", "txt_in.weight": "BF16", QKV: "Q8_0", "final_layer.linear.weight": "Q5_1"}
    write_with_gguf(path, plain, kinds)
    reader = transformer_of(path)
    assert {key: reader.shape(key) for key in reader.keys()} == {key: tuple(plain[key].shape) for key in plain}
    assert [reader.dtype(key) for key in kinds] == [torch.float16, torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(reader.read("txt_in.weight"), plain["txt_in.weight"])
    assert torch.equal(reader.read("img_in.bias"), plain["img_in.bias"].float())
    packed = reader.packed(QKV)
    assert packed is not None
    assert (packed.scheme.name, packed.nbytes) == ("Q8_0", plain[QKV].numel() * 34 // 32)
    assert torch.equal(packed.unpack(torch.float32), reader.read(QKV))
    assert relative_error(reader.read(QKV), plain[QKV]) < 0.006
    assert [reader.packed(key) for key in ("img_in.weight", "txt_in.weight", "img_in.bias")] == [None] * 3


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_gguf_files_without_architecture_are_told_by_their_names(
    plain: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    write_with_gguf(tmp_path / "a.gguf", {prefix + key: plain[key] for key in plain}, {}, architecture=None)
    assert set(transformer_of(tmp_path / "a.gguf").keys()) == set(plain)


def test_reshaped_gguf_tensors_get_their_shape_back(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "flux")
    weight = np.arange(768, dtype=np.float32).reshape(3, 256)
    writer.add_tensor("a", quantize(weight, gguf.GGMLQuantizationType.Q8_0), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_array("comfy.gguf.orig_shape.a", [12, 64])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = GgufFile(tmp_path / "a.gguf")
    assert reader.shape("a") == (12, 64)
    assert relative_error(reader.read("a"), torch.arange(768.0).view(12, 64)) < 0.006


def test_q4_0_models_open_whole(packed_model: PackedModel, published_widths: Path) -> None:
    opened, plain = open_quietly(packed_model("q4_0", "bfl")), open_quietly(published_widths)
    for one, other in (
        (opened.readers["transformer"], plain.readers["transformer"]),
        (opened.readers["t5"], plain.readers["t5"]),
    ):
        assert set(one.keys()) == set(other.keys())
        for key in one.keys():
            packed = one.packed(key)
            assert relative_error(one.read(key), other.read(key)) < (0.11 if one.dtype(key) == torch.float32 else 1e-9)
            assert packed is None or torch.equal(packed.unpack(torch.float32), one.read(key))
    assert opened.readers["transformer"].packed(QKV) is not None
    assert opened.readers["t5"].packed("encoder.block.0.layer.0.SelfAttention.q.weight") is not None
    assert opened.readers["t5"].packed("shared.weight") is None  # looked up by row, not multiplied with
    assert "Q4_0" in str(describe(Path(opened.readers["transformer"].source)))


def test_partial_gguf_files_are_refused_with_what_they_lack(plain: dict[str, Tensor], tmp_path: Path) -> None:
    partial = {key: plain[key] for key in plain if not key.startswith(("img_in", "time_in"))}
    write_with_gguf(tmp_path / "a.gguf", partial, {})
    with pytest.raises(CheckpointError, match=r"missing img_in\.weight"):
        describe(tmp_path / "a.gguf")


def test_gguf_files_of_other_models_and_types_are_refused_by_name(plain: dict[str, Tensor], tmp_path: Path) -> None:
    write_with_gguf(tmp_path / "llama.gguf", {"a": torch.ones(2, 32)}, {}, architecture="llama")
    with pytest.raises(CheckpointError, match="GGUF file of a llama"):
        open_file(tmp_path / "llama.gguf")
    write_with_gguf(tmp_path / "a.gguf", plain, {QKV: "TQ1_0"})
    with pytest.raises(CheckpointError, match=f"{QKV} is packed as TQ1_0; fluxserve reads"):
        open_file(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-100],
        lambda raw: raw[: len(raw) // 50],
        lambda raw: raw[:20],
        lambda raw: raw[:4] + (99).to_bytes(4, "little") + raw[8:],
        lambda raw: raw[:8] + (2**60).to_bytes(8, "little") + raw[16:],
        lambda raw: raw[:16] + (2**60).to_bytes(8, "little") + raw[24:],
        lambda raw: raw.replace(b"img_in.bias", b"img_in.bi\xff\xfe"),
    ],
)
def test_damaged_gguf_files_are_refused(
    plain: dict[str, Tensor], tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / "a.gguf"
    write_with_gguf(path, plain, {QKV: "Q4_0"})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"a\.gguf: is a damaged GGUF file"):
        open_file(path)
