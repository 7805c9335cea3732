"""openai-python and openai-node in several versions do everything they can, and see what they should."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.environments import NODE_VERSIONS, PYTHON_VERSIONS, node_modules, python_with_openai
from tests.server import running
from tests.server.running import GENERATIONS, Server, png

HERE = Path(__file__).parent
KEY = "right-key"
NAMES = [*(f"python-{version}" for version in PYTHON_VERSIONS), *(f"node-{version}" for version in NODE_VERSIONS)]
CLIENTS = {name: 100_000 * (i + 1) for i, name in enumerate(NAMES)}
"""Each client's own range of seeds, by which the pipeline's log tells its jobs."""

DEADLINE = "deadline_exceeded"
PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clients")
    (folder / "image.png").write_bytes(png(64, 96))
    (folder / "mask.png").write_bytes(png(64, 96, (0, 0, 0, 0), "RGBA"))
    server = running.start(["--api-key", KEY], folder).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def told(server: Server, client: str) -> dict[str, Any]:
    """What the client saw in each scenario; all of them run once for all tests."""
    kind, _, version = client.partition("-")
    arguments = [f"{server.url}/v1/", KEY, str(CLIENTS[client])]
    arguments += [str(server.folder / "image.png"), str(server.folder / "mask.png")]
    if kind == "python":
        command = [str(python_with_openai(version)), str(HERE / "python_client.py"), *arguments]
    else:
        command = ["node", str(HERE / "node_client.mjs"), *arguments, str(node_modules(f"openai@{version}"))]
    ended_before = server.log.read_text().count(f'"code": "{DEADLINE}"')
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return {**json.loads(result.stdout), DEADLINE: server.log.read_text().count(f'"code": "{DEADLINE}"') - ended_before}


@pytest.fixture
def seed(client: str) -> int:
    return CLIENTS[client]


@pytest.mark.behaviour(1, 18, 19, 55)
def test_a_url_and_base64(told: dict[str, Any], seed: int) -> None:
    assert told["generate_url"] == [{"seed": seed, "url": True, "type": "image/png", "png": True}]
    b64 = told["generate_b64"]
    assert [image["seed"] for image in b64["images"]] == [seed, seed + 1]
    assert all(image["png"] and not image["url"] for image in b64["images"])
    assert (b64["size"], b64["tokens"]) == ("256x320", 2 * 16 * 20)


@pytest.mark.behaviour(31, 32)
def test_streams(told: dict[str, Any]) -> None:
    for count in range(4):
        previews = [[PARTIAL, index, 0, True] for index in range(count)]
        assert told["stream_with_previews"][str(count)] == [*previews, [COMPLETED, None, 0, True]]
    assert told["stream_two"] == [[COMPLETED, None, 0, True], [COMPLETED, None, 1, True]]


@pytest.mark.behaviour(35)
def test_a_stream_that_fails_raises(told: dict[str, Any]) -> None:
    assert told["stream_that_fails"] == {"kind": "APIError", "code": "non_finite_output"}


@pytest.mark.behaviour(23, 30, 33)
def test_edits_and_variations(told: dict[str, Any], seed: int) -> None:
    assert [image["seed"] for image in told["edit"]] == [seed] * 3
    assert all(image["png"] for image in told["edit"])
    assert told["edit_stream"] == ["image_edit.partial_image", "image_edit.completed"]
    assert [image["png"] for image in told["variation"]] == [True, True]


@pytest.mark.behaviour(59)
def test_models(told: dict[str, Any]) -> None:
    assert told["models"] == {"list": ["fluxserve/fake"], "one": "fluxserve/fake"}


@pytest.mark.behaviour(36, 38)
def test_refusals(told: dict[str, Any]) -> None:
    bad_size = {"kind": "BadRequestError", "code": "invalid_size", "param": "size"}
    bad_key = {"kind": "AuthenticationError", "code": "invalid_api_key", "param": None}
    assert told["refusals"]["size"] == told["refusals"]["size in a stream"] == bad_size
    assert told["refusals"]["key"] == told["refusals"]["key in a stream"] == bad_key
    assert told["refusals"]["model"] == {"kind": "NotFoundError", "code": "model_not_found", "param": "model"}


@pytest.mark.behaviour(41, 42)
def test_what_cannot_help_is_not_retried(told: dict[str, Any]) -> None:
    assert told["refusals"]["deadline"] == {"kind": "InternalServerError", "code": DEADLINE, "param": None}
    assert told[DEADLINE] == 1


@pytest.mark.behaviour(37)
def test_leaving_a_stream_stops_its_job(told: dict[str, Any], server: Server, seed: int) -> None:
    assert told["leave_the_stream"] == PARTIAL
    assert 10 <= server.count("step", seed + 1) < 20  # the first preview comes after ten of forty steps


@pytest.mark.behaviour(43)
def test_a_client_that_times_out_gets_its_picture_from_one_job(told: dict[str, Any], server: Server, seed: int) -> None:
    assert [image["seed"] for image in told["time_out"]] == [seed + 2]
    assert server.count("begin", seed + 2) == 1


@pytest.mark.behaviour(51)
def test_three_at_once(told: dict[str, Any]) -> None:
    assert told["three_at_once"] is True


def test_the_seeds_own_example(server: Server) -> None:
    """The snippet of the project's beginnings, but for the address and the key."""
    snippet = f"""
from openai import OpenAI

client = OpenAI(base_url="{server.url}/v1/", api_key="{KEY}")
result = client.images.generate(model="default", prompt="A vibrant sunset in the mountains, 4k, high quality.", n=1)
print(result.data[0].url)
"""
    python = python_with_openai(PYTHON_VERSIONS[-1])
    url = subprocess.run([python, "-c", snippet], capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    assert server.get(url).headers["content-type"] == "image/png"


def curl(server: Server, *arguments: str, path: str = GENERATIONS) -> subprocess.CompletedProcess[bytes]:
    command = ["curl", "--silent", "--show-error", "--max-time", "30", "-H", f"Authorization: Bearer {KEY}"]
    return subprocess.run([*command, server.url + path, *arguments], capture_output=True, timeout=60)


@pytest.mark.behaviour(7, 20)
def test_curl(server: Server) -> None:
    json_body = ("-H", "Content-Type: application/json", "-d")
    answer = json.loads(curl(server, *json_body, '{"prompt": "a cat"}').stdout)
    url = answer["data"][0]["url"]
    assert subprocess.run(["curl", "-s", url], capture_output=True).stdout[1:4] == b"PNG"
    file = curl(server, *json_body, '{"prompt": "a cat", "response_format": "file", "output_format": "jpeg"}')
    assert file.stdout[:2] == b"\xff\xd8"
    events = curl(server, "-N", *json_body, '{"prompt": "a cat", "stream": true, "partial_images": 1}').stdout.decode()
    assert [line for line in events.splitlines() if line.startswith("event")] == [
        f"event: {PARTIAL}",
        f"event: {COMPLETED}",
    ]
    form = ("-F", "prompt=a cat", "-F", f"image=@{server.folder}/image.png", "-F", "response_format=b64_json")
    assert json.loads(curl(server, *form, path="/v1/images/edits").stdout)["data"][0].keys() == {"b64_json", "seed"}
    untyped = json.loads(curl(server, "-d", '{"prompt": "a cat"}').stdout)
    assert untyped["error"]["code"] == "unsupported_media_type"
