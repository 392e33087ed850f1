"""The room that tells how the model became what it is: loss curves, samples by step, provenance, and what of a text
stands in what it has read.

Knows how to show what record.py reads. Knows nothing of how training works.
"""

from __future__ import annotations

import html
import math
import sys
from pathlib import Path
from typing import Any

import gradio as gr

import gpt2
from gpt2.files import read_json
from gpt2.overlap import WORDS
from page.desk import Desk, sheet
from page.record import fraction_at, number_at, points, read_lines, samples, text_at, thin
from page.served import Served, short
from page.writing import words

MAX_POINTS = 600  # of a line; a screen has not many more columns
VALIDATION = {"validation": "validation_bits_per_byte", "averaged": "validation_bits_per_byte_ema"}


def chart(lines: dict[str, list[tuple[float, float]]], unit: str, best: tuple[float, float] | None = None) -> str:
    """Curves over steps as HTML: lines in an SVG that stretches, words beside it that do not. Each line has its own
    dashes, so that nobody has to tell colours apart."""
    lines = {name: thin(line, MAX_POINTS) for name, line in lines.items()}
    every = [point for line in lines.values() for point in line]
    last = max(x for x, _ in every) or 1
    low, high = min(y for _, y in every), max(y for _, y in every)
    margin = (high - low) * 0.06 or 0.1
    low, high = low - margin, high + margin

    def at(point: tuple[float, float]) -> tuple[float, float]:
        return 100 * point[0] / last, 100 * (high - point[1]) / (high - low)

    drawn, legend, said = [], [], []
    for name, line in lines.items():
        if line:
            path = " ".join(f"{x:.2f},{y:.2f}" for x, y in map(at, line))
            drawn.append(f'<polyline class="{name}" points="{path}"/>')
            legend.append(
                f'<svg class="key" viewBox="0 0 24 8"><line class="{name}" x1="0" x2="24" y1="4" y2="4"/></svg>{name}'
            )
            said.append(
                f"{name} from {line[0][1]:.2f} at step {line[0][0]:,} to {line[-1][1]:.2f} at step {line[-1][0]:,}"
            )
    ticks = "".join(
        f'<span class="y" style="top:{100 - 25 * i}%">{low + (high - low) * i / 4:.2f}</span>'
        f'<span class="x" style="left:{25 * i}%">{last * i / 4:,.0f}</span>'
        for i in range(5)
    )
    grid = "".join(f'<line class="grid" x1="0" x2="100" y1="{25 * i}" y2="{25 * i}"/>' for i in range(5))
    if best:
        x, y = at(best)
        ticks += f'<span class="best" style="left:{x:.2f}%;top:{y:.2f}%" aria-hidden="true"></span>'
        legend.append(f'<span class="best key"></span>best: {best[1]:.3f} at step {best[0]:,}')
        said.append(f"the best validation is {best[1]:.3f} at step {best[0]:,}")
    return (
        f'<figure><div class="chart" role="img" aria-label="{unit} by step: {"; ".join(said)}">'
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{grid}{"".join(drawn)}</svg>{ticks}</div>'
        f"<figcaption><b>{unit}</b> by step. {' '.join(legend)}</figcaption></figure>"
    )


def curves(directory: Path, record: Any) -> str | None:
    """The loss curves as HTML, in bits per byte where it is known how many bytes a token has; None where there are
    none."""
    entries = read_lines(directory / "metrics.jsonl")
    tokens, size = number_at(record, "parts", "train", "tokens"), number_at(record, "parts", "train", "bytes")
    scale = tokens / size / math.log(2) if tokens and size else None
    training = {"training": points(entries, "loss", scale or 1.0)}
    validation = {name: points(entries, key) for name, key in VALIDATION.items()}
    best = min(sum(validation.values(), []), key=lambda point: point[1], default=None)
    if scale and (training["training"] or best):
        return chart(training | validation, "Bits per byte", best)
    charts = [chart(validation, "Bits per byte", best)] if best else []
    charts += [chart(training, "Nats per token")] if training["training"] else []
    return "".join(charts) or None


