"""One request to write: checked, carried out, reported.

Knows what a visitor may ask for and what to say while it is done. Knows nothing of widgets, and of Gradio only how it
is told no.
"""

from __future__ import annotations

import html
import math
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

import gpt2
from gpt2.tokenizer import well_formed
from page.served import Served

MAX_PROMPT_CHARS = 20_000  # checked first: turning megabytes into tokens would itself be the attack
DEADLINE = 60  # seconds that one visitor may keep the model from the next
UPDATES_PER_SECOND = 20  # of the text; more than that no eye sees


@dataclass(frozen=True)
class Setting:
    """A number that the visitor chooses: what its widget shows, and what the API accepts."""

    name: str
    label: str
    low: float
    high: float
    step: float  # an int where only whole numbers make sense
    default: float
    info: str


SETTINGS = (
    Setting("max_new_tokens", "Max tokens", 1, 2000, 1, 200,
            "How much to write at most. A token is a short word or a piece of one."),
    Setting("top_k", "Top-k", 0, 200, 1, 50,
            "Choose each token among the k likeliest only. 0 leaves the choice open."),
    Setting("temperature", "Temperature", 0, 2, 0.05, 1.0,
            "Below 1 plays safe, above 1 takes risks. 0 always takes the likeliest token."),
    Setting("top_p", "Top-p", 0.01, 1, 0.01, 1.0,
            "Choose among the likeliest tokens that share this much probability. 1 keeps all."),
    Setting("min_p", "Min-p", 0, 1, 0.01, 0.0,
            "Leave out tokens less likely than this fraction of the likeliest. 0 keeps all."),
    Setting("repetition_penalty", "Repetition penalty", 1, 2, 0.05, 1.0,
            "Above 1 avoids tokens that the text already has."),
    Setting("seed", "Seed", -1, 2**53 - 1, 1, -1,  # the largest whole number that a browser holds exactly
            "The same seed and settings give the same text. -1 draws a new seed each time."),
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How far a text has come."""

    prompt: str  # as the model reads it
    seed: int
    dropped: int  # tokens of the prompt that lie before the model's window
    text: str = ""
    tokens: int = 0
    seconds: float = 0.0
    stop_reason: str | None = None  # None while it is being written


def pieces(model: gpt2.GPT, tokenizer: gpt2.Tokenizer, prompt: str, params: gpt2.SamplingParams) -> Iterator:
    """The pieces of the continuation, and gpt2.Outcome as the last item."""
    yield (yield from gpt2.generate(model, tokenizer, prompt, params))


def checked(prompt: Any, values: tuple) -> tuple[str, gpt2.SamplingParams]:
    """A request in the types that gpt2 expects: Gradio checks none, and an API user has no widgets to be held by.

    Args:
        values: one per SETTINGS; None means its default.

    Raises:
        gr.Error: naming what is wrong. Never with the value in it, for Gradio shows the sentence as HTML.
    """
    prompt = "" if prompt is None else prompt
    if not isinstance(prompt, str):
        raise refusal("The prompt must be text.")
    if len(prompt) > MAX_PROMPT_CHARS:
        raise refusal(f"The prompt has {len(prompt):,} characters; at most {MAX_PROMPT_CHARS:,} are accepted.")
    chosen = {}
    for setting, value in zip(SETTINGS, values, strict=True):
        value = setting.default if value is None else value
        kind, word = (int, "a whole number") if isinstance(setting.step, int) else (float, "a number")
        in_range = type(value) in (int, float) and setting.low <= value <= setting.high  # False for NaN
        if not in_range or kind(value) != value:
            raise refusal(f"{setting.name} must be {word} from {setting.low:,} to {setting.high:,}.")
        chosen[setting.name] = kind(value)
    if chosen["seed"] < 0:
        chosen["seed"] = secrets.randbelow(2**31)
    return well_formed(prompt), gpt2.SamplingParams(**chosen, deadline=DEADLINE)


def refusal(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False)


def write(served: Served, source: Callable[..., Iterator], prompt: Any, values: tuple) -> Iterator[Progress]:
    """Check a request, then yield Progress as its text grows, at most UPDATES_PER_SECOND; the last has all of it.
    Closing this ends the generation.

    Args:
        source: pieces() of the served model, wherever it runs.
    """
    prompt, params = checked(prompt, values)
    dropped = max(0, len(served.tokenizer.encode(prompt)) - served.model.config.block_size)
    now = Progress(prompt, params.seed, dropped)
    yield now
    started, shown = time.monotonic(), -math.inf
    try:
        with closing(source(prompt, params)) as stream:
            for piece in stream:
                seconds = time.monotonic() - started
                if isinstance(piece, gpt2.Outcome):
                    tokens = len(piece.new_ids)
                    yield replace(now, tokens=tokens, seconds=seconds, stop_reason=piece.stop_reason)
                    return
                now = replace(now, text=now.text + piece, tokens=now.tokens + 1, seconds=seconds)
                if seconds - shown >= 1 / UPDATES_PER_SECOND:
                    shown = seconds
                    yield now
    except ValueError as error:  # the checkpoint's fault: its output is not finite
        yield replace(now, stop_reason="error")
        raise refusal(html.escape(str(error))) from error


def report(progress: Progress) -> str:
    """The status line."""
    if progress.stop_reason is None and not progress.tokens:
        return "Reading the prompt."
    count = f"{progress.tokens:,} token{'s' * (progress.tokens != 1)}"
    words = f"{count} in {progress.seconds:.1f} s, {progress.tokens / max(progress.seconds, 1e-3):,.0f} per second"
    if progress.stop_reason is None:
        return f"Writing: {words}."
    words += {
        "length": "; that is the maximum you set. ",
        "end-of-text": "; the model ended its text here. ",
        "deadline": f"; time is up, {DEADLINE} seconds are the limit. ",
        "cancelled": "; stopped by you. ",
        "error": "; ended by an error. ",
    }[progress.stop_reason]
    if progress.dropped:
        words += f"The prompt is longer than the model's window: its first {progress.dropped:,} tokens were not read. "
    return words + f"Seed {progress.seed}: enter it under More to repeat this text."
