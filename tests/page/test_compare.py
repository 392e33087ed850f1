"""Two checkpoints side by side: which may stand there, and where their texts part ways."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

import gpt2
from page import compare
from page.served import load
from page.writing import Progress, Sample
from tests.page.visit import INJECTIONS, number, room, wait


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
    found = [[text for kind, text in sheet["parts"] if kind == "apart"] for sheet in value["sheets"]]
    assert found == marked
    for sheet, text in zip(value["sheets"], texts, strict=True):
        assert "".join(words for _, words in sheet["parts"]) == "A" + text


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


@pytest.mark.parametrize("name", ["/etc", "user/repo", None, 5, ["endless, last"], {}])
def test_a_visitor_can_not_make_the_page_load_anything_else(running, name):
    values = ["A", name, 5, 50, 1.0, 1.0, 0.0, 1.0, 1]
    error = running.call("compare", values)["error"]["error"]
    assert error == "Choose one of the checkpoints in the list." and "Traceback" not in running.log()
