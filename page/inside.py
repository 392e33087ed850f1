"""The room to look inside: every token with what the model thought of it, one choice under the microscope, and what
the model thinks of a text of the visitor's own.

Knows the widgets, and how to say what gpt2/explain.py computed. Colours, underlines and keys are web/tokens.js's and
web/step.js's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

import gpt2
from gpt2.explain import NextTokens, Score, TokenScore, uniform
from page.desk import Desk, is_waiting
from page.served import Served
from page.style import script
from page.writing import SETTINGS, Progress, Sample, checked, number, refusal, words

MAX_TOKENS = 4000  # that one look covers; more buttons than that and the browser stutters
MAX_RUNS = 32  # each is read by itself, while others wait
SHOWN = 10  # alternatives
GIVEN = 600  # characters of what stood before, to see where the tokens begin
DIALS = [setting for setting in SETTINGS if setting.name not in ("max_new_tokens", "seed")]
STAGES = {
    "raw": "Model",
    "repetition_penalty": "Repetition penalty",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "min_p": "Min-p",
    "greedy": "Likeliest",
}


@dataclass(frozen=True)
class Run:
    """What one request wrote, or a text of the visitor's own."""

    before: tuple[int, ...]  # ids that were given; empty for a text of the visitor's own
    ids: tuple[int, ...]
    seed: int | None  # that drew ids


@dataclass(frozen=True)
class Looked:
    """The text under the glass: what one request after the other wrote."""

    runs: tuple[Run, ...]
    tokens: tuple[TokenScore, ...]  # of all of them
    written: tuple[Progress, ...] = ()  # what was on the sheet at the time, whether or not it is this

    def at(self, i: int) -> tuple[Run, int]:
        """Whose the token i is, and which of its."""
        for run in self.runs:
            if i < len(run.ids):
                return run, i
            i -= len(run.ids)
        raise IndexError(i)


def runs_of(served: Served, prompt: str, sample: Sample) -> tuple[str, tuple[Run, ...]]:
    """The requests that wrote a sample, the last MAX_RUNS of at most MAX_TOKENS in all; and the text before them."""
    runs, left = [], MAX_TOKENS
    while sample and len(sample.ids) <= left and len(runs) < MAX_RUNS:
        before = tuple(served.tokenizer.encode(prompt + sample.before))
        runs.insert(0, Run(before, sample.ids, sample.seed))
        left, sample = left - len(sample.ids), sample.earlier
    return prompt + (sample.text if sample else ""), tuple(runs)


def bits(token: TokenScore) -> float:
    """How much it surprised the model."""
    return -token.logprob / math.log(2)


def tokens_value(score: Score, overlap: gpt2.Overlap | None, given: str = "") -> dict[str, Any]:
    """The token view's value, see web/tokens.js."""
    fields = ("text", "id", "bytes", "rank")
    return {
        "given": given,
        "tokens": [
            {name: getattr(token, name) for name in fields}
            | {"p": math.exp(token.logprob), "bits": bits(token)}
            | {"known": overlap is None or overlap.saw(token.id)}
            for token in score.tokens
        ],
    }


def step_value(served: Served, looked: Looked, i: int, found: NextTokens, params: gpt2.SamplingParams) -> dict:
    """The microscope's value, see web/step.js."""
    (run, at), token = looked.at(i), looked.tokens[i]
    rows = [
        {"id": c.id, "text": c.text, "p": [step.probabilities[j] for step in found.steps], "here": c.id == token.id}
        for j, c in enumerate(found.candidates)
    ]
    settings = {name: getattr(params, name, None) for name in STAGES}
    steps = [
        {
            "name": STAGES[step.name] + (f" {settings[step.name]:g}" if settings[step.name] is not None else ""),
            "left": step.survivors,
        }
        for step in found.steps
    ]
    value = {"index": i, "rows": rows, "steps": steps, "choices": 2 ** (found.entropy / math.log(2))}
    value["vocabulary"] = served.tokenizer.vocab_size
    value["token"] = {"text": token.text, "p": math.exp(token.logprob), "rank": token.rank, "bits": bits(token)}
    if run.seed is not None:
        value["draw"] = {
            "u": None if params.greedy else uniform(run.seed, at),
            "slice": found.interval,
            "text": found.chosen.text,
            "same": found.chosen.id == token.id,
        }
    return value


