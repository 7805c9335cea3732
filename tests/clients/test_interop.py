"""The programs in docs/interop.md run as they stand there, each with the versions that its heading names."""

from __future__ import annotations

import base64
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.environments import node_modules, python_with
from tests.clients.replayed import REPLAYED
from tests.server import running
from tests.server.running import Server, picture, png

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"
PROGRAMS = {
    heading: (language, code)
    for heading, language, code in re.findall(r"## ([^\n]+)\n\n```(\w+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
}
EXTRAS = {"pydantic-ai-slim": "pydantic-ai-slim[openai]"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = running.start([], tmp_path_factory.mktemp("interop")).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


def command(heading: str, code: str, language: str, folder: Path) -> list[str]:
    versions = dict(re.findall(r"([@\w/-]+) ([0-9][0-9.]*)", heading))
    if language == "sh":
        return ["bash", "-e", "-c", code]
    if language == "python":
        packages = [f"{EXTRAS.get(name, name)}=={version}" for name, version in versions.items()]
        return [str(python_with(*packages)), "-c", code]
    home = node_modules(*(f"{name}@{version}" for name, version in versions.items()))
    (folder / "node_modules").symlink_to(home / "node_modules")
    (folder / "program.mjs").write_text(code)
    return ["node", "program.mjs"]


@pytest.mark.behaviour(64)
@pytest.mark.parametrize("heading", PROGRAMS)
def test_the_programs_run(server: Server, heading: str, tmp_path: Path) -> None:
    language, code = PROGRAMS[heading]
    run = command(heading, code.replace("http://localhost:1234", server.url), language, tmp_path)
    result = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=100)
    assert result.returncode == 0, result.stderr[-3000:]
    assert picture((tmp_path / "apple.png").read_bytes()).shape[2] == 3


def test_all_are_found() -> None:
    assert len(PROGRAMS) + 1 == PAGE.read_text().count("\n## ") == 8


@pytest.mark.behaviour(64)
@pytest.mark.parametrize("program", REPLAYED)
def test_replayed_requests_get_what_their_program_reads(server: Server, program: str) -> None:
    for request in REPLAYED[program]:
        if request.image is None:
            answer = server.request("POST", request.path, json=request.fields)
        else:
            answer = server.send_form(request.path, request.fields, [(request.image, png())])
        assert answer.status_code == 200, answer.text
        (item,) = answer.json()["data"]
        assert {"url", "b64_json"} & item.keys() == {request.reads}
        data = server.get(item["url"]).content if request.reads == "url" else base64.b64decode(item["b64_json"])
        assert picture(data).shape[2] == 3


def test_the_page_names_them() -> None:
    assert re.findall(r"^\| ([^|]+ at [0-9a-f]{7}\)) \|", PAGE.read_text(), re.MULTILINE) == list(REPLAYED)
