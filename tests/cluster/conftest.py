"""One event loop for the tests of a file, which may share a replica."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Ray takes minutes and 2 GB: it is started by `pytest -m ray` alone."""
    if "ray" in config.option.markexpr:
        return
    skipped = pytest.mark.skip(reason="starts Ray Serve; run with -m ray")
    for item in items:
        if "ray" in item.keywords and item.get_closest_marker("ray"):
            item.add_marker(skipped)
