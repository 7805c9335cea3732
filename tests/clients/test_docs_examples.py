"""The commands in docs/http.md do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import running
from tests.server.running import Server, picture

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = running.start([], tmp_path).wait_ready()
    yield server
    assert server.stop() == 0


def test_the_commands_run(server: Server) -> None:
    [script] = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    bash = shutil.which("bash")
    assert bash
    script = script.replace("http://localhost:1234", server.url)
    subprocess.run([bash, "-e", "-c", script], check=True, cwd=server.folder, timeout=60)
    for name in ("apple.png", "green.png"):
        assert picture((server.folder / name).read_bytes()).shape == (64, 64, 3)