def verdict(served: Served, score: Score, overlap: gpt2.Overlap | None) -> str:
    """What the figures of a text mean, as HTML."""
    n = len(score.tokens)
    if not n or score.bits_per_byte is None:
        return "There is nothing to score: write a few words."
    bits = score.bits_per_byte
    said = (
        f"<b>{bits:.2f} bits per byte</b>: {n:,} tokens for {score.bytes:,} bytes, {score.bytes / n:.1f} bytes per "
        f"token; each token was about as hard to guess as one of {score.perplexity:,.0f}. "
    )
    usual = served.training["held_out_bits_per_byte"]
    if usual:
        name = html.escape(str(served.training["corpus"] or "text of its own kind"))
        manner = (
            "easier than that: the model may know it, or it repeats itself"
            if bits < usual * 0.85
            else "about as hard: the model is at home here"
            if bits < usual * 1.2
            else "harder: this is not what the model was trained on"
        )
        said += f"Held-out text of its own kind ({name}) costs {usual:.2f}; yours is {manner}. "
    if overlap:
        strange = {token.text for token in score.tokens if not overlap.saw(token.id)}
        said += (
            f"{len(strange)} of its tokens occur nowhere in the training text: they are marked with a ring."
            if strange
            else "All of its tokens occur in the training text."
        )
    return said


