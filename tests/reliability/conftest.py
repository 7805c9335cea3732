"""Servers for these tests: two shared by all, and as many of its own as a test needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server import running
from tests.server.conftest import anyio_backend, start_server
from tests.server.jobs.shared.conftest import bucket, pair, storage
from tests.server.running import Server

__all__ = ["anyio_backend", "bucket", "guarded", "pair", "server", "start_server", "storage"]

KEYS = ("first", "second")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The fake pipeline behind default options; a long queue. Shared: take seeds that no other test takes."""
    yield from _serve(["--max-queue", "128"], tmp_path_factory)


@pytest.fixture(scope="session")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One with keys, a rate limit, small bounds and strict about fields."""
    flags = ["--rate-limit", "30", "--max-work", str(64 * 64 * 40), "--strict", "--max-connections", "256"]
    flags += [flag for key in KEYS for flag in ("--api-key", key)]
    yield from _serve(flags, tmp_path_factory)


def _serve(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = running.start(flags, tmp_path_factory.mktemp("server")).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()
