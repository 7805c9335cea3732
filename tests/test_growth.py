"""Every parser's time grows with its input, not with the square of it: four times as much takes at most six times."""

from __future__ import annotations

import gc
import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import h11
import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from PIL import Image
from safetensors.torch import save_file
from starlette.requests import Request

from fluxserve.config import EngineConfig, ServerConfig
from fluxserve.decoding.strict_json import MOST_KEYS, MOST_VALUES, parse_json_object
from fluxserve.engine.events import PartialImage
from fluxserve.errors import InvalidRequest
from fluxserve.input_images import read_inputs
from fluxserve.models.lora_target import LoraTarget
from fluxserve.request import GeneratedImage
from fluxserve.server.answers.image_words import ImageWords
from fluxserve.server.answers.parts import pieces
from fluxserve.server.contract.multipart import LARGEST_FIELD, MOST_FIELDS, MOST_FILES, parse_form
from fluxserve.server.contract.parameters import parse_parameters
from fluxserve.server.contract.resolve import ServingLimits, resolve_request
from fluxserve.server.contract.schemas import GenerationParameters
from fluxserve.server.http.body import JSON_CAP
from fluxserve.server.http.protocol import CHUNK_BYTES, FREE_CHUNKS, LONGEST_HEAD, StrictConnection
from fluxserve.weights.files.gguf_file import GgufFile
from fluxserve.weights.files.safetensors_file import SafetensorsFile, open_shards
from fluxserve.weights.lora.file import read_lora
from fluxserve.weights.lora.strength import METADATA_FIELD
from tests.fake_pipeline import CARD

MOST_GROWTH, TRIES = 6.0, 5


