"""/openapi.json and /docs tell the truth: a fuzzer believes them, and finds no answer that they do not announce."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from fluxserve.server.contract.schemas import ErrorBody, ImagesBody, ModelList
from tests.clients.environments import schemathesis
from tests.server import running
from tests.server.running import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = running.start(
        ["--max-pixels", "16384", "--max-work", "1000000"], tmp_path_factory.mktemp("openapi")
    ).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def test_a_fuzzer_finds_no_lie(server: Server) -> None:
    command = [schemathesis(), "run", f"{server.url}/openapi.json", "--checks", CHECKS, "--max-examples", "15"]
    command += ["--phases", "coverage,fuzzing", "--generation-deterministic", "--no-color"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=server.folder)
    assert result.returncode == 0, result.stdout[-5000:]
    assert re.search(r"15 selected / 15 total", result.stdout)


@pytest.mark.behaviour(52)
def test_the_docs_load_nothing_from_elsewhere(server: Server) -> None:
    page = server.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"https?://|//[a-z]|<script|@import|url\(", page.text)
    for route in (
        "/v1/images/generations",
        "/v1/images/edits",
        "/v1/images/variations",
        "/v1/models/{name}",
        "/metrics",
    ):
        assert route in page.text
    for field in ("num_inference_steps", "true_cfg_scale", "input_fidelity"):
        assert field in page.text


def test_answers_are_what_the_schema_says_and_no_more(server: Server) -> None:
    """Image answers are put together by hand, so nothing else holds them to it."""
    answer = server.generate(n=2, response_format="b64_json").json()
    assert ImagesBody.model_validate(answer).model_dump(exclude_none=True) == answer
    models = server.get("/v1/models").json()
    assert ModelList.model_validate(models).model_dump() == models
    error = server.generate(n=0).json()
    assert ErrorBody.model_validate(error).model_dump() == error


def test_ranges_are_told_exactly(server: Server) -> None:
    document = server.get("/openapi.json").json()
    for path in ("generations", "edits", "variations"):
        bodies = document["paths"][f"/v1/images/{path}"]["post"]["requestBody"]["content"]
        forms = [] if path == "generations" else ["multipart/form-data"]
        assert list(bodies) == [*forms, "application/json"]
        for body in bodies.values():
            properties = body["schema"]["properties"]
            assert properties["seed"]["anyOf"][0]["maximum"] == 2**64 - 1
            assert (properties["n"]["minimum"], properties["n"]["maximum"]) == (1, 10)
            assert properties["steps"]["anyOf"] == properties["num_inference_steps"]["anyOf"]
            assert ("image" in properties) == (path != "generations")
