"""Pictures in the studio: edited, varied, kept, dropped, copied as programs. The demo model draws."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.server.conftest import StartServer
from tests.server.running import EDITS, Server, echo, picture, png
from tests.studio.pages import download, draw, drop, fact, open_page, pixels_of

APPLE = "a red apple on a white background"


def paint(page: Page, across: float, down: float) -> None:
    """One stroke from the middle of the mask's canvas to a place given in parts of its sides."""
    box = page.locator("#mask-canvas").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down, steps=5)
    page.mouse.up()


@pytest.mark.behaviour(143)
def test_a_painted_mask_is_what_is_redrawn(demo_page: Page) -> None:
    page = demo_page
    draw(page, APPLE, seed="7")
    before = pixels_of(page.locator(".frame img"))
    page.get_by_role("button", name="Use as input").click()
    page.get_by_role("button", name="Paint a mask").click()
    paint(page, 0.5, 0.9)
    page.get_by_role("button", name="Use this mask").click()
    draw(page, "a green pear on a white background", seed="8")
    after = pixels_of(page.locator(".frame img"))
    painted = np.zeros(before.shape[:2], bool)
    painted[118:240, 112:144] = True
    near = np.zeros_like(painted)
    near[90:256, 80:176] = True
    changed = (before.astype(int) != after).any(axis=2)
    assert changed[painted].mean() > 0.5
    assert not changed[~near].any()
    assert fact(page, "Started from") == "1 picture, masked"


@pytest.mark.behaviour(143, 149)
def test_a_mask_is_painted_with_the_keyboard_and_undone(demo_page: Page) -> None:
    page = demo_page
    page.locator("#files").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": png(256, 128)})
    page.get_by_role("button", name="Paint a mask").press("Enter")
    for key in ("]", "ArrowLeft", "Space", "ArrowRight", "Space", "e", "Space", "Control+z", "b"):
        page.keyboard.press(key)
    page.get_by_role("button", name="Use this mask").press("Enter")
    mask = pixels_of(page.locator("#inputs .mask"))
    assert mask.shape == (128, 256, 3)
    expect(page.locator("#inputs small")).to_have_text("Picture 1, 256 × 128, masked")
    page.get_by_role("button", name="Repaint the mask").click()
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("button", name="Use this mask").click()
    expect(page.locator("#inputs .mask")).to_have_count(0)
    page.get_by_role("button", name="Remove picture 1").click()
    expect(page.locator("#inputs li")).to_have_count(0)


@pytest.mark.behaviour(143)
def test_variations_and_edits_with_strength(demo_page: Page) -> None:
    page = demo_page
    draw(page, APPLE, seed="7")
    before = pixels_of(page.locator(".frame img")).astype(int)
    page.get_by_role("button", name="Vary", exact=True).click()
    expect(page.locator("#about")).to_have_text("A variation, without a prompt")
    page.locator("#strength").fill("10")
    draw(page, APPLE, seed="9")
    assert fact(page, "Strength") == "0.1"
    near = np.abs(pixels_of(page.locator(".frame img")).astype(int) - before).mean()
    page.locator("#strength").fill("100")
    draw(page, "a blue cup on a black background", seed="9")
    assert near < np.abs(pixels_of(page.locator(".frame img")).astype(int) - before).mean()


