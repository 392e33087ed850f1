"""One request to write: checked, carried out, reported.

Knows what a visitor may ask for and what to say while it is done. Knows nothing of widgets, and of Gradio only how it
is told no.
"""

from __future__ import annotations

import html
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import gradio as gr
import torch

import gpt2
from gpt2.sampler import Draft, prompt_ids, stream_ids
from gpt2.tokenizer import TextStream, well_formed
from page.served import Served

MAX_PROMPT_CHARS = 20_000  # checked first: turning megabytes into tokens would itself be the attack
MAX_SEED = 2**53 - 1  # the largest whole number that a browser holds exactly
DEADLINE = 60  # seconds that one visitor may keep the model from the next
UPDATES_PER_SECOND = 20  # of the text; more than that no eye sees
END = object()  # of a stream


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
    Setting("seed", "Seed", -1, MAX_SEED, 1, -1,
            "The same seed and settings give the same text. -1 draws a new seed each time."),
)  # fmt: skip
SAMPLES = Setting("samples", "Samples", 1, 4, 1, 1, "How many continuations to write side by side.")
PRESETS = {  # of the settings that decide how daring a choice is
    "Faithful": {"top_k": 40, "temperature": 0.6, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.0},
    "Balanced": {"top_k": 50, "temperature": 1.0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
    "Wild": {"top_k": 0, "temperature": 1.5, "top_p": 1.0, "min_p": 0.01, "repetition_penalty": 1.1},
}


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    seed: int
    text: str = ""  # all of it, with what earlier requests wrote
    ids: tuple[int, ...] = ()  # of what this request wrote
    stop_reason: str | None = None  # None while it is being written
    earlier: Sample | None = None  # what this request went on from

    @property
    def before(self) -> str:
        """The text that this request went on from."""
        return self.earlier.text if self.earlier else ""


@dataclass(frozen=True)
class Progress:
    """How far a request has come."""

    prompt: str  # as the model reads it
    params: gpt2.SamplingParams  # the seed is that of the first sample; each further one has the next
    samples: tuple[Sample, ...]
    dropped: int = 0  # tokens of the prompt that lie before the model's window
    seconds: float = 0.0
    place: int = 0  # in the queue, of the first sample that waits for the model; 0 where none does

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def done(self) -> bool:
        return all(sample.stop_reason for sample in self.samples)

    def ended(self, stop_reason: str) -> Progress:
        """This, with what is not yet written given up for a reason."""
        samples = (s if s.stop_reason else replace(s, stop_reason=stop_reason) for s in self.samples)
        return replace(self, samples=tuple(samples))


@dataclass(frozen=True)
class News:
    """What has become of one among several samples; perhaps nothing, but time has passed."""

    sample: int
    idx: int | None = None  # its next token
    stop_reason: str | None = None  # why it has ended
    place: int = 0  # as in Progress


Ask = tuple[str, gpt2.SamplingParams]  # for one sample: what it goes on from, and how
Source = Callable[[Sequence[Ask]], Iterator[News]]


@torch.inference_mode()
def news(model: gpt2.GPT, tokenizer: gpt2.Tokenizer, asks: Sequence[Ask]) -> Iterator[News]:
    """Write samples with a model of one's own: a token of each in turn, so that they grow together."""
    drafts = [Draft(model.config, prompt_ids(model, tokenizer, prompt), params) for prompt, params in asks]
    for row in zip_longest(*(stream_ids(model, draft) for draft in drafts)):
        yield from (News(i, idx) for i, idx in enumerate(row) if idx is not None)
    yield from (News(i, stop_reason=draft.stop_reason) for i, draft in enumerate(drafts))


def news_from(engine: gpt2.Engine, asks: Sequence[Ask]) -> Iterator[News]:
    """The same from an engine, which writes for many at once."""
    requests = [engine.submit(prompt, params) for prompt, params in asks]
    streams = {i: request.ids() for i, request in enumerate(requests)}
    while streams:
        waiting = [i for i in streams if requests[i].position]  # they get their places in this order
        for i in [i for i in streams if i not in waiting] or waiting[:1]:
            idx = next(streams[i], END)
            place = requests[waiting[0]].position if waiting else 0
            if idx is END:
                del streams[i]
                yield News(i, stop_reason=requests[i].outcome.stop_reason, place=place)
            else:
                yield News(i, idx, place=place)


def number(setting: Setting, value: Any) -> int | float:
    """A value in the type that gpt2 expects; None means the default.

    Raises:
        gr.Error: naming the setting. Never with the value in it, for Gradio shows the sentence as HTML.
    """
    value = setting.default if value is None else value
    kind, word = (int, "a whole number") if isinstance(setting.step, int) else (float, "a number")
    in_range = type(value) in (int, float) and setting.low <= value <= setting.high  # False for NaN
    if not in_range or kind(value) != value:
        raise refusal(f"{setting.name} must be {word} from {setting.low:,} to {setting.high:,}.")
    return kind(value)


def words(text: Any, name: str = "The prompt") -> str:
    """A text that a visitor gave, as the model can read it; None means an empty one.

    Raises:
        gr.Error: where it is no text, or too long.
    """
    text = "" if text is None else text
    if not isinstance(text, str):
        raise refusal(f"{name} must be text.")
    if len(text) > MAX_PROMPT_CHARS:
        raise refusal(f"{name} has {len(text):,} characters; at most {MAX_PROMPT_CHARS:,} are accepted.")
    return well_formed(text)


def checked(prompt: Any, values: Sequence[Any]) -> tuple[str, gpt2.SamplingParams]:
    """A request in the types that gpt2 expects: Gradio checks none, and an API user has no widgets to be held by.

    Args:
        values: one per SETTINGS.

    Raises:
        gr.Error: naming what is wrong.
    """
    prompt = words(prompt)
    chosen = {setting.name: number(setting, value) for setting, value in zip(SETTINGS, values, strict=True)}
    if chosen["seed"] < 0:
        chosen["seed"] = secrets.randbelow(2**31)
    return prompt, gpt2.SamplingParams(**chosen, deadline=DEADLINE)


def refusal(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False)


def write(
    served: Served, source: Source, prompt: Any, values: Sequence[Any], earlier: Sequence[Sample | None] = (None,)
) -> Iterator[Progress]:
    """Check a request, then yield Progress as its texts grow, at most UPDATES_PER_SECOND; the last has all of them.
    Closing this ends the generation.

    Args:
        source: news() of the served model, wherever it runs.
        earlier: what each sample goes on from; as many are written as there are items.
    """
    prompt, params = checked(prompt, values)
    samples = [
        Sample((params.seed + i) % (MAX_SEED + 1), one.text if one else "", earlier=one)
        for i, one in enumerate(earlier)
    ]
    longest = max(len(served.tokenizer.encode(prompt + sample.text)) for sample in samples)
    now = Progress(prompt, params, tuple(samples), max(0, longest - served.model.config.block_size))
    yield now
    started, shown = time.monotonic(), -math.inf
    texts = [TextStream(served.tokenizer) for _ in samples]
    try:
        with closing(source([(prompt + s.text, replace(params, seed=s.seed)) for s in samples])) as stream:
            for new in stream:
                one, text = samples[new.sample], texts[new.sample]
                if new.stop_reason:
                    one = replace(one, text=one.text + text.end(), stop_reason=new.stop_reason)
                elif new.idx is not None:
                    one = replace(one, text=one.text + text.push(new.idx), ids=(*one.ids, new.idx))
                samples[new.sample] = one
                now = replace(now, samples=tuple(samples), seconds=time.monotonic() - started, place=new.place)
                if now.seconds - shown >= 1 / UPDATES_PER_SECOND and not now.done:
                    shown = now.seconds
                    yield now
        yield now
    except (ValueError, gpt2.EngineError) as error:  # a damaged checkpoint, or an engine whose queue is full
        yield now.ended("error")
        raise refusal(html.escape(str(error))) from error


def report(progress: Progress) -> str:
    """The status line."""
    if not progress.done and not progress.tokens:
        waits = f"Others are writing: you are number {progress.place} in the queue."
        return waits if progress.place else "Reading the prompt."
    count = f"{progress.tokens:,} token{'s' * (progress.tokens != 1)}"
    said = f"{count} in {progress.seconds:.1f} s, {progress.tokens / max(progress.seconds, 1e-3):,.0f} per second"
    if not progress.done:
        waits = f" The next sample is number {progress.place} in the queue." if progress.place else ""
        return f"Writing: {said}.{waits}"
    reasons = {sample.stop_reason for sample in progress.samples}
    said += {
        "length": "; that is the maximum you set. ",
        "end-of-text": "; the model ended its text here. ",
        "deadline": f"; time is up, {DEADLINE} seconds are the limit. ",
        "cancelled": "; stopped by you. ",
        "error": "; ended by an error. ",
    }[reasons.pop() if len(reasons) == 1 else "length"]
    if progress.dropped:
        said += f"The prompt is longer than the model's window: its first {progress.dropped:,} tokens were not read. "
    said += f"Seed {progress.params.seed}: the same seed and settings repeat "
    if not (before := progress.samples[0].before):
        return said + "this text."
    if len(progress.samples) > 1:
        return said + "what was added to each text."
    given = len(progress.prompt + before)
    return said + f"what was added after the first {given:,} characters; the link below holds them."
