"""The official clients, curl and the AI SDK send two and four pictures to draw by: all arrive, in order."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.clients.environments import NODE_VERSIONS, PYTHON_VERSIONS, node_modules, python_with_openai
from tests.server import running
from tests.server.running import Server, echo, png

SIZES = [(64, 96), (128, 64), (80, 80), (96, 112)]
"""None is shrunk."""

PYTHON = """
import sys, openai
client = openai.OpenAI(base_url=sys.argv[1], api_key="none")
files = [open(path, "rb") for path in sys.argv[2:]]
print(client.images.edit(model="gpt-image-1", image=files, prompt="a hat on a cat").data[0].b64_json)
"""
NODE = """
import fs from "node:fs";
import { OpenAI } from "openai";
const [baseURL, ...paths] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });
const image = paths.map((path) => fs.createReadStream(path));
const answer = await client.images.edit({ model: "gpt-image-1", image, prompt: "a hat on a cat" });
console.log(answer.data[0].b64_json);
"""
AI_SDK = """
import fs from "node:fs";
import { generateImage } from "ai";
import { createOpenAI } from "@ai-sdk/openai";
const [baseURL, ...paths] = process.argv.slice(2);
const model = createOpenAI({ baseURL, apiKey: "none" }).image("gpt-image-1");
const images = paths.map((path) => fs.readFileSync(path));
const { image } = await generateImage({ model, prompt: { text: "a hat on a cat", images } });
console.log(image.base64);
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("several")
    for i, size in enumerate(SIZES):
        (folder / f"{i}.png").write_bytes(png(*size))
    server = running.start([], folder, "tests.server.reading_worker").wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def run(command: Sequence[str], folder: Path | None = None) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


def run_node(code: str, packages: Sequence[str], arguments: Sequence[str], folder: Path) -> str:
    (folder / "node_modules").symlink_to(node_modules(*packages) / "node_modules")
    (folder / "program.mjs").write_text(code)
    return run(["node", "program.mjs", *arguments], folder)


def pictures(server: Server, count: int) -> list[str]:
    return [str(server.folder / f"{i}.png") for i in range(count)]


def sizes_read(base64_png: str) -> list[tuple[int, int]]:
    """Of the pictures that the one in the answer was drawn by."""
    return [(each["width"], each["height"]) for each in echo({"b64_json": base64_png})["references"]]


@pytest.mark.behaviour(100)
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("version", PYTHON_VERSIONS)
def test_openai_python(server: Server, version: str, count: int) -> None:
    drawn = run([str(python_with_openai(version)), "-c", PYTHON, f"{server.url}/v1", *pictures(server, count)])
    assert sizes_read(drawn) == SIZES[:count]


@pytest.mark.behaviour(100)
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("version", NODE_VERSIONS)
def test_openai_node(server: Server, version: str, count: int, tmp_path: Path) -> None:
    arguments = [f"{server.url}/v1", *pictures(server, count)]
    assert sizes_read(run_node(NODE, [f"openai@{version}"], arguments, tmp_path)) == SIZES[:count]


@pytest.mark.behaviour(100)
@pytest.mark.parametrize("count", [2, 4])
def test_the_ai_sdk(server: Server, count: int, tmp_path: Path) -> None:
    arguments = [f"{server.url}/v1", *pictures(server, count)]
    drawn = run_node(AI_SDK, ["ai@6.0.326", "@ai-sdk/openai@3.0.141"], arguments, tmp_path)
    assert sizes_read(drawn) == SIZES[:count]


@pytest.mark.behaviour(100)
@pytest.mark.parametrize("count", [2, 4])
def test_curl(server: Server, count: int) -> None:
    files = [word for path in pictures(server, count) for word in ("-F", f"image[]=@{path}")]
    fields = ["-F", "prompt=a hat on a cat", "-F", "response_format=b64_json"]
    answer = run(["curl", "--silent", "--max-time", "60", f"{server.url}/v1/images/edits", *fields, *files])
    assert sizes_read(json.loads(answer)["data"][0]["b64_json"]) == SIZES[:count]
