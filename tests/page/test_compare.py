"""Two checkpoints side by side: which may stand there, and where their texts part ways."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

import gpt2
from page import compare
from page.served import load
from page.writing import Progress, Sample
from tests.page.visit import INJECTIONS, number, room, serve, sheet, wait


def progress(text: str) -> Progress:
    return Progress("A", gpt2.SamplingParams(seed=1), (Sample(1, text, stop_reason="length"),))


@pytest.mark.parametrize(
    "texts, marked",
    [
        (["to be or", "to be of"], [["or"], ["of"]]),
        (["to be", "to be or not"], [["be"], ["be"]]),
        (["alpha", "beta"], [["alpha"], ["beta"]]),
        (["to be ", "to be or not"], [[""], ["or"]]),
        (["same", "same"], [[], []]),
    ],
)
def test_the_first_word_that_differs_is_marked(texts, marked):
    value = compare.side_by_side(["one", "two"], [progress(text) for text in texts])
    found = [[text for kind, text in one["parts"] if kind == "apart"] for one in value["sheets"]]
    assert found == marked
    for one, text in zip(value["sheets"], texts, strict=True):
        assert "".join(words for _, words in one["parts"]) == "A" + text


def test_best_stands_beside_last_and_the_owner_may_name_others(checkpoint, monkeypatch):
    served = load(checkpoint)
    monkeypatch.setenv("COMPARE_WITH", f"user/repo@v1 {checkpoint}")
    found = compare.choices(served)
    assert found["endless, last"] == str(checkpoint.with_name("last").resolve())
    assert found["user/repo@v1"] == "user/repo@v1"
    assert not any(str(checkpoint.parent) in name for name in found)


def test_runs_that_the_owner_names_are_told_apart(tiny_checkpoint, monkeypatch):
    monkeypatch.setenv("COMPARE_WITH", "/a/first/best /a/second/best /a/third/")
    assert {"first, best", "second, best", "third"} <= set(compare.choices(load(tiny_checkpoint)))


def test_a_page_that_knows_one_checkpoint_offers_no_other(monkeypatch, tiny_checkpoint, tmp_path):
    monkeypatch.delenv("COMPARE_WITH", raising=False)
    monkeypatch.setattr(gpt2, "BUNDLED", tmp_path)
    assert compare.choices(load(tiny_checkpoint)) == {}
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    monkeypatch.setattr(gpt2, "BUNDLED", tmp_path / "model")
    assert compare.choices(replace(load(tiny_checkpoint), directory=tmp_path / "model")) == {}


@pytest.mark.browser
def test_two_checkpoints_write_with_one_seed_and_the_difference_is_marked(open_page):
    page = open_page()
    number(page, "Max tokens", 30)
    page.locator("#prompt textarea").fill(INJECTIONS)
    room(page, "Compare")
    wait(page, lambda: page.locator("#compare_prompt textarea").input_value() == INJECTIONS)
    room(page, "Write")
    page.locator("#prompt textarea").fill("JULIET:")
    room(page, "Compare")
    wait(page, lambda: page.locator("#compare_prompt textarea").input_value() == "JULIET:")
    page.locator("#compare_prompt textarea").fill(INJECTIONS)
    room(page, "Write")
    room(page, "Compare")
    page.wait_for_timeout(300)
    assert page.locator("#compare_prompt textarea").input_value() == INJECTIONS
    assert "endless, last" in page.locator("#compare_with input").input_value()
    page.get_by_role("button", name="Write both").click()
    wait(page, lambda: "With seed" in page.locator("#compare_status p").text_content())
    page.locator("#compare mark").first.wait_for()
    assert page.locator("#compare h2").all_text_contents() == [
        "endless, 2.50 bits per byte",
        "endless, last, 2.50 bits per byte",
    ]
    assert page.locator("#compare b").all_text_contents() == [INJECTIONS] * 2
    texts = page.locator("#compare article p").all_text_contents()
    assert texts[0] != texts[1] and page.locator("#compare mark").count() == 2


@pytest.mark.browser
def test_the_keyboard_starts_and_stops_both_and_the_status_line_says_that_they_ended(open_page):
    page = open_page()
    number(page, "Max tokens", 2000)
    room(page, "Compare")
    page.locator("#compare_prompt textarea").fill("ROMEO:")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: len("".join(page.locator("#compare article p").all_text_contents())) > 60)
    page.keyboard.press("Escape")
    wait(page, lambda: page.locator("#compare_status p").text_content() == compare.ENDED)
    room(page, "Write")
    assert sheet(page) == ""


@pytest.mark.browser
def test_a_checkpoint_that_can_not_be_loaded_leaves_no_line_that_it_is_being_loaded(open_page, checkpoint, tmp_path):
    with serve(tmp_path, MODEL_ID=str(checkpoint.with_name("last")), COMPARE_WITH="no-such/repo") as running:
        page = open_page(url=running.url)
        room(page, "Compare")
        page.locator("#compare_with input").click()
        page.get_by_role("option", name="no-such/repo").click()
        page.get_by_role("button", name="Write both").click()
        page.get_by_text("That checkpoint can not be loaded").first.wait_for()
        wait(page, lambda: page.locator("#compare_status p").text_content() == compare.ENDED)


@pytest.mark.parametrize("name", ["/etc", "user/repo", None, 5, ["endless, last"], {}])
def test_a_visitor_can_not_make_the_page_load_anything_else(running, name):
    values = ["A", name, 5, 50, 1.0, 1.0, 0.0, 1.0, 1]
    error = running.call("compare", values)["error"]["error"]
    assert error == "Choose one of the checkpoints in the list." and "Traceback" not in running.log()
