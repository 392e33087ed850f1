"""How long a visitor waits: from `python app.py` to the first answer, to the first token, and tokens per second; and
what each token costs beside the forward pass.

    python tests/bench/first_answer.py [--runs 5] [--tokens 200]

Starts the app and the command line in turn, offline, with the bundled checkpoint; prints medians and writes
tests/bench/results/first_answer.json. Needs nothing else running on the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from gradio_client import Client

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from gpt2.device import prepare  # noqa: E402
from tests.bench.record import save  # noqa: E402

ENV = {**os.environ, "HF_HUB_OFFLINE": "1"}


def page(tokens: int) -> dict[str, float]:
    """Seconds to the page and to the first answer, then first token and speed of a second, warm request."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.perf_counter()
    app = subprocess.Popen([sys.executable, "app.py"], cwd=ROOT, env={**ENV, "PORT": str(port)}, stdout=subprocess.PIPE)
    try:
        app.stdout.readline()  # it names its address once it serves
        serving = time.perf_counter() - started
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        client.predict("ROMEO:", 1, api_name="/generate")
        answered = time.perf_counter() - started
        asked = time.perf_counter()
        job, first = client.submit("ROMEO:", tokens, 50, 1.0, 1.0, 0.0, 1.0, 1, api_name="/generate"), None
        for text in job:
            if text and first is None:
                first = time.perf_counter() - asked
        whole = time.perf_counter() - asked
    finally:
        app.terminate()
        app.wait(timeout=20)
    return {
        "serves after, s": serving,
        "first answer after, s": answered,
        "page: first token, ms": 1000 * first,
        "page: tok/s": tokens / whole,
        "page: ms a token after the first": 1000 * (whole - first) / (tokens - 1),
    }


@torch.inference_mode()
def forward(tokens: int) -> dict[str, float]:
    """The forward pass alone."""
    model, _ = gpt2.load(gpt2.BUNDLED, "cpu")
    cache = model.new_cache()
    for _ in range(2):  # the first packs the weights
        cache.reset()
        started = time.perf_counter()
        for _ in range(tokens):
            model(torch.tensor([[7]]), cache=cache)
    return {"forward pass, ms a token": 1000 * (time.perf_counter() - started) / tokens}


def terminal(tokens: int) -> dict[str, float]:
    """Seconds to the first token and tokens per second of python -m gpt2."""
    command = [sys.executable, "-m", "gpt2", "ROMEO:", "--max-new-tokens", str(tokens), "--seed", "1"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(len("ROMEO:") + 1)
    first = time.perf_counter() - started
    said = process.communicate()[1].decode()
    return {"terminal: first token after, s": first, "terminal: tok/s": float(re.search(r"([\d.]+) tok/s", said)[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    args = parser.parse_args()
    prepare(torch.device("cpu"))
    runs = [page(args.tokens) | forward(args.tokens) | terminal(args.tokens) for _ in range(args.runs)]
    medians = {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}
    for name, value in medians.items():
        print(f"{name:32} {value:10,.2f}")
    save("first_answer", {"median": medians, "runs": runs, "tokens": args.tokens}, "torch", "gradio")


if __name__ == "__main__":
    main()
