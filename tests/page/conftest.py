"""What the tests of the page share: a run that left everything a run can leave, its page, and a browser."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from gradio_client import Client
from safetensors.torch import save_file

import gpt2
from gpt2 import overlap
from page import served as loading
from tests.page.visit import INJECTIONS, Running, serve

TRAINED_ON = "What light through yonder window breaks? It is the east, and Juliet is the sun."


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, make_model, tiny_tokenizer) -> Path:
    """The best/ of a run, with a last/ beside it: models that never end their text by themselves, and deep enough to
    take their time over 2,000 tokens."""
    vocab_size = tiny_tokenizer.vocab_size
    config = gpt2.GPTConfig(block_size=64, vocab_size=vocab_size, n_layer=12, n_head=2, n_embd=32)
    run = tmp_path_factory.mktemp("app") / "endless"
    for seed, name in enumerate(("best", "last")):
        model = make_model(config, seed)
        with torch.no_grad():  # <|endoftext|> looks away from where every state points
            model.transformer.ln_f.bias.fill_(3.0)
            model.transformer.wte.weight[model.config.eos_token_id] = -3.0
        training = {
            "corpus": {"name": "<b>A play</b>", "origin": INJECTIONS},
            "figures": {"held_out_bits_per_byte": 2.5},
            "data": [{"name": INJECTIONS, "sha256": "0123abcd"}],
            "steps": 200,
            "parts": {"train": {"tokens": 100, "bytes": 300}},
        }
        gpt2.save(run / name, model, tiny_tokenizer, **training)
    metrics = [{"step": step, "loss": 6 - step / 100} for step in range(0, 210, 10)]
    metrics += [{"step": step, "validation_bits_per_byte": 4 - step / 100} for step in (0, 100)]
    metrics += [{"step": 200, "validation_bits_per_byte": 3.3}]
    samples = [
        {"step": step, "prompt": prompt, "seed": 1, "text": f"{INJECTIONS} written after {step} steps"}
        for step in (0, 100, 200)
        for prompt in ("", INJECTIONS)
    ]
    for name, entries in {"metrics": metrics, "samples": samples}.items():
        lines = "".join(json.dumps(entry) + "\n" for entry in entries)
        (run / "best" / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    seen = torch.zeros(vocab_size, dtype=torch.bool)
    seen[torch.tensor(tiny_tokenizer.encode(TRAINED_ON))] = True
    save_file(overlap.build([TRAINED_ON], seen), run / "best" / overlap.FILE)
    return run / "best"


@pytest.fixture(scope="session")
def running(checkpoint, tmp_path_factory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("running"), MODEL_ID=str(checkpoint.parent)) as it:
        yield it


@pytest.fixture(scope="session")
def client(running) -> Client:
    return Client(running.url, verbose=False, analytics_enabled=False)


@pytest.fixture
def tiny_served(tiny_checkpoint) -> loading.Served:
    return loading.load(tiny_checkpoint)


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium found; name one in the environment variable CHROMIUM")
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, running):
    """open_page(width) opens the page; afterwards no script error, dialog or request to elsewhere may have been."""
    contexts, problems = [], []

    def open_one(width: int = 1280, query: str = "", scheme: str = "light", url: str = running.url):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on("dialog", lambda dialog: problems.append("dialog") or dialog.dismiss())
        page.on("request", lambda r: is_ours(r.url) or problems.append(f"asked {r.url}"))
        page.goto(url + "/" + query)
        page.get_by_role("button", name="Generate", exact=True).wait_for()
        return page

    def is_ours(url: str) -> bool:
        return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).hostname == "127.0.0.1"

    yield open_one
    for context in contexts:
        for page in context.pages:
            if page.evaluate("window.hacked") is not None:
                problems.append("a text ran as a script")
        context.close()
    assert problems == []
