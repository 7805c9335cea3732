"""The commands in docs/http.md do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import running
from tests.server.running import Server, picture, png

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


DRAWING, DRAWING_BY_PICTURES = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = running.start([], tmp_path, request.param).wait_ready()
    yield server
    assert server.stop() == 0


@pytest.mark.parametrize("server", [running.FAKE_WORKER], indirect=True)
def test_the_commands_run(server: Server) -> None:
    run(DRAWING, server)
    for name in ("apple.png", "green.png"):
        assert picture((server.folder / name).read_bytes()).shape == (64, 64, 3)


@pytest.mark.parametrize("server", ["tests.server.reading_worker"], indirect=True)
def test_the_command_with_pictures_runs(server: Server) -> None:
    for name, size in (("cat.png", (80, 96)), ("hat.png", (64, 64))):
        (server.folder / name).write_bytes(png(*size))
    run(DRAWING_BY_PICTURES, server)
    assert picture((server.folder / "both.png").read_bytes()).shape == (96, 80, 3)


def run(script: str, server: Server) -> None:
    bash = shutil.which("bash")
    assert bash
    script = script.replace("http://localhost:1234", server.url)
    subprocess.run([bash, "-e", "-c", script], check=True, cwd=server.folder, timeout=60)