@pytest.fixture(autouse=True)
def _own_garbage() -> Iterator[None]:
    """What the test process holds is not looked through again for every thousand objects that are parsed."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def seconds(parse: Callable[[], object]) -> float:
    """Processor time of this thread: neighbours do not count."""
    began = time.thread_time()
    with suppress(InvalidRequest):
        parse()
    return time.thread_time() - began


def assert_linear(parse: Callable[[Any], object], make: Callable[[int], Any], limit: int) -> None:
    """parse(make(n)): n is `limit` and a quarter of it. Best of several tries, taken in turn."""
    small, large = make(limit // 4), make(limit)
    times = [(seconds(lambda: parse(small)), seconds(lambda: parse(large))) for _ in range(TRIES)]
    least_small, least_large = min(s for s, _ in times), min(s for _, s in times)
    assert least_large <= MOST_GROWTH * least_small + 0.002, f"{least_small:.4f} s, then {least_large:.4f} s"


def distinct_keys(n: int) -> bytes:
    """The last one twice."""
    return ("{" + ",".join(f'"k{i}":0' for i in range(n)) + f',"k{n - 1}":1}}').encode()


JSON: dict[str, tuple[Callable[[int], bytes], int]] = {
    "distinct keys": (distinct_keys, MOST_KEYS - 2),
    "far too many keys": (distinct_keys, 8_000),
    "objects in a list": (lambda n: b'{"a":[' + b"{}," * n + b"0]}", MOST_VALUES - 8),
    "far too many lists": (lambda n: b'{"a":[' + b"[]," * n + b"0]}", 45_000),
    "beyond all bounds": (lambda n: b'{"a":[' + b"0," * n + b"0]}", JSON_CAP // 2 - 8),
    "one text of escapes": (lambda n: b'{"a":"' + b"\\ud83d\\ude00" * n + b'"}', JSON_CAP // 12 - 8),
    "one number": (lambda n: b'{"a":0.' + b"9" * n + b"}", JSON_CAP - 8),
    "depth": (lambda n: b'{"a":' * n, JSON_CAP // 5),
    "white space, then an error": (lambda n: b"{" + b"\n" * n + b"x", JSON_CAP - 2),
}


@pytest.mark.fault(70)
@pytest.mark.parametrize("kind", JSON)
def test_json(kind: str) -> None:
    make, limit = JSON[kind]
    assert_linear(parse_json_object, make, limit)


PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n%s\r\n'
FIELD = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n%s\r\n'
FILE_BYTES = 4 * 2**20
FORMS: dict[str, tuple[Callable[[int], bytes], int]] = {
    "a file": (lambda n: PART % bytes(n), FILE_BYTES),
    "a file of line ends": (lambda n: PART % (b"\r\n" * n), FILE_BYTES // 2),
    "a file of almost boundaries": (lambda n: PART % (b"\r\n--y" * n), FILE_BYTES // 5),
    "fields": (lambda n: (FIELD % bytes(1000)) * n, MOST_FIELDS),
    "one field": (lambda n: FIELD % (b"a" * n), LARGEST_FIELD),
    "files": (lambda n: (PART % bytes(1000)) * n, MOST_FILES),
    "what goes before": (lambda n: b"\r\n" * n, FILE_BYTES),
    "what comes after": (lambda n: PART % b"" + b"--x--\r\n" + b"a\r\n" * n, FILE_BYTES // 3),
    "headers": (lambda n: b"--x\r\n" + b"A: b\r\n" * n, FILE_BYTES // 6),
    "one header": (lambda n: b'--x\r\nContent-Disposition: form-data; name="' + b";" * n + b'"\r\n\r\n', 4000),
}


@pytest.mark.fault(71)
@pytest.mark.parametrize("kind", FORMS)
def test_forms(kind: str) -> None:
    make, limit = FORMS[kind]
    assert_linear(lambda body: parse_form([body], "multipart/form-data; boundary=x"), make, limit)


@pytest.mark.fault(71)
@pytest.mark.parametrize("filler", [";", "a=b;", '\\";', '"', "a*=b;"])
def test_the_content_type_of_a_form(filler: str) -> None:
    assert_linear(
        lambda content_type: parse_form([], content_type),
        lambda n: f'multipart/form-data; boundary="{filler * n}"',
        LONGEST_HEAD // len(filler),
    )


def read_head(parts: list[bytes]) -> None:
    connection = StrictConnection(h11.SERVER, LONGEST_HEAD)
    for part in parts:
        connection.receive_data(part)
        while connection.next_event() not in (h11.NEED_DATA, h11.PAUSED):
            pass


HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n"
HEADS: dict[str, Callable[[int], list[bytes]]] = {
    "many headers": lambda n: [HEAD + b"A:b\r\n" * (n // 5) + b"\r\n"],
    "a long header": lambda n: [HEAD + b"A: " + b"b" * n + b"\r\n\r\n"],
    "white space": lambda n: [HEAD + b"A:" + b" \t" * (n // 2) + b"b\r\n\r\n"],
    "white space inside": lambda n: [HEAD + b"A:b" + b" " * n + b"b\r\n\r\n"],
    "folded lines": lambda n: [HEAD + b"A:b\r\n" + b" b\r\n" * (n // 4) + b"\r\n"],
    "byte by byte": lambda n: [bytes([byte]) for byte in HEAD + b"A: " + b"b" * n],
}


@pytest.mark.fault(72)
@pytest.mark.parametrize("kind", HEADS)
def test_heads(kind: str) -> None:
    assert_linear(read_head, HEADS[kind], LONGEST_HEAD - 512)


@pytest.mark.fault(72)
def test_queries() -> None:
    def parse(query: bytes) -> int:
        return len(Request({"type": "http", "query_string": query, "headers": []}).query_params)

    assert_linear(parse, lambda n: b"&".join(b"a%d=%%20" % i for i in range(n)), LONGEST_HEAD // 12)


def chunked(n: int, size: int) -> bytes:
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + (b"%x\r\n" % size + b"a" * size + b"\r\n") * n


@pytest.mark.fault(73)
def test_chunks() -> None:
    assert_linear(lambda body: read_head([body]), lambda n: chunked(n, CHUNK_BYTES), 4 * FREE_CHUNKS)
    read_head([chunked(FREE_CHUNKS, 1), chunked(100 * FREE_CHUNKS, CHUNK_BYTES)[len(chunked(0, 1)) :]])
    with pytest.raises(h11.RemoteProtocolError):
        read_head([chunked(FREE_CHUNKS + 10, 1)])


def preview(data: bytes) -> PartialImage:
    return PartialImage(0, 0, GeneratedImage(data, "png", 64, 64, 0, 0))


def test_events() -> None:
    """What the server writes: one event of a picture of so many bytes."""
    limits = ServingLimits(CARD, ServerConfig(), EngineConfig())
    parameters = parse_parameters({"prompt": "a", "stream": True}, GenerationParameters)
    words = ImageWords(resolve_request(parameters, None, "", limits))
    assert_linear(
        lambda data: [b"".join(pieces(event)) for event in words.partial(preview(data))],
        bytes,
        2**22,
    )


def safetensors(folder: Path, n: int) -> Path:
    header = json.dumps({f"t{i}": {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(n)}).encode()
    path = folder / f"{n}.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(n))
    return path


def gguf(folder: Path, n: int) -> Path:
    path = folder / f"{n}.gguf"
    writer = GGUFWriter(path, "flux")
    for i in range(n):
        writer.add_string(f"key{i}", "value")
        writer.add_tensor(f"t{i}", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.fault(74)
@pytest.mark.parametrize(("write", "read", "n"), [(safetensors, SafetensorsFile, 20_000), (gguf, GgufFile, 800)])
def test_headers_of_weight_files(
    write: Callable[[Path, int], Path], read: Callable[[Path], object], n: int, tmp_path: Path
) -> None:
    assert_linear(read, lambda count: write(tmp_path, count), n)


@pytest.mark.fault(74)
def test_the_index_of_many_shards(tmp_path: Path) -> None:
    def index(n: int) -> Path:
        folder = tmp_path / str(n)
        folder.mkdir()
        header = {f"t{i}": f"{i}.safetensors" for i in range(n)}
        for i in range(n):
            entry = json.dumps({f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}).encode()
            (folder / f"{i}.safetensors").write_bytes(struct.pack("<Q", len(entry)) + entry)
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": header}))
        return path

    assert_linear(open_shards, index, 400)


@pytest.mark.fault(74)
def test_the_keys_of_loras(tmp_path: Path) -> None:
    """As many patterns as modules in the metadata, as both come from the file."""
    target = LoraTarget("transformer", "a", 0, 1, 1)

    def lora(n: int) -> tuple[Path, dict[str, LoraTarget]]:
        modules = [f"transformer.block.{i}" for i in range(n)]
        tensors = {f"{m}.lora_{side}.weight": torch.zeros(1, 1) for m in modules for side in "AB"}
        patterns = {"transformer.alpha_pattern": {f"none.{i}": 1 for i in range(n)}}
        path = tmp_path / f"{n}.safetensors"
        save_file(tensors, path, {METADATA_FIELD: json.dumps(patterns)})
        return path, {module: replace(target, linear=module) for module in modules}

    assert_linear(lambda made: read_lora(*made), lora, 2000)


def png_of_chunks(n: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    head, body = buffer.getvalue()[: 8 + 25], buffer.getvalue()[8 + 25 :]
    return head + chunk(b"tEXt", b"a\0b") * (n // 3) + chunk(b"prVt", b"") * n + body


@pytest.mark.fault(75)
def test_png_chunks() -> None:
    assert_linear(read_inputs, png_of_chunks, 20_000)
