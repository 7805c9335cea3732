"""What tests do with the page: open it, draw, read pictures out of it."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from tests.fake_pipeline import Pixels
from tests.server.running import Server, picture

NAMES = ("chromium", "chromium-browser", "google-chrome")


def chromium() -> str:
    """The browser that `scripts/browser` sees to; without one the test fails, unless FLUXSERVE_NO_BROWSER says skip."""
    if os.environ.get("FLUXSERVE_NO_BROWSER") == "1":
        pytest.skip("FLUXSERVE_NO_BROWSER=1")
    wanted = os.environ.get("FLUXSERVE_CHROMIUM")
    found = next(filter(None, map(shutil.which, [wanted] if wanted else NAMES)), None)
    if found is None:
        pytest.fail("there is no Chromium: run scripts/browser, or set FLUXSERVE_NO_BROWSER=1 to skip these tests")
    return found


def open_page(browser: Browser, server: Server, path: str = "/", **options: Any) -> Iterator[Page]:
    """The page, ready to draw; afterwards, nothing may have gone wrong in it."""
    context = browser.new_context(**options)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.extend(_complaint(message)))
    page.goto(server.url + path)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready")
    yield page
    context.close()
    assert wrong == []


def _complaint(message: ConsoleMessage) -> list[str]:
    """What the browser logs of an error, but for answers that refuse: those are meant."""
    is_refusal = message.text.startswith("Failed to load resource")
    return [message.text] if message.type in ("error", "warning") and not is_refusal else []


def start_drawing(page: Page, prompt: str, **fields: str) -> None:
    """Fills in the form, by the fields' ids, and draws with the keyboard."""
    for name, value in fields.items():
        page.locator(f"#{name}").fill(value)
    page.locator("#prompt").fill(prompt)
    page.keyboard.press("Control+Enter")


def draw(page: Page, prompt: str, **fields: str) -> None:
    """The same, to the end."""
    start_drawing(page, prompt, **fields)
    expect(page.locator("#status")).to_have_text(re.compile("^Done"), timeout=180_000)


def fact(page: Page, name: str) -> str:
    """What the page says of the chosen picture: Seed, Size, Steps, ..."""
    return (
        page.locator("#facts div", has=page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd").inner_text()
    )


def pixels_of(image: Locator) -> Pixels:
    """The pixels of a picture in the page; what it cannot fetch (its policy), it can still paint."""
    return picture(image.evaluate(_PAINT).partition(",")[2])


def download(page: Page) -> bytes:
    """The file of the chosen picture."""
    with page.expect_download() as started:
        page.get_by_role("button", name="Download").click()
    return started.value.path().read_bytes()


_PAINT = """async image => {
    await image.decode();
    const size = {width: image.naturalWidth, height: image.naturalHeight};
    const canvas = Object.assign(document.createElement("canvas"), size);
    canvas.getContext("2d").drawImage(image, 0, 0);
    return canvas.toDataURL("image/png");
}"""
_DROP = """(target, base64) => {
    const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
    target.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
}"""


def drop(target: Locator, data: bytes) -> None:
    """Drops a PNG file there."""
    target.evaluate(_DROP, base64.b64encode(data).decode())