@pytest.mark.behaviour(143)
def test_several_pictures_where_the_model_takes_them(browser: Browser, start_server: StartServer) -> None:
    """A model that draws by pictures, and writes which it was given into what it draws."""
    server = start_server(worker="tests.server.reading_worker")
    sent = [png(128, 128, colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for page in open_page(browser, server):
        expect(page.locator("#inputs-hint")).to_contain_text("pictures to draw from")
        files = [{"name": f"{at}.png", "mimeType": "image/png", "buffer": data} for at, data in enumerate(sent)]
        page.locator("#files").set_input_files(files[:2])
        expect(page.locator("#inputs li")).to_have_count(2)
        drop(page.locator("#drop"), sent[2])
        expect(page.locator("#inputs li")).to_have_count(3)
        page.get_by_role("button", name="Remove picture 2").click()
        draw(page, "the one beside the other", seed="7")
        assert fact(page, "Started from") == "2 pictures"
        request = json.loads(Image.open(io.BytesIO(download(page))).info["request"])
        alone = server.send_form(EDITS, {"prompt": "x", "seed": "7"}, [("image[]", sent[0]), ("image[]", sent[2])])
        assert request["references"] == echo(alone.json()["data"][0])["references"]
        expect(page.locator("#strength")).to_be_hidden()


@pytest.mark.behaviour(144)
def test_a_bad_picture_is_refused_beside_the_pictures(demo_page: Page) -> None:
    page = demo_page
    page.locator("#files").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#prompt").fill("a cat")
    page.keyboard.press("Control+Enter")
    expect(page.locator("[data-field=image] > .error")).to_contain_text("PNG, JPEG or WebP")


@pytest.mark.behaviour(146)
def test_the_gallery_outlives_a_reload(demo_page: Page) -> None:
    page = demo_page
    draw(page, APPLE, seed="7", n="2")
    drawn = pixels_of(page.locator(".frame img").nth(1))
    page.reload()
    expect(page.locator("#gallery li")).to_have_count(2)
    page.locator("#gallery button").first.click()
    assert fact(page, "Seed") == "8"
    assert np.array_equal(pixels_of(page.locator(".frame img")), drawn)
    page.get_by_role("button", name="Same seed again").click()
    expect(page.locator("#gallery li")).to_have_count(3)
    assert np.array_equal(pixels_of(page.locator(".frame img")), drawn)
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#gallery li")).to_have_count(2)
    for _ in range(2):
        page.locator("#forget").click()
    expect(page.locator("#gallery li")).to_have_count(0)
    page.reload()
    expect(page.locator("#gallery-note")).to_have_text("Pictures are kept in this browser alone.")
    expect(page.locator("#gallery li")).to_have_count(0)


@pytest.mark.behaviour(146)
def test_the_gallery_is_bounded(demo_page: Page) -> None:
    """In the page's own modules: 203 records, of which 200 stay, and those that are large go sooner."""
    gone = demo_page.evaluate("""async () => {
        const gallery = await import(document.querySelector("script[type=module]").src.replace("app.js", "gallery.js"));
        const blob = await (await fetch("studio/icon.svg")).blob();
        const record = (id, size) => ({id, blob: {size}, thumb: {size: 0}, recipe: {}});
        const many = Array.from({length: 203}, (_, id) => record(id, 1));
        const large = Array.from({length: 6}, (_, id) => record(id, 64 * 2 ** 20));
        return [await gallery.makeRoom(many), await gallery.makeRoom(large)].map(gone => gone.map(each => each.id));
    }""")
    assert gone == [[200, 201, 202], [4, 5]]


@pytest.mark.behaviour(147)
def test_a_dropped_png_brings_its_settings_back(demo_page: Page) -> None:
    page = demo_page
    prompt = "ein Löwe auf rotem Hintergrund 🦁"
    page.get_by_text("Wide", exact=True).click()
    page.locator("#more summary").click()
    draw(page, prompt, seed="11", steps="3", negative="a dog", cfg="2")
    assert fact(page, "Size") == "336 × 192"
    drawn, file = pixels_of(page.locator(".frame img")), download(page)
    page.reload()
    drop(page.locator("#stage"), file)
    expect(page.locator("#prompt")).to_have_value(prompt)
    told = {name: page.locator(f"#{name}").input_value() for name in ("seed", "steps", "negative", "cfg")}
    assert told == {"seed": "11", "steps": "3", "negative": "a dog", "cfg": "2.0"}
    expect(page.locator("#inputs li")).to_have_count(0)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#gallery li")).to_have_count(2)
    assert np.array_equal(pixels_of(page.locator(".frame img")), drawn)
    drop(page.locator("#drop"), file)
    expect(page.locator("#inputs li")).to_have_count(1)
    drop(page.locator("#stage"), png(64, 64))
    expect(page.locator("#inputs small")).to_have_text("Picture 1, 64 × 64")


@pytest.mark.behaviour(148)
@pytest.mark.parametrize("edit", [False, True], ids=["generation", "edit"])
@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_requests_are_copied_as_programs(demo_page: Page, tmp_path: Path, language: str, edit: bool) -> None:
    page = demo_page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    if edit:
        (tmp_path / "input.png").write_bytes(png(64, 64))
        page.locator("#files").set_input_files(tmp_path / "input.png")
    draw(page, 'it\'s a "red" apple, $HOME `x`', seed="13", steps="3")
    page.get_by_role("button", name=f"Copy as {language}").click()
    expect(page.locator("#status")).to_have_text(f"Copied as {language}.")
    code = page.evaluate("navigator.clipboard.readText()")
    run = {
        "curl": ["bash", "-c", code],
        "Python": [sys.executable, "-c", code],
        "JavaScript": ["node", "--input-type=module", "-e", code],
    }[language]
    subprocess.run(run, cwd=tmp_path, check=True, timeout=60)
    drawn = next(tmp_path.glob("picture*.png")).read_bytes()
    assert np.array_equal(picture(drawn), pixels_of(page.locator(".frame img")))


@pytest.mark.behaviour(148)
def test_what_cannot_be_copied_is_shown(demo_page: Page, demo: Server) -> None:
    """Without leave for the clipboard, as on a page that comes from another machine."""
    page = demo_page
    draw(page, APPLE, seed="7")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.get_by_role("button", name="Copy as curl").click()
    expect(page.locator("#code")).to_contain_text(f"curl -s {demo.url}/v1/images/generations")
