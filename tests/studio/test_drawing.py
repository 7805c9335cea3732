"""Drawing in the studio: what is seen on the way, stopping, waiting, refusals, keys."""

from __future__ import annotations

import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.fake_pipeline import expected_pixels
from tests.server.conftest import StartServer
from tests.server.running import Server, until
from tests.studio.pages import draw, fact, open_page, pixels_of, start_drawing


@pytest.mark.behaviour(140)
def test_a_preview_comes_before_the_picture(page: Page) -> None:
    start_drawing(page, "a cat [slow:step:0.5]", n="2")
    frames = page.locator(".frame")
    expect(frames).to_have_count(2)
    expect(page.locator(".frame[data-shown=preview]").first).to_be_visible()
    expect(page.locator("#status")).to_have_text(re.compile("^Drawing: step [123] of 4"))
    expect(page.locator("#stop")).to_be_visible()
    expect(page.locator("#status")).to_have_text("Done: 2 pictures.", timeout=30_000)
    seed = int(fact(page, "Seed"))
    for at in range(2):
        drawn = pixels_of(frames.nth(at).locator("img"))
        assert np.array_equal(drawn, expected_pixels(seed + at, 64, 64))
    assert fact(page, "Size") == "64 × 64"


@pytest.mark.behaviour(140)
def test_a_seed_beyond_javascripts_numbers_is_kept(page: Page) -> None:
    seed = 2**64 - 2
    draw(page, "a cat", seed=str(seed))
    assert fact(page, "Seed") == str(seed)
    page.get_by_role("button", name="Same seed again").click()
    expect(page.locator("#gallery li")).to_have_count(2)
    assert np.array_equal(pixels_of(page.locator(".frame img")), expected_pixels(seed, 64, 64))


@pytest.mark.behaviour(140)
def test_what_is_set_is_asked_for(page: Page, server: Server) -> None:
    page.get_by_text("Free", exact=True).click()
    draw(page, "a dog", seed="140100", width="128", height="96", steps="7")
    assert (fact(page, "Size"), fact(page, "Steps")) == ("128 × 96", "7")
    page.locator("#sizes").get_by_text("Auto", exact=True).click()
    page.locator("#quality").select_option("low")
    draw(page, "a dog", seed="140101", steps="")
    assert (fact(page, "Size"), fact(page, "Steps")) == ("64 × 64", "2")
    assert server.count("step", 140101) == 2


@pytest.mark.behaviour(141)
@pytest.mark.parametrize("how", ["Escape", "button"])
def test_stopping_frees_the_worker(page: Page, server: Server, how: str) -> None:
    seed = {"Escape": 141001, "button": 141002}[how]
    start_drawing(page, "a cat [slow:step:0.3]", seed=str(seed), steps="100")
    until(lambda: server.count("step", seed) >= 2)
    if how == "Escape":
        page.keyboard.press("Escape")
    else:
        page.locator("#stop").click()
    expect(page.locator("#status")).to_have_text("Stopped.")
    seen = server.count("step", seed)
    draw(page, "a dog", seed=str(seed + 10), steps="1")
    assert server.count("step", seed) <= seen + 2
    assert server.count("step", seed + 10) == 1


@pytest.mark.behaviour(142)
def test_the_place_in_the_queue_is_told(page: Page, server: Server) -> None:
    """Those before have less work, which goes first; what has been measured tells the time."""
    server.generate("a cat [slow:step:0.3]", num_inference_steps=2)
    with ThreadPoolExecutor() as pool:
        before = [pool.submit(server.generate, "a cat [slow:step:0.5]", num_inference_steps=8) for _ in range(3)]
        time.sleep(0.3)
        start_drawing(page, "a dog", steps="200")
        expect(page.locator("#status")).to_have_text(
            re.compile(r"^Waiting: \d requests? goe?s? first · about .* left"), timeout=10_000
        )
        page.keyboard.press("Escape")
        assert all(each.result().status_code == 200 for each in before)


@pytest.mark.behaviour(144)
@pytest.mark.parametrize(
    ("field", "values", "sent"),
    [
        ("size", {"width": "1000", "height": "1000"}, {"size": "1000x1000"}),
        ("num_inference_steps", {"steps": "201"}, {"num_inference_steps": 201}),
        ("n", {"n": "11"}, {"n": 11}),
        ("seed", {"seed": "lucky"}, {"seed": "lucky"}),
        ("true_cfg_scale", {"cfg": "21"}, {"true_cfg_scale": 21}),
    ],
)
def test_a_refusal_stands_beside_its_field(
    page: Page, server: Server, field: str, values: dict[str, str], sent: dict[str, object]
) -> None:
    if "width" in values:
        page.get_by_text("Free", exact=True).click()
    page.locator("#more summary").click()
    start_drawing(page, "a cat", **values)
    shown = page.locator(f"[data-field={field}] .error")
    expect(shown).to_have_text(server.generate("a cat", **sent).json()["error"]["message"])
    invalid = page.locator(f"[data-field={field}] [aria-invalid=true]")
    assert invalid.get_attribute("aria-errormessage") == shown.get_attribute("id")
    expect(page.locator("#draw")).to_be_visible()


@pytest.mark.behaviour(144)
def test_other_failures_are_told_too(page: Page) -> None:
    start_drawing(page, "")
    expect(page.locator("[data-field=prompt] .error")).to_have_text("prompt is required")
    start_drawing(page, "a cat [nan:vae]")
    expect(page.locator("#problem")).to_have_text("the picture is not finite")
    draw(page, "a cat")
    expect(page.locator(".error:visible")).to_have_count(0)
    start_drawing(page, "")
    expect(page.locator("[data-field=prompt] .error")).to_have_text("prompt is required")
    expect(page.locator(".frame img")).to_be_visible()  # what was there before


@pytest.mark.behaviour(145)
def test_the_key_is_asked_for_and_kept_for_the_session(browser: Browser, start_server: StartServer) -> None:
    server = start_server("--api-key", "sesame")
    for page in open_page(browser, server):
        dialog = page.locator("#key-dialog")
        for key in ("wrong", "sesame"):
            expect(dialog).to_be_visible()
            expect(page.locator("#key-why")).to_contain_text("the API key is missing or wrong")
            page.locator("#key").fill(key)
            page.keyboard.press("Enter")
        draw(page, "a cat", seed="145001")
        page.reload()
        expect(page.locator("#server")).to_have_text("Ready: fluxserve/fake")
        expect(dialog).to_be_hidden()
        assert "sesame" not in page.evaluate("JSON.stringify({...localStorage}) + document.cookie")
        other = page.context.new_page()
        other.goto(server.url)
        expect(other.locator("#key-dialog")).to_be_visible()
    assert "sesame" not in server.log.read_text()


@pytest.mark.behaviour(145)
def test_the_page_waits_for_the_model(browser: Browser, start_server: StartServer) -> None:
    server = start_server(ready=False, variables={"FLUXSERVE_FAKE_LOAD": "slow:10"})
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("#server")).to_have_text(re.compile("^Loading the model"))
    expect(page.locator("#server")).to_have_text("Ready: fluxserve/fake", timeout=30_000)
    draw(page, "a cat")
    page.close()
