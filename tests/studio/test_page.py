"""The studio as a page: its weight, its policy, who can use it, and whether it is there at all."""

from __future__ import annotations

import gzip
import re
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Page, Response, expect

from tests.clients.environments import axe
from tests.server.conftest import StartServer
from tests.server.running import Server, assert_error, png
from tests.studio.pages import draw, open_page, start_drawing

MOST_BYTES = 60_000
PHONE = {"width": 360, "height": 740}
_TARGETS = "button:visible, select:visible, #composer input:visible:not(.unseen, .chips *, [type=range])"


def violations(page: Page) -> list[str]:
    """What axe finds serious or critical."""
    page.evaluate(axe())
    found: dict[str, Any] = page.evaluate("axe.run()")
    grave = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    return [f"{each['id']}: {node['target']} {node['failureSummary']}" for each in grave for node in each["nodes"]]


@pytest.mark.behaviour(149)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [{"width": 1360, "height": 900}, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious(browser: Browser, server: Server, scheme: str, viewport: dict[str, int]) -> None:
    for page in open_page(browser, server, color_scheme=scheme, viewport=viewport, reduced_motion="reduce"):
        assert violations(page) == []
        page.locator("#options").evaluate("box => box.open = true")
        page.locator("#more summary").click()
        page.locator("#files").set_input_files({"name": "p.png", "mimeType": "image/png", "buffer": png()})
        start_drawing(page, "a cat [slow:step:0.3]", n="2", steps="3")
        expect(page.locator(".frame[data-shown=preview]").first).to_be_visible()
        assert violations(page) == []
        expect(page.locator("#status")).to_have_text(re.compile("^Done"), timeout=30_000)
        start_drawing(page, "a cat", steps="900")
        expect(page.locator("[data-field=num_inference_steps] .error")).to_be_visible()
        assert violations(page) == []
        for opener, dialog in (("#key-open", "#key-dialog"), ("#help-open", "#help-dialog")):
            page.locator(opener).click()
            assert violations(page) == []
            page.keyboard.press("Escape")
            expect(page.locator(dialog)).to_be_hidden()
        page.get_by_role("button", name="Paint a mask").click()
        assert violations(page) == []


@pytest.mark.behaviour(149)
def test_the_keyboard_is_enough(page: Page) -> None:
    """From the page's start to a picture, its action and a dialog, without a pointer."""
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.type("a cat")
    page.keyboard.press("Tab")
    expect(page.locator("#draw")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#gallery li")).to_have_count(1)
    expect(page.locator("#draw")).to_be_focused()
    expect(page.locator("#announcer")).to_have_text("Done: one picture.")
    page.get_by_role("button", name="Same seed again").press("Enter")
    expect(page.locator("#gallery li")).to_have_count(2)
    page.locator("#help-open").press("Enter")
    expect(page.locator("#help-dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#help-open")).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#prompt")).to_be_focused()


@pytest.mark.behaviour(149)
def test_a_phone_is_wide_enough(browser: Browser, server: Server) -> None:
    for page in open_page(browser, server, viewport=PHONE, has_touch=True, is_mobile=True):
        page.locator("#prompt").fill("a cat")
        page.locator("#draw").tap()
        expect(page.locator("#gallery li")).to_have_count(1)
        page.locator("#options > summary").tap()
        page.locator("#more summary").tap()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        targets = page.locator(_TARGETS)
        assert targets.count() > 20
        assert [box for each in targets.all() if (box := each.bounding_box()) and box["height"] < 24] == []


@pytest.mark.behaviour(149)
def test_themes(browser: Browser, server: Server) -> None:
    for page in open_page(browser, server, color_scheme="dark"):
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = page.evaluate(ground)
        page.locator("#theme").click()
        light = page.evaluate(ground)
        assert light != dark
        page.reload()
        expect(page.locator("#theme")).to_have_text("Light")
        assert page.evaluate(ground) == light
        page.locator("#theme").click()
        assert page.evaluate(ground) == dark


@pytest.mark.behaviour(150)
def test_the_first_paint_is_light_and_from_here_alone(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    page = context.new_page()
    answers: list[Response] = []
    page.on("response", lambda answer: answers.append(answer))
    page.goto(server.url, wait_until="networkidle")
    sizes = [answer.request.sizes() for answer in answers]
    total = sum(size["responseBodySize"] + size["responseHeadersSize"] for size in sizes)
    assert 10_000 < total <= MOST_BYTES
    assert {httpx.URL(answer.url).netloc for answer in answers} == {httpx.URL(server.url).netloc}
    assert len(answers) >= 10
    context.close()


@pytest.mark.behaviour(150)
def test_nothing_moves_while_it_draws(browser: Browser, server: Server) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script("""window.shifts = [];
        new PerformanceObserver(list => window.shifts.push(...list.getEntries().map(each => each.value)))
            .observe({type: "layout-shift", buffered: true});""")
    page.goto(server.url)
    expect(page.locator("#server")).to_have_attribute("data-state", "ready")
    page.wait_for_timeout(700)
    page.evaluate("window.shifts = []")
    draw(page, "a cat [slow:step:0.3]", n="2")
    page.locator("#prompt").fill("a dog [slow:step:0.3]")
    draw(page, "a dog [slow:step:0.3]", n="3", seed="5")
    page.wait_for_timeout(300)
    assert page.evaluate("window.shifts") == []
    context.close()


@pytest.mark.behaviour(150)
def test_files_are_served_small_and_strictly(server: Server) -> None:
    page = server.get("/", headers={"accept-encoding": "gzip"})
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert page.headers["content-encoding"] == "gzip"
    plain = server.get("/studio", headers={"accept-encoding": "identity"})
    assert plain.content == page.content == gzip.decompress(gzip.compress(plain.content))
    assert not re.search(r"https?://", plain.text.replace("http://www.w3.org/", ""))
    again = server.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert server.get("/studio/").headers["location"] == "../studio"
    assert server.get("/studio/app.js").headers["content-type"].startswith("text/javascript")
    assert server.request("HEAD", "/studio/style.css").status_code == 200
    for path in ("/studio/none.js", "/studio/..%2fconfig.py", "/studio/../config.py", "/studio/a/b"):
        assert_error(server.get(path), 404, "not_found")


@pytest.mark.behaviour(145)
def test_under_a_prefix_the_page_finds_its_files(page: Page, server: Server) -> None:
    page.goto(f"{server.url}/studio/")
    expect(page.locator("#server")).to_have_attribute("data-state", "ready")


@pytest.mark.behaviour(145)
def test_it_can_be_left_out(start_server: StartServer) -> None:
    server = start_server("--no-studio", "--api-key", "sesame")
    assert "draw at" not in server.log.read_text()
    for path in ("/", "/studio", "/studio/app.js"):
        assert_error(server.get(path), 401, "invalid_api_key")
    key = {"authorization": "Bearer sesame"}
    assert server.get("/", headers=key).headers["location"] == f"{server.url}/docs"
    assert_error(server.get("/studio", headers=key), 404, "not_found")


@pytest.mark.behaviour(145)
def test_its_address_is_told(server: Server) -> None:
    assert f"draw at {server.url}/" in server.log.read_text()
