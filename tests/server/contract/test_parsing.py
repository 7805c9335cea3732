"""Whatever bytes arrive, parsing ends in a request or in a refusal that names its reason; nothing else is raised."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxserve.config import EngineConfig, ServerConfig
from fluxserve.decoding.strict_json import parse_json_object
from fluxserve.errors import InvalidRequest
from fluxserve.server.contract.multipart import Form, parse_form
from fluxserve.server.contract.parameters import parse_parameters, parse_text_fields
from fluxserve.server.contract.resolve import ResolvedRequest, ServingLimits, resolve_request
from fluxserve.server.contract.schemas import EditParameters, GenerationParameters
from fluxserve.server.http.errors import ERROR_RULES, error_rule
from tests.fake_pipeline import CARD

LIMITS = ServingLimits(CARD, ServerConfig(), EngineConfig())
NAMES = [
    *GenerationParameters.model_fields,
    "steps",
    "guidance",
    "width",
    "height",
    "lora",
    "extra_body",
    "input_fidelity",
]

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 10),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["auto", "64x64", "128x96", "png", "JPG", "high", "url", "b64_json", "true", "1", "1e3", "\ud800", "\0"]
    ),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
BODIES = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=10), VALUES, max_size=6)


def outcome_of(parse: Callable[[], object]) -> object:
    """What `parse` returns; None if it refuses as it should."""
    try:
        return parse()
    except InvalidRequest as error:
        refusal = error
    assert refusal.code in ERROR_RULES
    assert 400 <= error_rule(refusal.code).status < 500
    refusal.message.encode()
    return None


fuzzed = settings(max_examples=200, deadline=None, derandomize=True)


@fuzzed
@given(BODIES, st.text(max_size=20))
def test_any_json_body(fields: dict[str, Any], accept: str) -> None:
    body = json.dumps({"prompt": "a cat", **fields}).encode()

    def parse() -> ResolvedRequest:
        return resolve_request(parse_parameters(parse_json_object(body), GenerationParameters), None, accept, LIMITS)

    resolved = outcome_of(parse)
    if isinstance(resolved, ResolvedRequest):
        assert resolved.request.work <= LIMITS.engine.max_work
        assert resolved.request.width % 16 == resolved.request.height % 16 == 0
        assert all(0 <= seed < 2**63 for seed in resolved.request.seeds)
        assert all(
            character.isprintable() and character.isascii() for warning in resolved.warnings for character in warning
        )


@fuzzed
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_as_json(body: bytes) -> None:
    outcome_of(lambda: parse_json_object(body))


@fuzzed
@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=12), max_size=6))
def test_any_form_fields(fields: dict[str, str]) -> None:
    outcome_of(lambda: parse_parameters(parse_text_fields(fields, EditParameters), EditParameters))


@fuzzed
@given(
    st.lists(st.sampled_from([b"--x", b"\r\n", b"--", b'Content-Disposition: form-data; name="a"', b":", b"\0", b"a"]))
)
def test_any_bytes_as_a_form(pieces: list[bytes]) -> None:
    form = outcome_of(lambda: parse_form(pieces, "multipart/form-data; boundary=x"))
    assert form is None or isinstance(form, Form)


@pytest.mark.parametrize("size", [1, 100, 70_000])
def test_a_form_gives_back_what_was_put_in(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"\r\n--x-\r\n"
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    text = '--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nä cat\r\n'.encode()
    form = parse_form([text + head, data, b"\r\n--x--\r\n"], 'multipart/form-data; boundary="x"')
    assert form == Form([("prompt", "ä cat")], [("image", data)])
