"""The room to write in, as a visitor uses it: a real Chromium in front of the real app."""

from __future__ import annotations

import shutil

import pytest

import app
from page import desk
from page.writing import PRESETS, SAMPLES, SETTINGS
from tests.page.visit import INJECTIONS, begin, crowd, generate, number, open_more, press, serve, sheet, status, wait


@pytest.mark.browser
def test_the_text_grows_and_stop_keeps_it(open_page):
    page = open_page()
    begin(page)
    page.get_by_role("button", name="Generate", exact=True).click()
    seen = 0
    for _ in range(3):
        wait(page, lambda seen=seen: len(sheet(page)) > seen + 40)
        seen = len(sheet(page))
    page.get_by_role("button", name="Stop", exact=True).click()
    wait(page, lambda: "stopped by you" in status(page))
    kept = sheet(page)
    page.wait_for_timeout(700)
    assert sheet(page) == kept and kept.startswith("ROMEO:") and len(kept) >= seen
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
    open_more(page)
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
def test_who_has_to_wait_is_told_the_place_in_the_queue_and_may_leave_it(open_page, client):
    first, second = open_page(), open_page()
    with crowd(client, app.SLOTS):
        for page in (first, second):
            begin(page)
            page.keyboard.press("Control+Enter")
            wait(page, lambda page=page: "you are number" in status(page))
        assert "you are number 2 of 2" in status(second)
        second.keyboard.press("Escape")
        wait(second, lambda: status(second) == "")
        assert sheet(second) == ""


@pytest.mark.browser
def test_samples_take_places_too_and_who_waits_for_one_is_told_so(open_page, client):
    first, second = open_page(), open_page()
    open_more(first)
    number(first, "Samples", 4)
    first.wait_for_timeout(500)
    with crowd(client, app.SLOTS - 2):
        for page, said in ((first, "The next sample is number 1 in the queue."), (second, "you are number 3 in the")):
            begin(page)
            page.keyboard.press("Control+Enter")
            wait(page, lambda page=page, said=said: said in status(page))
        assert [len(text) > 10 for text in first.locator("#sheet article p").all_text_contents()] == [1, 1, 0, 0]
        for page in (first, second):
            page.keyboard.press("Escape")
            wait(page, lambda page=page: "stopped by you" in status(page))


@pytest.mark.browser
def test_two_visitors_are_written_for_at_the_same_time(open_page):
    first, second = open_page(), open_page()
    for page in (first, second):
        begin(page)
        page.keyboard.press("Control+Enter")
    wait(second, lambda: len(sheet(second)) > 30 and "Writing" in status(first))
    lengths = len(sheet(first)), len(sheet(second))
    wait(first, lambda: len(sheet(first)) > lengths[0] and len(sheet(second)) > lengths[1])
    for page in (first, second):
        page.keyboard.press("Escape")


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(open_page, width):
    page = open_page(width)
    open_more(page)
    begin(page, prompt="endless" * 50, max_tokens=300)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("300 tokens"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#sheet .html-container").evaluate("box => box.scrollWidth <= box.clientWidth")


@pytest.mark.browser
def test_continue_goes_on_from_the_text_regenerate_tries_again_and_undo_takes_it_back(open_page):
    page = open_page()
    first = generate(page)
    press(page, "Continue")
    wait(page, lambda: len(sheet(page)) > len(first) and status(page).startswith("40 tokens"))
    longer = sheet(page)
    assert longer.startswith(first)
    press(page, "Regenerate")
    wait(page, lambda: sheet(page) != longer and status(page).startswith("40 tokens"))
    other = sheet(page)
    assert other.startswith(first) and other != longer
    for expected in (longer, first, ""):
        press(page, "Undo")
        wait(page, lambda expected=expected: sheet(page) == expected)


@pytest.mark.browser
def test_with_nothing_written_the_other_buttons_say_so(open_page):
    page = open_page()
    for name in ("Continue", "Regenerate", "Undo"):
        press(page, name)
        wait(page, lambda: status(page) == desk.NOTHING)
    assert sheet(page) == ""


@pytest.mark.browser
def test_several_samples_stand_side_by_side_each_with_its_seed(open_page):
    page = open_page()
    open_more(page)
    number(page, "Samples", 3)
    page.get_by_label("Seed", exact=True).fill("41")
    begin(page, max_tokens=30)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("90 tokens"))
    assert page.locator("#sheet h2").all_text_contents() == [f"Sample {i}, seed {40 + i}" for i in (1, 2, 3)]
    texts = page.locator("#sheet article p").all_text_contents()
    assert len(set(texts)) == 3 and all(text.startswith("ROMEO:") for text in texts)
    boxes = [article.bounding_box() for article in page.locator("#sheet article").all()]
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"] and len({box["y"] for box in boxes}) == 1