def by_heart(record: Any) -> str | None:
    """The trainer's memorisation report in a sentence; None where there is none."""
    at = ("memorisation",)
    written, held_out = (fraction_at(record, *at, "copied", part) for part in ("generated", "held_out"))
    passages, recited = (fraction_at(record, *at, "extraction", "train", key) for key in ("prompts", "recited"))
    said = []
    if written is not None and held_out is not None:
        said.append(
            f"{written:.1%} of what it writes is copied in runs of {WORDS} words or more (of the held-out text it is "
            f"{held_out:.1%})"
        )
    if passages and recited is not None:
        said.append(
            f"it recites {recited:,.0f} of {passages:,.0f} passages of its training text when given their beginning"
        )
    return "; ".join(said) or None


def provenance_card(served: Served, record: Any) -> str:
    """Where the model comes from, as HTML; what training.json does not say is left out."""
    config, steps, seen = served.model.config, number_at(record, "steps"), number_at(record, "tokens_seen")
    of, seconds = number_at(record, "parts", "train", "tokens"), number_at(record, "seconds")
    held_out, valid = (number_at(record, "figures", f"{part}_bits_per_byte") for part in ("held_out", "validation"))
    versions = record.get("versions") if isinstance(record, dict) else None
    rows = {
        "Parameters": f"{config.n_parameters:,}: {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, "
        f"a window of {config.block_size:,} tokens, a vocabulary of {config.vocab_size:,}",
        "Text": text_at(record, "corpus", "origin") or text_at(record, "corpus", "name"),
        "Licence": text_at(record, "corpus", "license"),
        "Tokens seen": seen and f"{seen:,.0f}" + (f", {seen / of:.1f} times through its {of:,.0f}" if of else ""),
        "Held-out text": held_out and f"{held_out:.2f} bits per byte, on text that was never trained on",
        "Validation": valid and f"{valid:.2f} bits per byte",
        "Learned by heart": by_heart(record),
        "Time": seconds and f"{seconds / 60:,.0f} minutes" + (f", {steps:,.0f} steps" if steps else ""),
        "Hardware": text_at(record, "hardware"),
        "Precision": text_at(record, "precision"),
        "Command": text_at(record, "command"),
        "Versions": ", ".join(f"{short(str(k))} {short(str(v))}" for k, v in list(versions.items())[:12])
        if isinstance(versions, dict)
        else None,
        "Commit": served.sha or "a directory on this machine, not from the Hub",
    }
    table = "".join(
        f'<tr><th scope="row">{name}</th><td>{html.escape(str(said))}</td></tr>' for name, said in rows.items() if said
    )
    files = record.get("data") if isinstance(record, dict) else None
    listed = [
        f"{text_at(file, 'name') or 'a file'}: {text_at(file, 'sha256') or 'no hash'}"
        for file in (files if isinstance(files, list) else [])[:200]
    ]
    more = "".join(f"<li>{html.escape(line)}</li>" for line in listed)
    hashes = f"<details><summary>The {len(listed)} texts and their SHA-256</summary><ul>{more}</ul></details>"
    unknown = "<p>This checkpoint has no training.json, so what it was trained on is not known.</p>"
    return f"{'' if record else unknown}<table>{table}</table>{hashes if listed else ''}"


def known_runs(directory: Path) -> gpt2.Overlap | None:
    """The checkpoint's overlap.safetensors; None where there is none that can be read."""
    try:
        return gpt2.Overlap.from_directory(directory)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return None


def in_parts(text: str, spans: list[tuple[int, int]]) -> list[list[str]]:
    """A text as parts of a sheet, those in spans of the kind "copied"."""
    parts, at = [], 0
    for start, end in spans:
        parts += [["text", text[at:start]], ["copied", text[start:end]]]
        at = end
    return [*parts, ["text", text[at:]]]


