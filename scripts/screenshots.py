"""Takes the pictures of docs/studio/: the studio in Chromium, drawing with the demo model."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.server import running  # noqa: E402
from tests.server.running import Server  # noqa: E402
from tests.studio.pages import chromium, draw, open_page, start_drawing  # noqa: E402

FOLDER = ROOT / "docs" / "studio"
DESK, PHONE = {"width": 1360, "height": 1000}, {"width": 390, "height": 980}
FOX = "a fox on a light green background"


def shoot(page: Page, name: str) -> None:
    page.wait_for_timeout(600)
    page.screenshot(path=FOLDER / f"{name}.jpg", type="jpeg", quality=88)


def drawn(browser: Browser, server: Server) -> None:
    for page in open_page(browser, server, viewport=DESK):
        for prompt, seed in (("a lighthouse", "5"), ("a sailboat on a light blue background", "3"), (FOX, "7")):
            draw(page, prompt, seed=seed, n="4")
        page.locator(".frame").nth(1).click()
        shoot(page, "drawn")
        start_drawing(page, FOX, steps="400")
        expect(page.locator("[data-field=num_inference_steps] .error")).to_be_visible()
        shoot(page, "refused")
        page.get_by_role("button", name="Use as input").click()
        page.get_by_role("button", name="Paint a mask").click()
        box = page.locator("#mask-canvas").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + 120, box["y"] + 130)
        page.mouse.down()
        page.mouse.move(box["x"] + 380, box["y"] + 170, steps=12)
        page.mouse.up()
        shoot(page, "mask")


def dark_and_small(browser: Browser, server: Server) -> None:
    for name, options in (("dark", {"viewport": DESK}), ("phone", {"viewport": PHONE, "device_scale_factor": 2})):
        for page in open_page(browser, server, color_scheme="dark" if name == "dark" else "light", **options):
            draw(page, "a sunset in the mountains")
            shoot(page, name)


def drawing(browser: Browser, server: Server) -> None:
    """On its way: the demo model is too quick to be caught, so a long run is."""
    for page in open_page(browser, server, viewport=DESK):
        start_drawing(page, "a red apple on a white background", seed="7", n="2", steps="40")
        expect(page.locator(".frame:nth-child(2)[data-shown=preview]")).to_be_visible(timeout=180_000)
        shoot(page, "drawing")
        page.keyboard.press("Escape")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        server = running.start([], Path(folder), running.REAL_WORKER).wait_ready()
        try:
            for take in (drawn, dark_and_small, drawing):
                take(browser, server)
        finally:
            server.stop()
            browser.close()


if __name__ == "__main__":
    main()
