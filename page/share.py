"""A text passed on: as a link that restores its request, and as code that makes the same request.

A link holds the request and the name of the checkpoint, never a text that was written; nothing of it is kept by the
server. Knows nothing of widgets.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import gradio as gr

import gpt2
from page.served import Served
from page.writing import SAMPLES, SETTINGS, number, words

MAX_LINK = 6000  # characters; servers and messengers cut longer addresses
KINDS = ["Python, transformers", "Python, this page", "curl, this page"]


def settings_of(params: gpt2.SamplingParams) -> dict[str, int | float]:
    return {setting.name: getattr(params, setting.name) for setting in SETTINGS}


def identity(served: Served) -> dict[str, str]:
    """What must be the same for the same request to write the same text."""
    return {"model": served.name, "sha": served.sha or "", "dtype": served.dtype}


def link(served: Served, address: str, prompt: str, params: gpt2.SamplingParams, samples: int = 1) -> str:
    """The address that restores a request; a sentence where it would be too long."""
    request = {"prompt": prompt, **settings_of(params), "samples": samples, **identity(served)}
    found = f"{address}?{urlencode(request)}"
    return found if len(found) <= MAX_LINK else "This prompt is too long for a link."


def restored(served: Served, query: Mapping[str, str]) -> tuple[str, list[int | float], str] | None:
    """The prompt, one value per SETTINGS and SAMPLES, and what the visitor should know; None where query has no
    request. Whoever made the link may have written anything into it."""
    if "prompt" not in query and not any(setting.name in query for setting in SETTINGS):
        return None
    notes, values = [], []
    try:
        prompt = words(query.get("prompt"))
    except gr.Error as error:
        prompt, notes = "", [f"{error.message} It was left out."]
    for setting in (*SETTINGS, SAMPLES):
        try:
            values.append(number(setting, json.loads(query[setting.name]) if setting.name in query else None))
        except (gr.Error, ValueError, RecursionError):
            values.append(setting.default)
            notes.append(f"{setting.label} is not what this page accepts; it has its usual value.")
    here = identity(served)
    if any(query.get(key, "") != here[key] for key in ("model", "sha")):
        notes.append("It was made with another checkpoint than the one loaded here: the text will be another.")
    elif query.get("dtype", "") != here["dtype"]:
        notes.append("It was made on a machine that computes in another number format: the text may be another.")
    notes.insert(0, "This link has set the prompt and the settings; Generate writes the text.")
    return prompt, values, " ".join(notes)


def code(served: Served, address: str, kind: str, prompt: str, params: gpt2.SamplingParams) -> str:
    """The same request in one of KINDS."""
    values = settings_of(params)
    if kind == "curl, this page":
        body = shlex.quote(json.dumps({"prompt": prompt, **values}))
        call = f"{address}gradio_api/call/v2/generate"
        return (
            f"id=$(curl -s -H 'Content-Type: application/json' {shlex.quote(call)} \\\n"
            f"    -d {body} | cut -d '\"' -f 4)\n"
            f'curl -sN {shlex.quote(f"{address}gradio_api/call/generate/")}"$id"\n'
        )
    if kind == "Python, this page":
        arguments = "".join(f"    {name}={value!r},\n" for name, value in values.items())
        return (
            "from gradio_client import Client\n\n"
            f"client = Client({address!r})\n"
            f"job = client.submit(\n    {prompt!r},\n{arguments}    api_name='/generate',\n)\n"
            "for text in job:\n    print(text)\n"
        )
    run = f"checkpoints/{served.name}"  # where the trainer puts one; a visitor is not told this machine's folders
    part = served.directory.name
    local = f"{run}/{part}" if part in ("best", "last") else run
    where, revision = (served.name.split("@")[0], f", revision={served.sha!r}") if served.sha else (local, "")
    seed = values.pop("seed")
    values.pop("max_new_tokens")
    if params.greedy:
        values = {"repetition_penalty": values["repetition_penalty"]}
    # The page reads on when the model's window is full; transformers fails there.
    window, given = served.model.config.block_size, len(served.tokenizer.encode(prompt)) or 1
    kept = min(given, max(window - params.max_new_tokens, window // 2))
    how = {"max_new_tokens": min(params.max_new_tokens, window - kept), "do_sample": not params.greedy, **values}
    arguments = "".join(f"    {name}={value!r},\n" for name, value in how.items())
    cut = f"[:, -{kept}:]" if kept < given else ""
    return (
        "import torch\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({where!r}{revision})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({where!r}{revision})\n"
        f"ids = tokenizer({prompt or '<|endoftext|>'!r}, return_tensors='pt').input_ids{cut}\n"
        f"torch.manual_seed({seed})  # repeatable, but transformers draws other numbers than this page\n"
        f"outputs = model.generate(\n    ids,  # with the new text, at most the model's window of {window:,} tokens\n"
        f"{arguments})\nprint(tokenizer.decode(outputs[0], skip_special_tokens=True))\n"
    )


def query_of(request: Any) -> dict[str, str]:
    """The query of the page's own address, as Gradio hands it over."""
    return {str(name): str(value) for name, value in dict(getattr(request, "query_params", None) or {}).items()}
