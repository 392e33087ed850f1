"""For everyone: any width, light and dark, keyboard only, screen readers; and no visitor's text leaves the page's host.
That nothing is asked of another host, and no script fails, is watched in every browser test (conftest.py)."""

from __future__ import annotations

import pytest

from tests.page.visit import INJECTIONS, begin, generate, open_more, room, sheet, status, wait

ROOMS = ["Write", "Look inside", "Training", "Compare"]


def fill(page, name: str) -> None:
    """Go to a room and let it show all it has."""
    room(page, name)
    if name == "Write":
        open_more(page)
        page.get_by_text("Share it, use it from code", exact=True).click()
        wait(page, lambda: "seed=" in page.locator("#link textarea").input_value())
    elif name == "Look inside":
        page.locator("#tokens button").nth(3).click()
        page.locator("#step table").wait_for()
    elif name == "Training":
        page.locator("#samples_by_step article").first.wait_for()
    else:
        page.get_by_role("button", name="Write both").click()
        page.locator("#compare mark").first.wait_for()


@pytest.mark.browser
@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 360)])
def test_axe_finds_nothing_serious_in_any_room_and_no_room_is_wider_than_the_screen(open_page, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(width, scheme=scheme)
    generate(page, "ROMEO: " + INJECTIONS, max_tokens=30)
    assert page.evaluate("document.body.classList.contains('dark')") is (scheme == "dark")
    for name in ROOMS:
        fill(page, name)
        page.wait_for_timeout(400)  # until colours have faded in
        found = axe.Axe().run(page).response["violations"]
        serious = [
            (v["id"], [node["html"][:200] for node in v["nodes"]])
            for v in found
            if v["impact"] in ("serious", "critical")
        ]
        assert serious == [], f"{name}, {scheme}, {width} pixels"
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@pytest.mark.browser
def test_the_page_can_be_used_with_the_keyboard_alone(open_page):
    page = open_page()
    page.wait_for_function("document.activeElement.closest('#prompt')")  # where typing begins
    page.keyboard.type("ROMEO:")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "generate"
    page.keyboard.press("Enter")
    wait(page, lambda: len(sheet(page)) > 20)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "stop"
    page.keyboard.press("Enter")
    wait(page, lambda: "per second;" in status(page))
    page.locator("#sheet .sheet").focus()  # what scrolls can be reached
    assert page.evaluate("document.activeElement.className") == "sheet"
    page.get_by_role("tab", name="Look inside").focus()
    page.keyboard.press("Enter")
    page.locator("#tokens button").first.wait_for()


@pytest.mark.browser
def test_the_keys_press_the_buttons_of_the_room_that_is_open(open_page):
    page = open_page()
    room(page, "Look inside")
    page.locator("#own textarea").fill("To be")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: "bits per byte" in page.locator("#summary p").text_content())
    room(page, "Write")
    assert sheet(page) == "" and "Begin a text" in status(page)


@pytest.mark.browser
def test_it_is_said_where_one_writes_that_nothing_is_kept_or_sent(open_page):
    assert "Nothing that you write here is stored" in open_page().locator("#keys").text_content()


@pytest.mark.browser
def test_a_screen_reader_hears_the_status_and_is_not_flooded_by_the_text(open_page):
    page = open_page()
    assert page.locator("#status p").get_attribute("aria-live") == "polite"
    assert page.locator("#sheet [aria-live]").count() == 0
    page.evaluate(
        """() => { window.said = 0;
            new MutationObserver(() => window.said++).observe(document.querySelector("#status p"),
                { childList: true, characterData: true, subtree: true }); }"""
    )
    begin(page, max_tokens=600)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("600 tokens"))
    seconds = float(status(page).split(" in ")[1].split(" s")[0])
    assert page.evaluate("window.said") <= seconds + 4


@pytest.mark.browser
def test_the_page_has_a_title_an_icon_and_no_unstyled_moment(open_page):
    page = open_page()
    assert page.title() == "A GPT-2 of your own"
    assert page.locator('link[rel~="icon"]').last.get_attribute("href").startswith("data:image/svg+xml")
    ours = page.evaluate("[...document.head.querySelectorAll('style')].some((s) => s.textContent.includes('#house'))")
    assert ours