@pytest.mark.browser
def test_a_preset_sets_the_sliders_at_once_and_a_slider_leaves_the_preset(open_page):
    page = open_page()
    open_more(page)
    temperature = page.get_by_label("number input for Temperature").locator("visible=true")
    for name, values in PRESETS.items():
        page.get_by_label(name).check()
        wait(page, lambda values=values: float(temperature.input_value()) == values["temperature"])
        assert float(page.get_by_label("number input for Top-k").first.input_value()) == values["top_k"]
    number(page, "Temperature", 0.3)
    wait(page, lambda: page.locator("#preset input:checked").count() == 0)


@pytest.mark.browser
def test_the_first_settings_are_in_view_and_the_others_under_more_each_with_a_line_that_explains_it(open_page):
    page = open_page()

    def in_view() -> set[str]:
        return {
            s.name for s in (*SETTINGS, SAMPLES) if page.locator(f"#{s.name}.block").locator("visible=true").count()
        }

    wait(page, lambda: in_view() == {"max_new_tokens", "top_k"})
    open_more(page)
    wait(page, lambda: in_view() == {s.name for s in (*SETTINGS, SAMPLES)})
    for setting in (*SETTINGS, SAMPLES):
        assert setting.info and setting.info in page.locator(f"#{setting.name}.block").first.text_content()


