"""The room to write in: prompt, settings, buttons, the sheet, and how a text is passed on.

Knows the widgets and what each press of a button means. Knows nothing of how a request is carried out (writing.py) or
what a link holds (share.py).
"""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gradio as gr

from page import share
from page.served import Served, examples
from page.style import script
from page.writing import PRESETS, SAMPLES, SETTINGS, Progress, Setting, Source, checked, number, refusal, report, write

WAITING = "Waiting for the model."
NOTHING = "Nothing has been written yet."
REMEMBERED = 20  # requests that Undo can take back
LONGEST = 200_000  # characters of a text that goes on


@dataclass(frozen=True)
class Desk:
    """The widgets that other rooms read or set."""

    prompt: gr.Textbox
    settings: list[gr.Component]  # one per SETTINGS, then SAMPLES
    pages: gr.State  # tuple[Progress, ...], the last of them on the sheet
    status: gr.HTML


def is_waiting(status: Any) -> bool:
    """Whether a request has not begun yet, by what the status line says."""
    return isinstance(status, str) and (status == WAITING or status.startswith("Others"))


def shown(pages: tuple[Progress, ...]) -> dict[str, Any]:
    """The sheet's value, see web/sheet.js."""
    if not pages:
        return {"sheets": []}
    now = pages[-1]
    several = len(now.samples) > 1
    return {
        "sheets": [
            {
                "title": f"Sample {i}, seed {sample.seed}" if several else "",
                "parts": [["prompt", now.prompt], ["text", sample.text]],
            }
            for i, sample in enumerate(now.samples, start=1)
        ]
    }


def widget(setting: Setting) -> gr.Slider | gr.Number:
    s = setting
    if s.name == "seed":
        return gr.Number(s.default, label=s.label, info=s.info, elem_id=s.name)
    return gr.Slider(
        s.low, s.high, s.default, step=s.step, label=s.label, info=s.info, elem_id=s.name, buttons=["reset"]
    )


def sheet(elem_id: str, label: str, empty: str, follow: bool = False) -> gr.HTML:
    """An empty sheet; its value is that of shown(). The template holds our own words only, never a visitor's.

    Args:
        follow: whether it scrolls with a text that grows.
    """
    extra = "data-follow" if follow else ""
    attributes = f'class="sheet" role="region" aria-label="{label}" tabindex="0" data-empty="{empty}" {extra}'
    return gr.HTML(
        html_template=f"<div {attributes}></div>",
        js_on_load=script("sheet.js"),
        elem_id=elem_id,
        apply_default_css=False,
    )


