"""What the server has is what can be chosen: models, LoRAs with their strength; and where it is reached."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.conftest import MakeCheckpoint
from tests.loras import write_loras
from tests.server.conftest import StartServer
from tests.server.running import REAL_WORKER, Server
from tests.studio.pages import download, draw, drop, fact, open_page, pixels_of


@pytest.fixture
def two(start_server: StartServer, tiny_checkpoint: MakeCheckpoint, tmp_path: Path) -> Server:
    """The demo model, and a tiny one that has LoRAs."""
    loras = tmp_path / "loras"
    loras.mkdir()
    file = tmp_path / "models.toml"
    tiny = f'model = "{tiny_checkpoint()}"\nlora-dir = "{write_loras(loras)}"\ndtype = "float32"'
    tables = [f"[[models]]\n{table}\n" for table in ('model = "demo"', tiny)]
    file.write_text("\n".join(tables))
    file.chmod(0o600)
    return start_server("--config", str(file), worker=REAL_WORKER)


@pytest.mark.behaviour(117)
def test_models_and_loras_are_chosen_and_come_back(browser: Browser, two: Server) -> None:
    for page in open_page(browser, two):
        names = page.locator("#model option").evaluate_all("options => options.map(each => each.value)")
        assert names[0] == "demo"
        assert len(names) == 2
        expect(page.locator("#loras-field")).to_be_hidden()
        page.locator("#model").select_option(names[1])
        page.get_by_text("Free", exact=True).click()
        plain = _drawn(page)
        expect(page.locator("#loras-field")).to_be_visible()
        assert page.locator("#quality option").first.text_content() == "Auto · 4 steps"
        page.get_by_label("style", exact=True).check()
        page.get_by_label("Strength of style").fill("0.5")
        half = _drawn(page)
        assert not np.array_equal(plain, half)
        assert (fact(page, "LoRAs"), fact(page, "Model")) == ("style 0.5", names[1])
        file = download(page)
        page.reload()
        expect(page.locator("#model")).to_have_value("demo")
        drop(page.locator("#stage"), file)
        expect(page.locator("#model")).to_have_value(names[1])
        expect(page.get_by_label("style", exact=True)).to_be_checked()
        expect(page.get_by_label("Strength of style")).to_have_value("0.5")
        expect(page.get_by_label("words", exact=True)).not_to_be_checked()


def _drawn(page: Page) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    before = page.locator("#gallery li").count()
    draw(page, "a red apple", seed="7", steps="2", width="64", height="64")
    expect(page.locator("#gallery li")).to_have_count(before + 1)
    return pixels_of(page.locator(".frame img"))


class _Prefixing(BaseHTTPRequestHandler):
    """A proxy that serves another server under /ai, without the prefix there."""

    backend: str

    def do_GET(self) -> None:
        match = re.fullmatch(r"/ai(/.*)", self.path)
        if match is None:
            self.send_error(404)
            return
        host, _, port = self.backend.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        body = self.rfile.read(int(self.headers.get("content-length") or 0)) or None
        told = {"X-Forwarded-Prefix": "/ai", "X-Forwarded-Host": str(self.headers["host"]), "X-Forwarded-Proto": "http"}
        connection.request(self.command, match[1], body, {**dict(self.headers), **told})
        answer = connection.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "keep-alive", "date", "server"):
                self.send_header(name, value)
        self.send_header("connection", "close")
        self.end_headers()
        while data := answer.read1(65536):
            self.wfile.write(data)
            self.wfile.flush()
        connection.close()

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def behind(start_server: StartServer) -> Iterator[tuple[Server, str]]:
    """A server, and its address behind a proxy that has a prefix for it."""
    server = start_server("--trusted-proxies", "127.0.0.1")
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Prefixing", (_Prefixing,), {"backend": server.url}))
    thread = Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    yield server, f"http://127.0.0.1:{proxy.server_port}/ai"
    proxy.shutdown()
    proxy.server_close()
    thread.join()


@pytest.mark.behaviour(117)
@pytest.mark.parametrize("path", ["/", "/studio", "/studio/"])
def test_behind_a_proxys_prefix(browser: Browser, behind: tuple[Server, str], path: str) -> None:
    server, address = behind
    for page in open_page(browser, Server(server.process, address, server.folder, server.log), path):
        draw(page, "a cat", seed="117001")
        assert server.count("step", 117001) > 0
        page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
        page.get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#code")).to_contain_text(f"curl -s {address}/v1/images/generations")
