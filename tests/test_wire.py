"""The messages survive the pipe whatever they hold, and what is no message is refused."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve import wire
from fluxserve.request import GeneratedImage, GenerationRequest, Reference, Solver, Timings

REQUEST = GenerationRequest("a cat", 64, 64, (7,), 4, None, 256)

texts = st.text(max_size=50)
finite = st.floats(allow_nan=False)  # NaN would equal nothing
st.register_type_strategy(float, finite)
requests = st.builds(
    GenerationRequest,
    prompt=texts,
    width=st.integers(16, 4096),
    height=st.integers(16, 4096),
    seeds=st.lists(st.integers(0, 2**64 - 1), max_size=10).map(tuple),
    num_inference_steps=st.integers(1, 200),
    guidance_scale=st.none() | finite,
    max_sequence_length=st.integers(1, 512),
    negative_prompt=texts,
    true_cfg_scale=finite,
    solver=st.sampled_from(get_args(Solver)),
    image=st.none() | st.binary(max_size=300),
    mask=st.none() | st.binary(max_size=300),
    references=st.lists(st.from_type(Reference), max_size=3).map(tuple),
)
pictures = st.builds(GeneratedImage, data=st.binary(max_size=300))
messages = st.one_of(
    *(st.from_type(cls) for cls in get_args(wire.Message) if cls not in (wire.Submit, wire.Previewed, wire.Finished)),
    st.builds(wire.Submit, job_id=st.integers(1), request=requests, waited_s=finite),
    st.builds(wire.Previewed, job_id=st.integers(1), partial_index=st.integers(0, 2), image=pictures),
    st.builds(wire.Finished, job_id=st.integers(1), image=pictures, timings=st.from_type(Timings)),
)


def raw(message: wire.Message) -> bytes:
    return b"".join(wire.frame(message))


async def read_all(data: bytes) -> list[wire.Message]:
    stream = asyncio.StreamReader()
    stream.feed_data(data)
    stream.feed_eof()
    found = []
    while (message := await wire.read_async(stream)) is not None:
        found.append(message)
    return found


@settings(max_examples=60, deadline=None)
@given(st.lists(messages, max_size=3))
def test_messages_come_back_equal_on_both_sides(sent: list[wire.Message]) -> None:
    data = b"".join(map(raw, sent))
    stream = io.BytesIO(data)
    assert [wire.read(stream) for _ in sent] == sent
    assert wire.read(stream) is None
    assert asyncio.run(read_all(data)) == sent


@pytest.mark.parametrize("cut", [1, 3, 4, 20, -1])
def test_a_stream_that_ends_inside_a_message_is_no_clean_end(cut: int) -> None:
    data = raw(wire.Submit(1, GenerationRequest("x", 64, 64, (1,), 4, None, 256, image=b"picture"), 0.0))[:cut]
    with pytest.raises(wire.WireError, match="ended inside"):
        wire.read(io.BytesIO(data))
    with pytest.raises(wire.WireError, match="ended inside"):
        asyncio.run(read_all(data))


def framed(header: object) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack(">I", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        struct.pack(">I", wire.MAX_HEADER_BYTES + 1),
        framed({"type": "Cancel", "fields": {"job_id": 1}, "blobs": [wire.MAX_BLOB_BYTES + 1]}),
        framed({"type": "Cancel", "fields": {"job_id": 1}, "blobs": [-1]}),
        framed({"type": "Popen", "fields": {}, "blobs": []}),
        framed({"type": "Cancel", "fields": {"job": 1}, "blobs": []}),
        framed({"type": "Cancel", "blobs": []}),
        framed([]),
        struct.pack(">I", 2) + b"\x80\x04",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.read(io.BytesIO(data))


def test_a_message_too_large_for_the_other_side_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MAX_BLOB_BYTES", 10)
    picture = GeneratedImage(b"eleven byte", "png", 1, 1, 1, 0)
    with pytest.raises(wire.WireError, match="at most"):
        wire.frame(wire.Previewed(1, 0, picture))


def test_pictures_are_not_copied_into_the_header() -> None:
    picture = GeneratedImage(b"\x00" * 1000, "png", 1, 1, 1, 0)
    header, data = wire.frame(wire.Previewed(1, 0, picture))
    assert data is picture.data
    assert len(header) < 300
