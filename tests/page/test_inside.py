"""Looking inside: what is said of a token and of a choice, and how a visitor gets to it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from functools import partial

import pytest

import app
import gpt2
from gpt2.explain import next_tokens, uniform
from page import inside
from page.share import settings_of
from page.writing import Sample, news, write
from tests.page.conftest import TRAINED_ON
from tests.page.visit import INJECTIONS, begin, crowd, generate, number, open_more, press, room, sheet, status, wait

PARAMS = gpt2.SamplingParams(max_new_tokens=12, temperature=0.9, top_k=30, top_p=0.9, seed=5)


@pytest.fixture
def looked(tiny_served) -> inside.Looked:
    """A text that was drawn with PARAMS, and continued with another seed."""
    source, one = partial(news, tiny_served.model, tiny_served.tokenizer), None
    for seed in (PARAMS.seed, 6):
        values = settings_of(replace(PARAMS, seed=seed)).values()
        *_, now = write(tiny_served, source, "ROMEO:", list(values), [one])
        [one] = now.samples
    given, runs = inside.runs_of(tiny_served, "ROMEO:", one)
    assert given == "ROMEO:"
    scored = [gpt2.score(tiny_served.model, tiny_served.tokenizer, run.ids, prompt=run.before) for run in runs]
    return inside.Looked(runs, tuple(token for score in scored for token in score.tokens))


def under_glass(served, looked, i, params=PARAMS) -> dict:
    (run, at), also = looked.at(i), [looked.tokens[i].id]
    u = uniform(run.seed, at)
    found = next_tokens(
        served.model, served.tokenizer, run.before, inside.SHOWN, params, u, drawn=run.ids[:at], also=also
    )
    return inside.step_value(served, looked, i, found, params)


def test_the_draw_that_is_shown_is_the_one_that_chose_also_before_a_text_was_continued(tiny_served, looked):
    assert len(looked.tokens) == 2 * PARAMS.max_new_tokens
    for i, token in enumerate(looked.tokens):
        value = under_glass(tiny_served, looked, i)
        low, high = value["draw"]["slice"]
        assert value["draw"]["same"] and low <= value["draw"]["u"] < high
        [row] = [row for row in value["rows"] if row["here"]]
        assert row["id"] == token.id and row["p"][-1] == pytest.approx(high - low, abs=1e-5)


def test_of_a_very_long_text_the_last_requests_are_shown_and_what_was_before_as_text(tiny_served, looked, monkeypatch):
    first, second = (Sample(run.seed, tiny_served.tokenizer.decode(run.ids), run.ids) for run in looked.runs)
    monkeypatch.setattr(inside, "MAX_TOKENS", len(second.ids) + 1)
    given, runs = inside.runs_of(tiny_served, "A", replace(second, earlier=first))
    assert given == "A" + first.text and [run.ids for run in runs] == [second.ids]


def test_a_text_in_many_requests_is_shown_from_the_last_of_them(tiny_served, looked, monkeypatch):
    first, second = (Sample(run.seed, tiny_served.tokenizer.decode(run.ids), run.ids) for run in looked.runs)
    monkeypatch.setattr(inside, "MAX_RUNS", 1)
    given, runs = inside.runs_of(tiny_served, "A", replace(second, earlier=first))
    assert given == "A" + first.text and [run.ids for run in runs] == [second.ids]


def test_the_token_that_stands_there_and_the_drawn_one_have_every_figure_however_unlikely(tiny_served, looked):
    hot = replace(PARAMS, temperature=2.0, top_k=0, top_p=1.0)
    values = [under_glass(tiny_served, looked, i, hot) for i in range(len(looked.tokens))]
    assert any(value["rows"][inside.SHOWN :] and not value["draw"]["same"] for value in values)
    for value, token in zip(values, looked.tokens, strict=True):
        [row] = [row for row in value["rows"] if row["here"]]
        assert row["id"] == token.id and row["p"][0] == pytest.approx(value["token"]["p"], rel=1e-3)
        assert all(0 < p < 1 for row in value["rows"] for p in row["p"]) and len(row["p"]) == len(value["steps"])
        low, high = value["draw"]["slice"]
        assert any(row["p"][-1] == pytest.approx(high - low, abs=1e-6) for row in value["rows"])


def test_every_filter_that_is_on_has_a_column_and_says_how_many_are_left(tiny_served, looked):
    steps = under_glass(tiny_served, looked, 0)["steps"]
    assert [step["name"] for step in steps] == ["Model", "Temperature 0.9", "Top-k 30", "Top-p 0.9"]
    assert steps[0]["left"] == 263 and steps[2]["left"] == 30 and steps[3]["left"] <= 30


def test_other_settings_may_choose_another_token_with_the_same_number(tiny_served, looked):
    greedy = replace(PARAMS, temperature=0.0)
    values = [under_glass(tiny_served, looked, i, greedy) for i in range(len(looked.tokens))]
    assert any(not value["draw"]["same"] for value in values)
    assert all(value["draw"]["u"] is None for value in values)


def test_tokens_that_are_all_but_impossible_differ_in_their_surprise(tiny_served):
    token = gpt2.score(tiny_served.model, tiny_served.tokenizer, "a").tokens[0]
    tokens = tuple(replace(token, logprob=math.log(p)) for p in (0.5, 1e-3, 1e-9))
    value = inside.tokens_value(inside.Score(tokens, 0, 3), None)
    assert [round(token["bits"], 1) for token in value["tokens"]] == [1.0, 10.0, 29.9]


def test_the_ten_likeliest_and_the_chosen_one_are_shown(tiny_served, looked):
    for i, rank in enumerate(token.rank for token in looked.tokens):
        assert len(under_glass(tiny_served, looked, i)["rows"]) == (10 if rank <= 10 else 11)


@pytest.mark.parametrize(
    "bits, words", [(1.0, "easier than that"), (2.6, "at home here"), (5.0, "not what the model was trained on")]
)
def test_a_score_is_held_against_the_held_out_figure(tiny_served, bits, words):
    served = replace(tiny_served, training={**tiny_served.training, "held_out_bits_per_byte": 2.5, "corpus": "<b>"})
    token = gpt2.score(served.model, served.tokenizer, "a").tokens[0]
    said = inside.verdict(served, inside.Score((token,), bits * math.log(2), 1), None)
    assert f"{bits:.2f} bits per byte" in said and "2.50" in said and words in said and "<b>)" not in said


def test_an_empty_text_has_no_score(tiny_served):
    assert "nothing to score" in inside.verdict(tiny_served, inside.Score((), 0.0, 0), None)


@pytest.mark.parametrize("event", [None, {}, {"index": 10**9}, {"index": "0"}, {"id": [1]}, {"id": -1}, 5])
@pytest.mark.parametrize("endpoint", ["choose", "fork"])
def test_a_forged_choice_does_no_harm(running, endpoint, event):
    body = {"data": [None] * 9, "event_data": event}
    running.post(f"/gradio_api/call/{endpoint}", json.dumps(body).encode())
    assert "complete" in running.call("model_info", [])
    assert "Traceback" not in running.log()


# In the browser


def tokens(page) -> list[str]:
    return page.locator("#tokens button").all_text_contents()


def look(page) -> None:
    room(page, "Look inside")
    wait(page, lambda: "just written" in page.locator("#summary p").text_content() and tokens(page))


def another_token(page):
    """The button that goes on with another token than that of the text, and not with a piece of a character."""
    return page.locator('#step tbody tr:not(.here) button:not([aria-label*="\\\\x"])').first


@pytest.mark.browser
def test_every_token_that_was_written_is_there_with_its_probability_in_words(open_page):
    page = open_page()
    text = generate(page, max_tokens=25)
    look(page)
    labels = page.locator("#tokens button").evaluate_all("all => all.map((b) => b.ariaLabel)")
    assert len(labels) == 25
    assert all(re.search(r"%, surprise of \d+\.\d bits, rank \d+", label) for label in labels)
    assert page.locator("#tokens .given").text_content() == "ROMEO:" and text.startswith("ROMEO:")


@pytest.mark.browser
def test_the_classes_of_likelihood_differ_in_more_than_their_colour(open_page):
    page = open_page()
    room(page, "Look inside")
    page.locator("#tokens .legend .token").nth(3).wait_for()
    lines = page.locator("#tokens .legend .token").evaluate_all(
        "all => all.map((e) => getComputedStyle(e).borderBottomStyle)"
    )
    assert lines == ["none", "dotted", "dashed", "solid"]


@pytest.mark.browser
def test_with_the_keyboard_alone_a_token_is_chosen_and_the_text_forked_with_the_same_seed(open_page):
    page = open_page()
    generate(page, max_tokens=25)
    seed = status(page).split("Seed ")[1].split(":")[0]
    look(page)
    page.locator("#view input").last.focus()
    page.keyboard.press("Tab")
    page.wait_for_function("document.activeElement.classList.contains('token')")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator("#step table").wait_for()
    assert re.match(r"Token 5: .*%, a surprise of \d+\.\d bits, rank", page.locator("#step p").first.text_content())
    assert page.locator("#step tbody tr").count() >= 10
    another_token(page).focus()
    page.keyboard.press("Enter")
    wait(page, lambda: f"Seed {seed}" in status(page) and page.locator("#sheet b").first.text_content() != "ROMEO:")
    prompt = page.locator("#sheet b").first.text_content()
    assert prompt.startswith("ROMEO:") and len(prompt) > len("ROMEO:")
    assert page.locator("#prompt textarea").input_value() == prompt


@pytest.mark.browser
def test_turning_a_dial_changes_the_choice_under_the_microscope(open_page):
    page = open_page()
    generate(page, max_tokens=25)
    look(page)
    page.locator("#tokens button").nth(3).click()
    page.locator("#step table").wait_for()
    assert "Top-k 50" in page.locator("#step thead").text_content()
    number(page, "Top-k", 2)
    wait(page, lambda: "Top-k 2" in page.locator("#step thead").text_content())
    assert "2 left" in page.locator("#step thead").text_content()
    assert page.locator("#step tbody").text_content().count("out") >= 8
    page.locator("#try_top_k").get_by_label("Reset").click()
    wait(page, lambda: "Top-k 50" in page.locator("#step thead").text_content())
    number(page, "Temperature", 0)
    wait(page, lambda: "No chance is involved" in page.locator("#step").text_content())


@pytest.mark.browser
def test_a_text_of_ones_own_is_scored_beside_the_held_out_figure(open_page):
    page = open_page()
    room(page, "Look inside")
    page.locator("#own textarea").fill("Zq and the sun.")
    page.get_by_role("button", name="Score this text").click()
    wait(page, lambda: "bits per byte" in page.locator("#summary p").text_content())
    said = page.locator("#summary p").text_content()
    assert "costs 2.50" in said and "bytes per token" in said
    assert "2 of its tokens occur nowhere in the training text" in said  # Z and q
    assert "z" not in TRAINED_ON.lower() and page.locator("#tokens button.unseen").count() == 2
    page.locator("#tokens button").nth(1).click()
    page.locator("#step table").wait_for()
    assert "random number" not in page.locator("#step").text_content()


@pytest.mark.browser
def test_who_comes_back_finds_what_was_there_until_something_else_is_written(open_page):
    page = open_page()
    generate(page)
    look(page)
    page.locator("#own textarea").fill("the hand and mouth")
    page.get_by_role("button", name="Score this text").click()
    wait(page, lambda: tokens(page)[:1] == ["the"])
    room(page, "Training")
    room(page, "Look inside")
    page.wait_for_timeout(500)
    assert tokens(page)[:1] == ["the"]
    room(page, "Write")
    generate(page, "JULIET:")
    look(page)
    assert page.locator("#tokens .given").text_content() == "JULIET:"


@pytest.mark.browser
def test_how_a_text_splits_is_shown_on_demand(open_page):
    page = open_page()
    room(page, "Look inside")
    page.locator("#own textarea").fill("the hand and mouth")
    page.get_by_role("button", name="Score this text").click()
    wait(page, lambda: tokens(page)[:1] == ["the"])
    assert "".join(tokens(page)).replace("␣", " ") == "the hand and mouth"
    page.get_by_label("How the text splits").check()
    wait(page, lambda: page.locator("#tokens .tokens").get_attribute("data-view") == "split")


@pytest.mark.browser
def test_what_a_visitor_scores_is_shown_and_never_run(open_page):
    page = open_page()
    room(page, "Look inside")
    page.locator("#own textarea").fill(INJECTIONS)
    page.get_by_role("button", name="Score this text").click()
    wait(page, lambda: len(tokens(page)) > 50)
    for i in (0, 20, 50):
        page.locator("#tokens button").nth(i).click()
        wait(page, lambda i=i: f"Token {i + 1}:" in page.locator("#step").text_content())
    assert page.locator("#tokens img, #step img, #tokens script, #step script").count() == 0


@pytest.mark.browser
def test_each_sample_can_be_looked_into(open_page):
    page = open_page()
    open_more(page)
    number(page, "Samples", 2)
    page.get_by_label("Seed", exact=True).fill("41")
    begin(page, max_tokens=30)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("60 tokens"))
    look(page)
    first = tokens(page)
    page.get_by_label("Sample", exact=True).click()
    page.get_by_role("option", name="2").click()
    wait(page, lambda: tokens(page) != first and len(tokens(page)) == 30)


@pytest.mark.browser
def test_a_text_that_is_forked_stays_text(open_page):
    page = open_page()
    generate(page, INJECTIONS, max_tokens=10)
    look(page)
    page.locator("#tokens button").nth(2).click()
    page.locator("#step table").wait_for()
    another_token(page).click()
    wait(page, lambda: "Seed" in status(page) and page.locator("#sheet b").first.text_content() != INJECTIONS)
    prompt = page.locator("#sheet b").first.text_content()
    assert prompt.startswith(INJECTIONS) and len(prompt) > len(INJECTIONS)
    assert page.locator("#prompt textarea").input_value() == prompt
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.browser
def test_a_stopped_text_is_forked_with_the_same_seed_too(open_page):
    page = open_page(query="?prompt=ROMEO:&seed=41&max_new_tokens=2000")
    wait(page, lambda: page.locator("#prompt textarea").input_value() == "ROMEO:")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: len(sheet(page)) > 40)
    page.keyboard.press("Escape")
    wait(page, lambda: "stopped by you" in status(page))
    look(page)
    page.locator("#tokens button").nth(2).click()
    page.locator("#step table").wait_for()
    assert "random number" in page.locator("#step").text_content()
    another_token(page).click()
    wait(page, lambda: page.locator("#sheet").is_visible() and "the maximum you set" in status(page))
    assert "Seed 41:" in status(page)


@pytest.mark.browser
def test_no_fork_takes_the_place_of_a_text_that_is_being_written_or_waits(open_page, client):
    page = open_page()
    generate(page)
    look(page)
    page.locator("#tokens button").nth(2).click()
    page.locator("#step table").wait_for()
    room(page, "Write")
    with crowd(client, app.SLOTS):
        begin(page, "JULIET:")
        page.keyboard.press("Control+Enter")
        room(page, "Look inside")
        another_token(page).click()
        page.get_by_text("A text is being written").first.wait_for()
        assert page.locator("#prompt textarea").input_value() == "JULIET:"


@pytest.mark.browser
def test_after_continue_every_token_that_was_written_is_there_and_can_be_chosen(open_page):
    page = open_page()
    generate(page, max_tokens=25)
    before = sheet(page)
    press(page, "Continue")
    wait(page, lambda: len(sheet(page)) > len(before) and status(page).startswith("25 tokens"))
    look(page)
    assert len(tokens(page)) == 50 and page.locator("#tokens .given").text_content() == "ROMEO:"
    for i in (2, 40):
        page.locator("#tokens button").nth(i).click()
        wait(page, lambda i=i: f"Token {i + 1}:" in page.locator("#step").text_content())
        assert "another token than the one" not in page.locator("#step .draw").text_content()
