"""Two servers of one store; each kind of store once for all tests that leave their servers alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.server.conftest import StartServer
from tests.server.jobs.shared.storage import Storage, s3_server, shared_folder
from tests.server.running import Server, start

StartPair = Callable[..., tuple[Server, Server]]


@pytest.fixture(scope="session")
def bucket() -> Iterator[Storage]:
    with s3_server() as (storage, _):
        yield storage


@pytest.fixture(scope="session", params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    if request.param == "s3":
        found: Storage = request.getfixturevalue("bucket")
        return found
    return shared_folder(tmp_path_factory.mktemp("shared") / "store")


@pytest.fixture(scope="session")
def pair(storage: Storage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers that are shared by all tests: take keys and seeds that no other test takes."""
    with ExitStack() as running:
        servers = []
        for _ in range(2):
            server = start(["--store", storage.url], tmp_path_factory.mktemp("one"), variables=storage.variables)
            running.callback(_kill, server)
            servers.append(server)
        first, second = (server.wait_ready() for server in servers)
        yield first, second


@pytest.fixture
def start_pair(start_server: StartServer) -> StartPair:
    """start_pair(storage, *flags): two more servers of a store, of this test alone."""

    def begin(storage: Storage, *flags: str) -> tuple[Server, Server]:
        first, second = (
            start_server("--store", storage.url, *flags, ready=False, variables=dict(storage.variables))
            for _ in range(2)
        )
        return first.wait_ready(), second.wait_ready()

    return begin


def _kill(server: Server) -> None:
    server.http.close()
    server.process.kill()
    server.process.wait()