def room(
    served: Served, desk: Desk, think: Callable[..., Any], overlap: gpt2.Overlap | None, tabs: gr.Tabs, tab: gr.Tab
) -> None:
    """Build the room; think(function, *args) calls function(model, tokenizer, *args), wherever the model runs."""
    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            own = gr.Textbox(
                label="A text of your own",
                placeholder="Paste or write something, and see how hard the model finds it to guess.",
                lines=2,
                max_lines=8,
                elem_id="own",
            )
            with gr.Row(elem_classes="actions"):
                judge = gr.Button("Score this text", variant="primary", elem_id="score")
                back = gr.Button("What was just written", elem_id="back")
                which = gr.Dropdown([1], value=1, label="Sample", visible=False, elem_id="which", min_width=100)
            summary = gr.HTML(html_template='<p role="status">${value}</p>', elem_id="summary", elem_classes="plain")
            view = gr.Radio(
                [("How likely each token was", "likely"), ("How the text splits into tokens", "split")],
                value="likely",
                label="What the colours and lines show",
                interactive=True,
                elem_id="view",
            )
            tokens = gr.HTML(
                html_template='<p class="legend"></p>'
                '<div class="tokens" role="group" aria-label="The tokens" data-view="likely"></div>',
                js_on_load=script("tokens.js"),
                elem_id="tokens",
                elem_classes="plain",
                apply_default_css=False,
            )
            step = gr.HTML(
                html_template='<section class="step" aria-live="polite"></section>',
                js_on_load=script("step.js"),
                elem_id="step",
                elem_classes="plain",
                apply_default_css=False,
            )
        with gr.Column(scale=2, min_width=300):
            gr.HTML(
                "<p>Choose a token, then turn these: they change the choice under the microscope, not the text.</p>",
                elem_classes="plain hint",
            )
            dials = [
                gr.Slider(d.low, d.high, d.default, step=d.step, label=d.label, info=d.info, elem_id=f"try_{d.name}")
                for d in DIALS
            ]
    looked, at = gr.State(None), gr.State(None)

    def glass(written: tuple[Progress, ...], *runs: Run) -> tuple[Looked, Score]:
        scores = [think(gpt2.score, run.ids, prompt=run.before, alternatives=0) for run in runs]
        tokens = tuple(token for score in scores for token in score.tokens)
        score = Score(tokens, sum(score.nats for score in scores), sum(score.bytes for score in scores))
        return Looked(runs, tokens, written), score

    def look(pages, sample, now):
        """The tab was opened: what was just written, where that is not what was there when the visitor left."""
        if now is not None and now.written == pages[-1:]:
            return [gr.skip()] * (len(seen) + len(dials))
        return look_at_last(pages, sample)

    def look_at_last(pages, sample):
        """What was just written, with the draws that chose it."""
        nothing = (gr.skip(), gr.skip(), "Nothing has been written yet: Generate something first.", *[gr.skip()] * 3)
        if not any(s.ids or s.earlier for now in pages[-1:] for s in now.samples):
            return (*nothing, *[gr.skip()] * len(dials))
        now = pages[-1]
        i = min(sample, len(now.samples)) - 1 if type(sample) is int and sample > 0 else 0
        given, runs = runs_of(served, now.prompt, now.samples[i])
        new, score = glass(pages[-1:], *runs)
        n, per_byte = len(now.samples), score.bits_per_byte or 0
        return (
            new,
            None,
            f"What the model has just written: {len(new.tokens):,} tokens, {per_byte:.2f} bits per byte. "
            "Choose one to see what else it could have been.",
            tokens_value(score, overlap, given if len(given) <= GIVEN else f"… {given[-GIVEN:]}"),
            {},
            gr.Dropdown(list(range(1, n + 1)), value=i + 1, visible=n > 1),
            *(getattr(now.params, d.name) for d in DIALS),
        )

    def look_at_own(text, pages):
        text = words(text, "The text")
        ids = tuple(served.tokenizer.encode(text))
        new, score = glass(pages[-1:], Run((), ids[:MAX_TOKENS], None))
        cut = f" Only the first {MAX_TOKENS:,} tokens are shown." if len(ids) > MAX_TOKENS else ""
        return (
            new,
            None,
            verdict(served, score, overlap) + cut,
            tokens_value(score, overlap),
            {},
            gr.Dropdown(visible=False),
        )

    def settings_from(values) -> list:
        by_name = dict(zip([d.name for d in DIALS], values, strict=True))
        return [by_name.get(setting.name) for setting in SETTINGS]

    def choose(event: gr.EventData, now, *values):
        i = event._data.get("index") if isinstance(event._data, dict) else None
        return i, show(now, i, *values)

    def show(now, i, *values):
        """The microscope on token i, with the dials as they stand."""
        if now is None or type(i) is not int or not 0 <= i < len(now.tokens):
            return gr.skip()
        params = checked("", settings_from(values))[1]
        run, at = now.at(i)
        u = None if run.seed is None else uniform(run.seed, at)
        also = [now.tokens[i].id]
        found = think(gpt2.next_tokens, run.before, SHOWN, params, u, drawn=run.ids[:at], also=also)
        return step_value(served, now, i, found, params)

    def fork(event: gr.EventData, now, i, pages, status, *values):
        """Prompt, settings and tab that go on from the token i with another one in its place, and the same seed."""
        chosen = event._data.get("id") if isinstance(event._data, dict) else None
        known = now is not None and type(i) is int and 0 <= i < len(now.tokens)
        if not known or type(chosen) is not int or not 0 <= chosen < served.tokenizer.vocab_size:
            raise refusal("Choose a token first.")
        if is_waiting(status) or (pages and not pages[-1].done):
            raise refusal("A text is being written: stop it first, or let it come to its end.")
        run, at = now.at(i)
        ids = [*run.before, *run.ids[:at], chosen]
        text = served.tokenizer.decode([idx for idx in ids if idx != served.tokenizer.endoftext])
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            raise refusal("That token is only a piece of a character; choose a whole one.")
        seed = -1 if run.seed is None else run.seed
        return [text, *(number(d, v) for d, v in zip(DIALS, values, strict=True)), seed, gr.Tabs(selected="write")]

    quiet = {"show_progress": "hidden", "api_visibility": "private"}
    busy = quiet | {"concurrency_id": "look", "concurrency_limit": 1}
    seen = [looked, at, summary, tokens, step, which]
    tab.select(look, [desk.pages, which, looked], [*seen, *dials], **busy)
    gr.on([back.click, which.input], look_at_last, [desk.pages, which], [*seen, *dials], **busy)
    gr.on([judge.click, own.submit], look_at_own, [own, desk.pages], seen, preprocess=False, **busy)
    # Each choice counts: by default one is dropped while another is looked at.
    tokens.select(choose, [looked, *dials], [at, step], preprocess=False, trigger_mode="multiple", **busy)
    gr.on([dial.input for dial in dials], show, [looked, at, *dials], step, trigger_mode="always_last", **busy)
    view.input(None, view, None, js="(name) => (document.querySelector('#tokens .tokens').dataset.view = name)")
    by_name = dict(zip([setting.name for setting in SETTINGS], desk.settings, strict=False))
    targets = [desk.prompt, *(by_name[d.name] for d in DIALS), by_name["seed"], tabs]
    forking = step.select(fork, [looked, at, desk.pages, desk.status, *dials], targets, preprocess=False, **busy)
    forking.success(None, None, None, js="() => document.getElementById('generate').click()")