def room(served: Served, source: Source, slots: int, demo: gr.Blocks) -> Desk:
    """Build the room on demo.

    Args:
        source: news() of the served model, wherever it runs.
        slots: how many requests may be written at once.
    """

    def respond(event: gr.EventData, prompt, *rest):
        """Carry out whichever button was pressed, and yield what the page shows."""
        *values, samples, pages = rest
        pages = pages or ()
        pressed = getattr(getattr(event, "target", None), "elem_id", None)
        earlier = [None] * number(SAMPLES, samples)
        if pressed in ("continue", "regenerate", "undo"):
            if not pages:
                yield gr.skip(), NOTHING, pages, gr.skip()
                return
            if pressed == "undo":
                pages = pages[:-1]
                yield shown(pages), report(pages[-1]) if pages else "", pages, pages[-1].prompt if pages else gr.skip()
                return
            prompt, last = pages[-1].prompt, pages[-1].samples
            earlier = [sample if pressed == "continue" else sample.earlier for sample in last]
            if len(prompt) + max(len(sample.text) for sample in last) > LONGEST and pressed == "continue":
                raise refusal(f"This text has more than {LONGEST:,} characters, which is all that is kept of one here.")
            if pressed == "regenerate":
                values = [*values[:-1], -1]
        status, said = gr.skip(), -math.inf
        pages = pages[-REMEMBERED:]
        with closing(write(served, source, prompt, values, earlier)) as progress:
            for now in progress:
                if now.done or now.seconds - said >= 1:  # a screen reader reads every change aloud
                    status, said = report(now), now.seconds
                yield shown((now,)), status, (*pages, now), gr.skip()

    def interrupted(pages, shown_status):
        """The status line after Stop, or after a refusal."""
        if not pages or pages[-1].done:  # nothing was being written yet
            return "" if is_waiting(shown_status) else gr.skip(), gr.skip()
        stopped = pages[-1].ended("cancelled")
        return report(stopped), (*pages[:-1], stopped)

    def passed_on(address, kind, prompt, *rest):
        """The link and the code of the text on the sheet or, before there is one, of what is set."""
        *values, samples, pages = rest
        if pages:
            now = pages[-1]
            prompt, params, samples = now.prompt + now.samples[0].before, now.params, len(now.samples)
        else:
            try:
                prompt, params = checked(prompt, values)
                samples = number(SAMPLES, samples)
            except gr.Error as error:
                return error.message, ""
        kind = kind if kind in share.KINDS else share.KINDS[0]
        return (
            share.link(served, str(address), prompt, params, samples),
            share.code(served, str(address), kind, prompt, params),
        )

    def restore(request: gr.Request):
        """What the page's own address asks for."""
        found = share.restored(served, share.query_of(request))
        if found is None:
            return [gr.skip()] * (len(settings) + 2)
        prompt, values, note = found
        return [prompt, *values, gr.HTML(note, visible=True)]

    with gr.Row():
        with gr.Column(scale=5, min_width=300):
            restored = gr.HTML(html_template='<p role="status">${value}</p>', elem_id="restored", visible=False)
            prompt = gr.Textbox(
                label="Prompt",
                placeholder="Begin a text, and the model goes on from it. Left empty, it begins one itself.",
                lines=4,
                max_lines=12,
                autofocus=True,
                elem_id="prompt",
            )
            with gr.Row(elem_classes="actions"):
                start = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", elem_id="stop")
                others = [gr.Button(name, elem_id=name.lower()) for name in ("Continue", "Regenerate", "Undo")]
            status = gr.HTML(
                "Begin a text above, take an example from below, or just press Generate.",
                # Gradio fills a template in place, so the line stays the one that is announced.
                html_template='<p role="status" aria-live="polite">${value}</p>',
                js_on_load=script("status.js"),
                elem_id="status",
                apply_default_css=False,
            )
            paper = sheet("sheet", "The text", "What the model writes appears here.", follow=True)
            gr.HTML(
                "<kbd>Ctrl</kbd> or <kbd>Cmd</kbd> + <kbd>Enter</kbd> generates, <kbd>Esc</kbd> stops. "
                "Nothing that you write here is stored by this page or sent anywhere else.",
                elem_id="keys",
                apply_default_css=False,
            )
            if prompts := examples(served.directory):
                gr.Examples([[e] for e in prompts], prompt, cache_examples=False, api_visibility="private")
        with gr.Column(scale=2, min_width=300):
            preset = gr.Radio(
                list(PRESETS),
                label="Manner",
                info="Faithful stays near what the model has read, Wild takes risks. Sets the sliders.",
                elem_id="preset",
            )
            settings = [widget(setting) for setting in SETTINGS[:2]]
            with gr.Accordion("More", open=False):
                settings += [widget(setting) for setting in SETTINGS[2:]]
                settings.append(widget(SAMPLES))
                keep = gr.Button("Keep the seed of this text", size="sm", elem_id="keep")
    with gr.Accordion("Share it, use it from code", open=False, elem_id="share") as accordion:
        link = gr.Textbox(
            label="Link",
            info="Opens this page with the same prompt, settings and seed. It starts nothing by itself.",
            buttons=["copy"],
            interactive=False,
            elem_id="link",
        )
        kind = gr.Radio(share.KINDS, value=share.KINDS[0], label="The same from code")
        code = gr.Textbox(label="Code", lines=12, max_lines=24, buttons=["copy"], interactive=False, elem_id="code")
        address = gr.Textbox(visible=False)
    pages = gr.State(())

    quiet = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    triggers = [start.click, prompt.submit, *(button.click for button in others)]
    gr.on(triggers, None, None, status, js=f"() => '{WAITING}'")
    writing = gr.on(
        triggers,
        respond,
        [prompt, *settings, pages],
        [paper, status, pages, prompt],
        api_name="respond",
        preprocess=False,  # checked() does it, with one sentence for whatever is wrong
        show_progress="minimal",
        show_progress_on=status,
        concurrency_id="model",
        concurrency_limit=slots,
        api_visibility="private",
    )
    stop.click(None, None, None, cancels=writing)
    # Gradio calls a cancelled event a failed one. Not a second handler of the click: that would not wait for the
    # cancelling, and a last update of the text could come after it.
    ended = writing.failure(interrupted, [pages, status], [status, pages], **quiet)

    names = [setting.name for setting in SETTINGS]
    dials = [settings[names.index(name)] for name in PRESETS["Balanced"]]
    values_of = json.dumps({name: list(values.values()) for name, values in PRESETS.items()})
    preset.input(None, preset, dials, js=f"(name) => ({values_of})[name]")
    for dial in dials:  # no longer that preset
        dial.input(None, None, preset, js="() => null")
    seed = settings[names.index("seed")]
    keep.click(lambda pages: pages[-1].params.seed if pages else gr.skip(), pages, seed, **quiet)

    inputs = [address, kind, prompt, *settings, pages]
    here = "(_, ...rest) => [location.origin + location.pathname, ...rest]"
    gr.on([accordion.expand, kind.input], passed_on, inputs, [link, code], js=here, **quiet)
    for event in (writing, ended):
        event.success(passed_on, inputs, [link, code], js=here, **quiet)
    demo.load(restore, None, [prompt, *settings, restored], **quiet)
    return Desk(prompt, settings, pages, status)
