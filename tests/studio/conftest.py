"""The studio in a real browser, on servers of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.server import running
from tests.server.conftest import start_server
from tests.server.running import Server
from tests.studio.pages import chromium, open_page

__all__ = ["start_server"]


expect.set_options(timeout=30_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A module's own: Playwright holds the thread's event loop as long as it lives."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The fake pipeline."""
    yield from _serve(tmp_path_factory, running.FAKE_WORKER)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model."""
    yield from _serve(tmp_path_factory, running.REAL_WORKER)


def _serve(tmp_path_factory: pytest.TempPathFactory, worker: str) -> Iterator[Server]:
    server = running.start([], tmp_path_factory.mktemp("studio"), worker).wait_ready()
    yield server
    assert server.stop() == 0, server.log.read_text()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The studio of the fake pipeline, in a browser profile of its own."""
    yield from open_page(browser, server)


@pytest.fixture
def demo_page(browser: Browser, demo: Server) -> Iterator[Page]:
    """The studio of the demo model."""
    yield from open_page(browser, demo)