@pytest.mark.browser
def test_an_example_of_the_checkpoints_own_card_becomes_the_prompt(open_page, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    card = '---\nwidget:\n  - text: "Once upon a time"\n  - text: "<b>The end</b>"\n---\n'
    (tmp_path / "model" / "README.md").write_text(card, encoding="utf-8")
    with serve(tmp_path, MODEL_ID=str(tmp_path / "model")) as running:
        page = open_page(url=running.url)
        for example in ("Once upon a time", "<b>The end</b>"):
            page.get_by_role("button", name=example).or_(page.get_by_role("cell", name=example)).first.click()
            wait(page, lambda example=example: page.locator("#prompt textarea").input_value() == example)


@pytest.mark.browser
def test_several_samples_are_each_continued(open_page):
    page = open_page(query="?prompt=ROMEO:&max_new_tokens=20&samples=2&seed=41")
    wait(page, lambda: page.locator("#prompt textarea").input_value() == "ROMEO:")
    texts = []
    for name, words in (("Generate", "repeat this text"), ("Continue", "repeat what was added")):
        press(page, name)
        wait(page, lambda words=words: status(page).startswith("40 tokens") and words in status(page))
        texts.append(page.locator("#sheet article p").all_text_contents())
    assert all(after.startswith(before) and after != before for before, after in zip(*texts, strict=True))
    press(page, "Undo")
    wait(page, lambda: page.locator("#sheet article p").all_text_contents() == texts[0])


@pytest.mark.browser
def test_a_slider_goes_back_to_its_usual_value_and_leaves_the_preset(open_page):
    page = open_page()
    number(page, "Max tokens", 7)
    page.get_by_label("Reset").first.click()
    wait(page, lambda: page.get_by_label("number input for Max tokens").input_value() == "200")
    page.get_by_label("Faithful").check()
    wait(page, lambda: page.get_by_label("number input for Top-k").first.input_value() == "40")
    page.locator("#top_k").get_by_label("Reset").click()
    wait(page, lambda: page.locator("#preset input:checked").count() == 0)
    assert page.get_by_label("number input for Top-k").first.input_value() == "50"


@pytest.mark.browser
@pytest.mark.parametrize("query", ["", "?prompt=A&temperature=0.4&samples=3"])
def test_a_slider_that_was_hidden_when_it_was_set_goes_back_to_its_usual_value_too(open_page, query):
    page = open_page(query=query)
    if query:
        page.locator("#restored p").wait_for()
    else:
        page.get_by_label("Wild").check()
    open_more(page)
    temperature = page.get_by_label("number input for Temperature").locator("visible=true")
    wait(page, lambda: temperature.input_value() == ("0.4" if query else str(PRESETS["Wild"]["temperature"])))
    page.locator("#temperature").get_by_label("Reset").click()
    wait(page, lambda: temperature.input_value() == "1")
    page.locator("#samples.block", has_text="side by side").get_by_label("Reset").click()
    wait(page, lambda: page.get_by_label("number input for Samples").input_value() == "1")


@pytest.mark.browser
def test_the_seed_of_a_text_can_be_kept(open_page):
    page = open_page()
    first = generate(page)
    open_more(page)
    page.get_by_role("button", name="Keep the seed").click()
    wait(page, lambda: page.get_by_label("Seed", exact=True).input_value() in status(page))
    generate(page, "JULIET:")
    assert generate(page) == first


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_on_the_page_moves_while_the_text_grows(open_page, width):
    page = open_page(width)
    begin(page, max_tokens=600)
    page.evaluate(
        """() => new PerformanceObserver((list) => {
            for (const { hadRecentInput, value } of list.getEntries())
                if (!hadRecentInput) window.shifted = (window.shifted || 0) + value;
        }).observe({ type: "layout-shift" })"""
    )
    page.keyboard.press("Control+Enter")
    page.wait_for_timeout(700)  # what moves at once after a key is the visitor's doing, and not counted
    wait(page, lambda: status(page).startswith("600 tokens"))
    assert (page.evaluate("window.shifted") or 0) < 0.005


@pytest.mark.browser
def test_a_link_opens_the_same_request_in_another_tab_and_starts_nothing(open_page):
    page = open_page()
    open_more(page)
    number(page, "Temperature", 0.8)
    first = generate(page, INJECTIONS)
    page.get_by_text("Share it, use it from code", exact=True).click()
    link = page.locator("#link textarea")
    wait(page, lambda: "seed=" in link.input_value())
    other = open_page(query="?" + link.input_value().split("?", 1)[1])
    wait(other, lambda: other.locator("#prompt textarea").input_value() == INJECTIONS)
    assert "Generate writes the text." in other.locator("#restored").text_content()
    assert "another checkpoint" not in other.locator("#restored").text_content()
    other.wait_for_timeout(500)
    assert sheet(other) == ""
    other.get_by_role("button", name="Generate", exact=True).click()
    wait(other, lambda: status(other).startswith("40 tokens"))
    assert sheet(other) == first


@pytest.mark.browser
def test_link_and_code_are_those_of_a_text_that_was_stopped_too(open_page):
    page = open_page()
    generate(page, max_tokens=20)
    page.get_by_text("Share it, use it from code", exact=True).click()
    link, code = page.locator("#link textarea"), page.locator("#code textarea")
    wait(page, lambda: "max_new_tokens=20" in link.input_value())
    begin(page, prompt="JULIET:")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: len(sheet(page)) > 20 and sheet(page).startswith("JULIET:"))
    page.keyboard.press("Escape")
    wait(page, lambda: "stopped by you" in status(page))
    seed = status(page).split("Seed ")[1].split(":")[0]
    wait(page, lambda: f"seed={seed}&" in link.input_value() and "JULIET" in link.input_value())
    assert seed in code.input_value()


@pytest.mark.browser
def test_a_link_made_with_another_checkpoint_or_with_nonsense_says_so(open_page):
    page = open_page(query="?prompt=A&temperature=%3Cb%3E&top_k=9999&seed=NaN&model=other/model&sha=0123abc")
    wait(page, lambda: page.locator("#prompt textarea").input_value() == "A")
    said = page.locator("#restored").text_content()
    assert "another checkpoint" in said
    assert all(f"{label} is not what this page accepts" in said for label in ("Temperature", "Top-k", "Seed"))
    assert page.get_by_label("number input for Top-k").first.input_value() == "50"


@pytest.mark.browser
def test_the_same_request_is_shown_as_code(open_page):
    page = open_page()
    generate(page, INJECTIONS, max_tokens=7)
    page.get_by_text("Share it, use it from code", exact=True).click()
    for kind, word in (("transformers", "manual_seed"), ("Python, this page", "gradio_client"), ("curl", "curl -s")):
        page.get_by_label(kind).check()
        wait(page, lambda word=word: word in page.locator("#code textarea").input_value())
        assert "window.hacked" in page.locator("#code textarea").input_value()
