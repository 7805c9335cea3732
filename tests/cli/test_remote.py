"""`fluxserve ps`, `load` and `unload` against a running server."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fluxserve.cli import app
from tests.server.conftest import StartServer, start_server
from tests.server.running import Server

__all__ = ["start_server"]


def run(server: Server, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [*words, "--url", server.url, "--key", "boss"])
    return result.exit_code, result.output


@pytest.mark.behaviour(165)
def test_models_of_a_running_server(start_server: StartServer) -> None:
    server = start_server("a", "b", "--api-key", "k", "--admin-key", "boss")
    code, table = run(server, "ps")
    assert code == 0
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [["a", "unloaded"], ["b", "unloaded"]]
    code, told = run(server, "load", "b")
    assert (code, told.splitlines()[-1]) == (0, "b: loaded")
    assert [line.split()[1] for line in run(server, "ps")[1].splitlines()[1:]] == ["unloaded", "loaded"]
    code, told = run(server, "unload", "b")
    assert (code, told.splitlines()[-1]) == (0, "b: unloaded")
    code, told = run(server, "load", "c")
    assert code != 0
    assert "the model 'c' is not served here" in told


def test_no_server_is_told_in_words() -> None:
    result = CliRunner().invoke(app, ["ps", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "no answer from http://127.0.0.1:9" in result.output
