"""Every refusal has OpenAI's shape and the right status, whatever the client sent."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from fluxserve.server.http.errors import ERROR_RULES
from tests.server.conftest import StartServer
from tests.server.running import EDITS, GENERATIONS, VARIATIONS, Server, assert_error, exchange, png

JSON = {"content-type": "application/json"}

BAD_BODIES = {
    "cut": b"{",
    "empty": b"",
    "no UTF-8": b"\xff\xfe{}",
    "UTF-16": '{"prompt":"a"}'.encode("utf-16"),
    "an array": b"[]",
    "a string": b'"prompt"',
    "deep": b"[" * 100_000,
    "deep value": b'{"prompt":"a","user":' + b"[" * 40 + b"]" * 40 + b"}",
    "a key twice": b'{"prompt":"a","prompt":"b"}',
    "a tail": b'{"prompt":"a"} {}',
}


@pytest.mark.behaviour(12, 38)
@pytest.mark.parametrize("body", BAD_BODIES.values(), ids=BAD_BODIES.keys())
def test_what_is_no_json_object(server: Server, body: bytes) -> None:
    assert_error(server.request("POST", GENERATIONS, content=body, headers=JSON), 400, "invalid_json")


@pytest.mark.behaviour(12)
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_numbers_beyond_all_bounds_are_refused_by_name(server: Server, number: str) -> None:
    body = f'{{"prompt":"a","guidance_scale":{number}}}'.encode()
    assert_error(
        server.request("POST", GENERATIONS, content=body, headers=JSON), 400, "invalid_value", "guidance_scale"
    )


@pytest.mark.behaviour(14)
def test_text_that_is_not_unicode_is_refused_by_name(server: Server) -> None:
    for field in ("prompt", "model", "foo"):
        body = json.dumps({"prompt": "a", field: "\ud800"}).encode()
        response = server.request("POST", GENERATIONS, content=body, headers=JSON)
        assert_error(response, 400, "invalid_value", field)


@pytest.mark.behaviour(38)
def test_routes_methods_and_types(server: Server) -> None:
    for path in ("/v2", "/v1/images", "/v1/chat/completions", "/images"):
        assert_error(server.get(path), 404, "not_found")
    response = server.get(GENERATIONS)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    assert_error(server.request("DELETE", "/v1/models"), 405, "method_not_allowed")
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        response = server.request("POST", GENERATIONS, content=b'{"prompt":"a"}', headers={"content-type": kind})
        assert_error(response, 415, "unsupported_media_type")
    for path in (EDITS, VARIATIONS):
        refused = server.request("POST", path, content=b"a", headers={"content-type": "text/plain"})
        assert_error(refused, 415, "unsupported_media_type")


@pytest.mark.behaviour(57)
def test_malformed_forms(server: Server) -> None:
    def send(body: bytes, kind: str = "multipart/form-data; boundary=x") -> object:
        return assert_error(
            server.request("POST", EDITS, content=body, headers={"content-type": kind}), 400, "invalid_multipart"
        )

    send(b"--x\r\n", "multipart/form-data")
    send(b"")
    send(b"hello")
    send(b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na cat')
    send(b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n")
    send(b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n--x--\r\n')


@pytest.mark.behaviour(57)
def test_forms_beyond_their_bounds(server: Server) -> None:
    many_fields = {f"f{i}": "x" for i in range(65)}
    assert_error(server.send_form(EDITS, many_fields, [("image", png())]), 413, "request_too_large")
    many_files = [(f"f{i}", b"x") for i in range(18)]
    assert_error(server.send_form(EDITS, {"prompt": "a"}, many_files), 413, "request_too_large")
    long_field = {"prompt": "x" * (256 * 1024 + 1)}
    assert_error(server.send_form(EDITS, long_field, [("image", png())]), 413, "request_too_large")


@pytest.mark.behaviour(39)
def test_bodies_over_the_cap_are_refused_before_they_are_read(server: Server) -> None:
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    declared = exchange(server, [head + b"Content-Length: 999999999\r\n\r\n"])
    endless = exchange(
        server, [head + b"Transfer-Encoding: chunked\r\n\r\n", *[b"10000\r\n" + b" " * 65536 + b"\r\n"] * 17]
    )
    for answer in (declared, endless):
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_too_large"


@pytest.mark.behaviour(38)
def test_failures_of_the_worker(server: Server) -> None:
    for fault, status, code in (
        ("nan:vae", 500, "non_finite_output"),
        ("oom:step1", 503, "insufficient_memory"),
        ("error:encode", 500, "internal_error"),
    ):
        response = server.generate(f"a cat [{fault}]")
        assert "prompt" not in assert_error(response, status, code)["message"]
        assert response.headers["x-should-retry"] == "false"
    assert server.generate().status_code == 200


@pytest.mark.behaviour(38, 48)
def test_a_request_that_kills_its_workers_is_not_run_again(start_server: StartServer) -> None:
    server = start_server()
    for tries in (2, 2):
        response = server.generate("a cat [exit:step1]", seed=4800)
        assert_error(response, 500, "worker_crashed")
        assert response.headers["x-should-retry"] == "false"
        assert server.count("begin", 4800) == tries
    assert server.wait_ready().generate().status_code == 200


def test_every_code_has_a_status_that_clients_understand() -> None:
    statuses = {rule.status for rule in ERROR_RULES.values()}
    assert statuses == {400, 401, 403, 404, 405, 410, 413, 415, 416, 422, 429, 500, 503, 504}
    assert not statuses & {408, 409}  # both are retried by the official clients
    for code, rule in ERROR_RULES.items():
        if rule.status >= 500:
            assert rule.final or rule.retry_after, code


def test_answers_carry_their_request_id(server: Server) -> None:
    for path in ("/livez", "/nowhere", "/v1/models"):
        ids = {server.get(path).headers["x-request-id"] for _ in range(2)}
        assert len(ids) == 2
        assert int(server.get(path).headers["openai-processing-ms"]) >= 0


@pytest.mark.behaviour(61)
def test_the_clients_request_id_is_kept_if_harmless(server: Server) -> None:
    def answered(sent: str) -> str:
        return str(server.get("/livez", headers={"x-request-id": sent}).headers["x-request-id"])

    assert answered("Abc-123_x") == "Abc-123_x"
    for sent in ("a b", "a;b", "x" * 65, ""):
        assert answered(sent) != sent


def _chunks() -> Iterator[bytes]:
    yield b'{"prompt":'
    yield b'"a cat"}'


def test_a_chunked_body_is_a_body(server: Server) -> None:
    assert server.request("POST", GENERATIONS, content=_chunks(), headers=JSON).status_code == 200
