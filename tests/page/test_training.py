"""How the model became what it is: curves, samples, provenance, copies; and what a careless or hostile run leaves."""

from __future__ import annotations

import json
import re
import shutil

import pytest

import app
import gpt2
from page import training
from page.served import examples, load
from tests.page.conftest import TRAINED_ON
from tests.page.visit import INJECTIONS, room, serve, wait


def test_training_and_validation_share_one_scale_where_the_bytes_of_a_token_are_known(checkpoint):
    shown = training.curves(checkpoint, json.loads((checkpoint / "training.json").read_text(encoding="utf-8")))
    assert shown.count("<figure>") == 1 and "best: 3.000 at step 100" in shown
    assert "training from 2.89 at step 0" in shown  # 6 nats for a token of 3 bytes
    assert "validation from 4.00 at step 0 to 3.30 at step 200" in shown


def test_without_it_each_has_a_scale_of_its_own(checkpoint):
    shown = training.curves(checkpoint, None)
    assert shown.count("<figure>") == 2 and "Nats per token" in shown and "Bits per byte" in shown


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no JSON",
        "[1]",
        "[" * 100_000,
        '{"step": "<b>", "loss": 1}',
        '{"step": 1, "loss": NaN}',
        '{"step": 1e300, "loss": 2}',
        '{"step": true, "loss": true}',
        '{"step": 0, "loss": 0}',
    ],
)
def test_no_journal_breaks_the_page(line, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    for name in ("metrics.jsonl", "samples.jsonl", "training.json", "overlap.safetensors", "README.md"):
        (tmp_path / "copy" / name).write_text(f"{line}\n", encoding="utf-8")
    app.build(load(tmp_path / "copy"))


def test_thousands_of_points_are_thinned_out(tmp_path):
    lines = "".join(f'{{"step": {step}, "loss": 3.0}}\n' for step in range(20_000))
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    assert len(training.curves(tmp_path, None)) < 20_000


def test_the_best_step_is_marked_however_many_points_there_are_and_whichever_weights_it_is_of(tmp_path):
    best = {4321: ("validation_bits_per_byte_ema", 1.234)}
    keys = ("validation_bits_per_byte", "validation_bits_per_byte_ema")
    lines = [{"step": s, **{key: 2.0 for key in keys}, **dict([best[s]] if s in best else [])} for s in range(5000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    shown = training.curves(tmp_path, None)
    assert "best: 1.234 at step 4,321" in shown and "averaged from 2.00 at step 0 to 2.00 at step 4,999" in shown


def test_the_card_tells_what_is_known_and_nothing_else(checkpoint):
    served = load(checkpoint)
    assert "has no training.json" in training.provenance_card(served, None)
    assert "<td>cc0</td>" in training.provenance_card(served, {"corpus": {"license": "cc0"}})
    shown = training.provenance_card(served, {"seconds": 120, "steps": 200, "tokens_seen": 1000})
    assert "2 minutes, 200 steps" in shown and "Hardware" not in shown and "a directory on this machine" in shown
    assert str(checkpoint) not in shown and "has no training.json" not in shown


def test_the_card_says_what_was_learned_by_heart(checkpoint):
    extraction = {"train": {"prompts": 200, "recited": 3}}
    record = {"memorisation": {"copied": {"generated": 0.0, "held_out": 0.012}, "extraction": extraction}}
    shown = training.provenance_card(load(checkpoint), record)
    assert "0.0% of what it writes is copied" in shown and "1.2%" in shown and "it recites 3 of 200 passages" in shown
    assert "Learned by heart" not in training.provenance_card(load(checkpoint), {"memorisation": {"copied": [1]}})


def test_what_a_record_says_is_text_on_the_card(checkpoint):
    record = {"corpus": {"origin": INJECTIONS}, "hardware": INJECTIONS, "data": [{"name": INJECTIONS}, 5, None]}
    record |= {"versions": {INJECTIONS: INJECTIONS}, "command": INJECTIONS}
    shown = training.provenance_card(load(checkpoint), record)
    assert "<script" not in shown and "<img" not in shown and "&lt;img" in shown


def test_examples_come_from_the_checkpoints_own_card(tiny_checkpoint, tmp_path):
    assert examples(gpt2.BUNDLED)[0] == "ROMEO:\n"
    assert examples(tiny_checkpoint) == []
    for text in ("---\n{", "---\nwidget: 5\n---\n", "---\nwidget:\n- 1\n---\n", "---\nwidget:\n- text: [1]\n---\n"):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert examples(tmp_path) == []


def test_a_copied_span_is_a_part_of_its_own():
    assert training.in_parts("abcdef", [(1, 3)]) == [["text", "a"], ["copied", "bc"], ["text", "def"]]
    assert "".join(text for _, text in training.in_parts("abcdef", [(0, 2), (4, 6)])) == "abcdef"


# In the browser


@pytest.mark.browser
def test_the_curves_have_their_words_and_the_best_step(open_page):
    page = open_page()
    room(page, "Training")
    chart = page.get_by_role("img", name=re.compile("Bits per byte by step"))
    assert "the best validation is 3.000 at step 100" in chart.get_attribute("aria-label")
    dashes = page.locator("#curves polyline").evaluate_all("all => all.map((e) => getComputedStyle(e).strokeDasharray)")
    assert len(set(dashes)) == 2


@pytest.mark.browser
def test_the_same_prompt_is_shown_at_every_step(open_page):
    page = open_page()
    room(page, "Training")
    text = page.locator("#samples_by_step article").first
    text.wait_for()
    for step in ("0", "100", "200"):
        page.locator("#sample_step").get_by_label(step, exact=True).check()
        wait(page, lambda step=step: f"After {step} steps" in text.text_content())
        assert text.locator("p").text_content() == f"{INJECTIONS}{INJECTIONS} written after {step} steps"


@pytest.mark.browser
def test_what_stands_in_the_training_text_is_underlined_and_its_share_told(open_page):
    page = open_page()
    room(page, "Training")
    copied = "It is the east, and Juliet is the sun"
    page.get_by_label("A text to look for").fill(f"Hark! {copied}. {INJECTIONS}")
    page.get_by_role("button", name="Look for it").click()
    page.locator("#memory u").wait_for()
    assert page.locator("#memory u").all_text_contents() == [copied] and copied in TRAINED_ON
    assert re.match(r"\d+% of its words stand in the training text", page.locator("#memory_share p").text_content())
    assert page.locator("#memory p").text_content() == f"Hark! {copied}. {INJECTIONS}"


@pytest.mark.browser
def test_invented_text_is_said_to_be_invented(open_page):
    page = open_page()
    room(page, "Training")
    page.get_by_label("A text to look for").fill("one two three four five six seven eight nine ten")
    page.get_by_role("button", name="Look for it").click()
    wait(page, lambda: "it is invented" in page.locator("#memory_share p").text_content())


@pytest.mark.browser
def test_a_checkpoint_without_a_history_says_so(open_page, tiny_checkpoint, tmp_path):
    with serve(tmp_path, MODEL_ID=str(tiny_checkpoint)) as bare:
        page = open_page(url=bare.url)
        room(page, "Training")
        for name in ("metrics.jsonl", "samples.jsonl", "overlap.safetensors"):
            page.get_by_text(f"This checkpoint has no {name}").wait_for()
