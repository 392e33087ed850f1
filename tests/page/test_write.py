"""The room to write in, as a visitor uses it: a real Chromium in front of the real app."""

from __future__ import annotations

import pytest

from page import desk
from tests.page.visit import INJECTIONS, begin, sheet, status, wait


@pytest.mark.browser
def test_the_text_grows_and_stop_keeps_it(open_page):
    page = open_page()
    begin(page)
    page.get_by_role("button", name="Generate", exact=True).click()
    lengths = []
    for more in (10, 60, 110):
        wait(page, lambda more=more: len(sheet(page)) > more)
        lengths.append(len(sheet(page)))
    assert lengths == sorted(set(lengths))
    page.get_by_role("button", name="Stop", exact=True).click()
    wait(page, lambda: "stopped by you" in status(page))
    kept = sheet(page)
    page.wait_for_timeout(700)
    assert sheet(page) == kept and kept.startswith("ROMEO:") and len(kept) >= lengths[-1]
    assert "stopped by you" in status(page) and "Seed" in status(page)
    assert page.locator("#sheet b").text_content() == "ROMEO:"


@pytest.mark.browser
@pytest.mark.parametrize("keys", ["Control+Enter", "Meta+Enter"])
def test_the_keyboard_starts_and_stops(open_page, keys):
    page = open_page()
    begin(page)
    page.keyboard.press(keys)
    wait(page, lambda: len(sheet(page)) > 20)
    page.keyboard.press("Escape")
    wait(page, lambda: "stopped by you" in status(page))


@pytest.mark.browser
def test_the_seed_in_the_status_line_repeats_the_text(open_page):
    page = open_page()
    begin(page, max_tokens=40)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: "Seed" in status(page))
    first, seed = sheet(page), status(page).split("Seed ")[1].split(":")[0]
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Seed").fill(seed)
    begin(page, prompt="JULIET:", max_tokens=40)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: sheet(page).startswith("JULIET:") and "Seed" in status(page))
    begin(page, max_tokens=40)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: sheet(page).startswith("ROMEO:") and "Seed" in status(page))
    assert sheet(page) == first


@pytest.mark.browser
def test_an_empty_prompt_starts_a_text(open_page):
    page = open_page()
    begin(page, prompt="", max_tokens=30)
    assert "begins one itself" in page.locator("#prompt textarea").get_attribute("placeholder")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("30 tokens"))
    assert sheet(page)


@pytest.mark.browser
def test_what_a_visitor_types_is_shown_and_never_run(open_page):
    page = open_page()
    begin(page, prompt=INJECTIONS, max_tokens=20)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("20 tokens"))
    assert page.locator("#sheet b").text_content() == INJECTIONS
    assert page.evaluate("window.hacked") is None


@pytest.mark.browser
def test_half_an_emoji_in_the_prompt_is_shown_as_a_replacement_character(open_page):
    page = open_page()
    begin(page, max_tokens=20)
    page.locator("#prompt textarea").evaluate("box => (box.value = 'a\\ud83d', box.dispatchEvent(new Event('input')))")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("20 tokens"))
    assert page.locator("#sheet b").text_content() == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.browser
def test_a_prompt_that_is_too_long_is_refused_in_a_sentence_and_the_page_goes_on(open_page):
    page = open_page()
    begin(page, prompt="x" * 20_001, max_tokens=10)
    page.keyboard.press("Control+Enter")
    page.get_by_text("The prompt has 20,001 characters; at most 20,000 are accepted.").wait_for()
    wait(page, lambda: status(page) == "")
    begin(page, max_tokens=10)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("10 tokens"))


@pytest.mark.browser
def test_who_has_to_wait_is_told_so_and_may_leave_the_queue(open_page):
    first, second = open_page(), open_page()
    begin(first)
    first.keyboard.press("Control+Enter")
    wait(first, lambda: len(sheet(first)) > 10)
    begin(second)
    second.keyboard.press("Control+Enter")
    wait(second, lambda: status(second) == desk.WAITING)
    second.wait_for_timeout(500)  # until the server has the request too; Gradio can not take back what is on its way
    second.keyboard.press("Escape")
    wait(second, lambda: status(second) == "")
    first.keyboard.press("Escape")
    wait(first, lambda: "stopped by you" in status(first))
    second.wait_for_timeout(500)
    assert sheet(second) == ""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(open_page, width):
    page = open_page(width)
    page.get_by_text("More", exact=True).click()
    begin(page, prompt="endless" * 50, max_tokens=300)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("300 tokens"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#sheet .html-container").evaluate("box => box.scrollWidth <= box.clientWidth")
