"""The room that holds two checkpoints side by side: one prompt, one seed, and where their texts part ways.

Knows which checkpoints may be compared: best and last of the run that is served, the bundled one, and those that the
owner of the page names. A visitor chooses among them and can not make the page load anything else.
"""

from __future__ import annotations

import html
import os
import re
import threading
from contextlib import ExitStack, closing
from functools import partial
from itertools import takewhile
from pathlib import Path

import gradio as gr

import gpt2
from page.desk import Desk, sheet
from page.served import Served, load, short
from page.writing import Progress, Source, checked, news, refusal, write

ENDED = "Ended before both texts were complete."
NAMED_BY_OWNER = "COMPARE_WITH"  # environment: directories or Hub ids, divided by spaces


def choices(served: Served) -> dict[str, str]:
    """Name -> source of every other checkpoint that can stand beside the served one."""
    here, found = served.directory.resolve(), {}
    for sibling in ("best", "last"):
        path = here.with_name(sibling)
        if here.name in ("best", "last") and path != here and (path / "config.json").exists():
            found[f"{served.name}, {sibling}"] = str(path)
    if here != gpt2.BUNDLED.resolve() and (gpt2.BUNDLED / "model.safetensors").exists():
        found[gpt2.BUNDLED.name] = str(gpt2.BUNDLED)
    for source in os.environ.get(NAMED_BY_OWNER, "").split():
        *_, run, name = ["", *Path(source).parts]  # of a directory, no more than visitors need to tell it
        is_path = os.path.isabs(source)
        found[short(f"{run}, {name}" if is_path and name in ("best", "last") else name if is_path else source)] = source
    return found


def apart(texts: list[str]) -> int:
    """How many characters two texts have in common before the first word that differs."""
    at = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*texts, strict=False)))
    if any(text[at : at + 1].strip() for text in texts):  # one goes on with the word that both are in
        at = len(re.sub(r"\S+$", "", texts[0][:at]))
    return at


def side_by_side(names: list[str], nows: list[Progress]) -> dict:
    """The sheet's value; where both are complete, the first word that differs is marked."""
    texts = [now.samples[0].text for now in nows]
    at = None
    if all(now.done for now in nows) and texts[0] != texts[1]:
        at = max((m.end() for m in re.finditer(r"\s", texts[0][: apart(texts)])), default=0)  # where that word begins
    sheets = []
    for name, now, text in zip(names, nows, texts, strict=True):
        parts = [["prompt", now.prompt], ["text", text[:at]]]
        if at is not None:
            word = re.match(r"\s*\S*", text[at:]).end()
            parts += [["apart", text[at : at + word]], ["text", text[at + word :]]]
        sheets.append({"title": name, "parts": parts})
    return {"sheets": sheets}


def said(nows: list[Progress]) -> str:
    """The status line."""
    if not all(now.done for now in nows):
        return "Both are writing."
    texts, seed = [now.samples[0].text for now in nows], nows[0].params.seed
    if texts[0] == texts[1]:
        return f"With seed {seed} both write the same text."
    return (
        f"With seed {seed} they agree for {apart(texts):,} characters; the first word that differs is marked in both."
    )


def room(served: Served, desk: Desk, source: Source, slots: int, tab: gr.Tab) -> None:
    """Build the room; source and slots as for desk.room()."""
    others, kept, loading = choices(served), {}, threading.Lock()
    if not others:
        gr.HTML(
            "<p>This page knows one checkpoint only. Whoever runs it can name others in the environment variable "
            f"{NAMED_BY_OWNER}: directories, or ids and revisions of the Hub like user/repo@v1.</p>",
            elem_classes="plain",
        )
        return

    def second(name: str) -> Served:
        """The other checkpoint; only the last one asked for is kept in memory."""
        with loading:  # visitors ask in threads of their own
            if name not in kept:
                kept.clear()
                try:
                    kept[name] = load(others[name])
                except ValueError as error:
                    raise refusal(f"That checkpoint can not be loaded: {html.escape(str(error))}") from error
            return kept[name]

    def respond(prompt, name, *values):
        prompt, params = checked(prompt, values)
        if not isinstance(name, str) or name not in others:
            raise refusal("Choose one of the checkpoints in the list.")
        yield {"sheets": []}, "Loading the other checkpoint." if name not in kept else "Both are writing."
        other = second(name)
        sources = [source, partial(news, other.model, other.tokenizer)]
        names = [called + titled(one) for called, one in ((served.name, served), (name, other))]
        values = [*values[:-1], params.seed]
        with ExitStack() as stack:
            both = [
                stack.enter_context(closing(write(one, its_source, prompt, values)))
                for one, its_source in zip((served, other), sources, strict=True)
            ]
            nows = [next(progress) for progress in both]
            while not all(now.done for now in nows):
                nows = [now if now.done else next(progress) for now, progress in zip(nows, both, strict=True)]
                yield side_by_side(names, nows), said(nows)

    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            prompt = gr.Textbox(label="Prompt for both", lines=2, max_lines=6, elem_id="compare_prompt")
        with gr.Column(scale=2, min_width=300):
            name = gr.Dropdown(
                list(others),
                value=next(iter(others)),
                label="Compare with",
                info="Settings and seed are those of Write.",
                elem_id="compare_with",
            )
    with gr.Row(elem_classes="actions"):
        start = gr.Button("Write both", variant="primary", elem_id="compare_start")
        stop = gr.Button("Stop both", elem_id="compare_stop")
    status = gr.HTML(
        html_template='<p role="status" aria-live="polite">${value}</p>', elem_id="compare_status", elem_classes="plain"
    )
    paper = sheet("compare", "Both texts", "Two texts appear here, side by side.", follow=True)
    writing = gr.on(
        [start.click, prompt.submit],
        respond,
        [prompt, name, *desk.settings[:-1]],
        [paper, status],
        api_name="compare",
        preprocess=False,
        show_progress="hidden",
        concurrency_id="model",
        concurrency_limit=slots,
        api_visibility="private",
    )
    stop.click(None, None, None, cancels=writing)
    writing.failure(lambda: ENDED, None, status, queue=False, show_progress="hidden", api_visibility="private")
    # The prompt of Write, until the visitor has another here.
    copy = "(text, own) => (!own || own === window.copied ? (window.copied = text) : own)"
    tab.select(None, [desk.prompt, prompt], prompt, js=copy)


def titled(served: Served) -> str:
    bits = served.training["held_out_bits_per_byte"]
    return f", {bits:.2f} bits per byte" if bits else ""
