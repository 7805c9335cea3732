"""Servers for these tests: two that are shared by all, and as many of its own as a test needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server import running
from tests.server.running import Server

StartServer = Callable[..., Server]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The fake pipeline behind default options. Shared: take seeds that no other test takes."""
    yield from _serve([], tmp_path_factory.mktemp("server"), running.FAKE_WORKER)


@pytest.fixture(scope="session")
def echo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with guidance, whose pictures tell which request reached it."""
    yield from _serve([], tmp_path_factory.mktemp("echo"), running.ECHO_WORKER)


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """start_server(*flags, worker=..., ready=True, variables={}): one more server, of this test alone."""
    servers: list[Server] = []

    def start(
        *flags: str, worker: str = running.FAKE_WORKER, ready: bool = True, variables: dict[str, str] | None = None
    ) -> Server:
        folder = tmp_path / str(len(servers))
        folder.mkdir()
        servers.append(running.start(list(flags), folder, worker, variables))
        return servers[-1].wait_ready() if ready else servers[-1]

    yield start
    for server in servers:
        server.http.close()
        server.process.kill()
        server.process.wait()


def _serve(flags: list[str], folder: Path, worker: str) -> Iterator[Server]:
    server = running.start(flags, folder, worker).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()
