"""Safetensors files: what the library writes is read equal and lazily; what is damaged is refused by name."""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fluxserve.errors import CheckpointError
from fluxserve.weights.files.file_map import FileMap
from fluxserve.weights.files.identify import open_file
from fluxserve.weights.files.safetensors_file import SafetensorsFile, open_shards
from fluxserve.weights.files.safetensors_writer import TensorSpec, write_shards

DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "some.safetensors"
    save_file({"a": torch.arange(12.0).view(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}, path)
    return path


def test_every_dtype_reads_as_the_library_wrote_it(tmp_path: Path) -> None:
    tensors = {str(dtype): (torch.rand(3, 5) * 9).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(7.0), "empty": torch.empty(0, 4)}
    save_file(tensors, tmp_path / "all.safetensors", metadata={"who": "test"})
    reader = SafetensorsFile(tmp_path / "all.safetensors")
    assert set(reader.keys()) == set(tensors)
    assert reader.metadata == {"who": "test"}
    for key, tensor in tensors.items():
        read = reader.read(key)
        assert (reader.shape(key), reader.dtype(key)) == (tuple(tensor.shape), tensor.dtype)
        assert read.dtype == tensor.dtype
        assert torch.equal(read.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_a_file_larger_than_the_memory_opens_and_reads_where_touched(tmp_path: Path) -> None:
    path, size = tmp_path / "large.safetensors", 2**40
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)  # a hole: takes no disk
    reader = SafetensorsFile(path)
    assert reader.read("a")[-1] == 0
    reader.release("a")


def test_released_pages_read_the_same_again(file: Path) -> None:
    path = file.parent / "pages"
    path.write_bytes(bytes(range(256)) * 256)
    mapped = FileMap(path)
    view = mapped.view(0, 65536, torch.uint8)
    before = view.clone()
    mapped.release(0, 65536)
    assert torch.equal(view, before)


def test_writing_to_what_was_read_leaves_the_file_alone(file: Path) -> None:
    SafetensorsFile(file).read("a").zero_()
    assert torch.equal(SafetensorsFile(file).read("a"), torch.arange(12.0).view(3, 4))


def _cut(raw: bytes) -> bytes:
    return raw[:-3]


def _tail(raw: bytes) -> bytes:
    return raw + b"junk"


def _header(**change: object) -> Callable[[bytes], bytes]:
    """Changes the header's entry of `a`, keeping the length."""

    def damage(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        header["a"] |= change
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + raw[8 + length :]

    return damage


@pytest.mark.fault(48, 49)
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_cut, "cut short"),
        (_tail, "follow the last tensor"),
        (lambda raw: b"", "cannot be read"),
        (lambda raw: raw[:5], "no safetensors file"),
        (lambda raw: b"\xff" * 7 + raw[7:], "no safetensors file"),
        (lambda raw: raw[:9] + b"\xff" + raw[10:], "no valid JSON"),
        (lambda raw: (200_000).to_bytes(8, "little") + b"[" * 200_000, "no valid JSON"),
        (_header(shape=[3, 5]), "a of shape"),
        (_header(shape=[-3, -4]), "no whole numbers"),
        (_header(shape=[True, 12]), "no whole numbers"),
        (_header(dtype="F4"), "has dtype F4"),
        (_header(data_offsets=[0, 48, 96]), "no dtype, shape and data_offsets"),
        (_header(data_offsets=[4, 52]), "gap"),
        (lambda raw: raw.replace(b'"b"', b'"a"'), "named twice"),
    ],
)
def test_damaged_files_are_refused_by_name(file: Path, damage: Callable[[bytes], bytes], says: str) -> None:
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=says) as raised:
        SafetensorsFile(file)
    assert str(file) in raised.value.message


class _Canary:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.fault(51)
@pytest.mark.parametrize("name", ["model.bin", "model.ckpt", "model.pt", "model.safetensors"])
@pytest.mark.parametrize("torch_format", [False, True])
def test_pickles_are_refused_unread(tmp_path: Path, name: str, torch_format: bool) -> None:
    path, canary = tmp_path / name, tmp_path / "ran"
    if torch_format:
        torch.save({"a": _Canary(canary)}, path)
    else:
        path.write_bytes(pickle.dumps(_Canary(canary), protocol=4))
    started = time.monotonic()
    with pytest.raises(CheckpointError, match="is a pickle"):
        open_file(path)
    assert not canary.exists()
    assert time.monotonic() - started < 10


def test_a_header_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    """The first bytes of a safetensors file are its header's length, which may be 0x0280."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(0x0280.to_bytes(8, "little") + header.ljust(0x0280) + bytes(4))
    assert list(open_file(path).keys()) == ["a"]


def test_a_symlink_loop_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").symlink_to(tmp_path / "b.safetensors")
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "a.safetensors")
    for name in ("a.safetensors", "none.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            open_file(tmp_path / name)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three shards of 16 bytes. Returns their index."""
    tensors = {key: torch.full((4,), float(i)) for i, key in enumerate("abc")}
    specs = {key: TensorSpec((4,), torch.float32) for key in tensors}
    write_shards(tmp_path, "model.safetensors", specs, tensors.items(), shard_bytes=20)
    return tmp_path / "model.safetensors.index.json"


def test_shards_read_as_one(shards: Path) -> None:
    reader = open_shards(shards)
    assert {key: reader.read(key)[0].item() for key in reader.keys()} == {"a": 0, "b": 1, "c": 2}
    assert len(list(shards.parent.glob("model-0000?-of-00003.safetensors"))) == 3


@pytest.mark.fault(49)
def test_a_missing_shard_is_named(shards: Path) -> None:
    (shards.parent / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00003"):
        open_shards(shards)


def test_an_index_that_lies_is_refused(shards: Path) -> None:
    index = json.loads(shards.read_text())
    index["weight_map"]["d"] = index["weight_map"].pop("b")
    shards.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00002.*missing d; unexpected b"):
        open_shards(shards)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", ""])
def test_an_index_names_only_safetensors_beside_it(shards: Path, name: str) -> None:
    shards.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="is not the name of a safetensors file"):
        open_shards(shards)