def room(served: Served, desk: Desk, overlap: gpt2.Overlap | None, tab: gr.Tab) -> None:
    """Build the room."""
    try:
        record = read_json(served.directory / "training.json")
    except (ValueError, OSError):
        record = None
    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}

    gr.HTML("<h2>The loss, step by step</h2>", elem_classes="plain")
    gr.HTML(
        curves(served.directory, record)
        or "<p>This checkpoint has no metrics.jsonl, so how its loss fell is not known. Runs of this project keep "
        "one.</p>",
        elem_classes="plain",
        elem_id="curves",
    )
    gr.HTML("<h2>The same prompt, as the model learned</h2>", elem_classes="plain")
    by_prompt = samples(served.directory)
    if by_prompt:
        names = [(short(prompt, 60) or "(an empty prompt)", i) for i, prompt in enumerate(by_prompt)]
        prompts, texts = list(by_prompt), list(by_prompt.values())
        which = gr.Dropdown(names, value=len(names) - 1, label="Prompt", elem_id="sample_prompt")
        step = gr.Radio(list(texts[-1]), value=next(iter(texts[-1])), label="Step", elem_id="sample_step")
        paper = sheet("samples_by_step", "What the model wrote", "No sample.")

        def show(i, at):
            i = i if type(i) is int and 0 <= i < len(texts) else 0
            at = at if type(at) is int and at in texts[i] else next(iter(texts[i]))
            value = {
                "sheets": [{"title": f"After {at:,} steps", "parts": [["prompt", prompts[i]], ["text", texts[i][at]]]}]
            }
            return gr.Radio(list(texts[i]), value=at), value

        gr.on([which.input, tab.select], show, [which, step], [step, paper], **quiet)
        # The last choice counts, and is not taken back by the answer to one before.
        step.input(lambda i, at: show(i, at)[1], [which, step], paper, trigger_mode="always_last", **quiet)
    else:
        gr.HTML("<p>This checkpoint has no samples.jsonl.</p>", elem_classes="plain")

    gr.HTML("<h2>Memorised or invented?</h2>", elem_classes="plain")
    if overlap:
        right = 2**48 // max(1, len(overlap.runs))
        own = gr.Textbox(
            label="A text to look for",
            info=f"What stands in the training text in runs of {WORDS} words or more is underlined. That text is not "
            f"kept here, only hashes of it: one run in {right:,} is underlined by mistake.",
            placeholder="Left empty, it is what was just written.",
            lines=2,
            max_lines=6,
            elem_id="memory_text",
        )
        look = gr.Button("Look for it", variant="primary", elem_id="memory_look")
        share = gr.HTML(html_template='<p role="status">${value}</p>', elem_id="memory_share", elem_classes="plain")
        found = sheet("memory", "What stands in the training text", "Write something first.")

        def look_for(text, pages):
            text = words(text, "The text")
            texts = {"Your text": text} if text else {}
            if not text and pages:
                titles = ["What was just written", *(f"Sample {i}" for i in range(2, len(pages[-1].samples) + 1))]
                texts = dict(zip(titles, (sample.text for sample in pages[-1].samples), strict=True))
            every = "\n".join(texts.values())
            spans = {title: overlap.spans(text) for title, text in texts.items()}
            longest = max((len(texts[t][a:b].split()) for t in texts for a, b in spans[t]), default=0)
            said = (
                f"{overlap.share(every):.0%} of its words stand in the training text in runs of {WORDS} or more; the "
                f"longest has {longest}."
                if longest
                else f"No {WORDS} words of it stand in a row in the training text: it is invented."
            )
            sheets = [{"title": title, "parts": in_parts(texts[title], spans[title])} for title in texts]
            return {"sheets": sheets}, said if every else ""

        gr.on([look.click, own.submit, tab.select], look_for, [own, desk.pages], [found, share], **quiet)
    else:
        gr.HTML(
            "<p>This checkpoint has no overlap.safetensors, so its texts can not be compared with what it was trained "
            "on. The trainer writes one for text under 20 MB, unless asked not to.</p>",
            elem_classes="plain",
        )
    gr.HTML("<h2>Where it comes from</h2>", elem_classes="plain")
    gr.HTML(provenance_card(served, record), elem_classes="plain", elem_id="card", apply_default_css=False)
