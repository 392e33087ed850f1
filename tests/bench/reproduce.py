"""Does a run reproduce the one that this project began with? Its losses, epoch by epoch, beside that run's.

    python -m train --preset seed
    python tests/bench/reproduce.py checkpoints/tinyshakespeare [--no-holdout] [--json PATH]

Exits with 0 if every band that the run has reached holds its mean, 1 if not, 2 for a run of another task. A run
that is not over is judged as far as it goes. Also scores last/ on the end of the text, which no batch ever reaches.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from train.fetch import cache_dir  # noqa: E402

EPOCH = 20  # steps: 20 batches of 16 x 1,024 tokens from the start of the text, then the same again
# First step of an epoch -> its mean loss and how far ours may lie from it. Before step 1,000 runs differ by their
# random weights alone; while the text is being learned by heart, by when that happens.
BANDS = {
    40: (5.92, 0.08),
    80: (5.40, 0.08),
    480: (4.04, 0.08),
    980: (2.37, 0.20),
    1480: (0.69, 0.12),
    1880: (0.116, 0.03),
    1980: (0.071, 0.02),
    2980: (0.0074, 0.003),
    4980: (0.0012, 0.0004),
}
SEED_EPOCHS = Path(__file__).parent / "results" / "seed_epochs.json"
TASK = {"order": "sequential", "tokenizer": "gpt2", "batch_size": 16, "block_size": 1024, "init_from": None}
TASK |= {"n_layer": 12, "n_head": 12, "n_embd": 768}
TEXT_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
TAIL = 10_345  # tokens at the end of the text that the batches do not reach


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl; what follows its last newline is still being written."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def epoch_means(entries: Iterable[dict[str, Any]]) -> list[float]:
    """Mean loss of every whole epoch. A line's loss is the mean over the steps since the line before it; its step
    counts from 1, so epoch 40-59 ends with the line of step 60.

    Raises:
        ValueError: where a line lies in two epochs.
    """
    sums, done = [], 0
    for entry in (entry for entry in entries if "loss" in entry):
        first, done = done, entry["step"]
        if first // EPOCH != (done - 1) // EPOCH:
            raise ValueError(
                f"the line of step {done} of metrics.jsonl is the mean of {done - first} steps in two epochs: an epoch "
                f"has {EPOCH}, and --log-every must divide that."
            )
        if first % EPOCH == 0:
            sums.append(0.0)
        sums[-1] += entry["loss"] * (done - first)
    return [total / EPOCH for total in sums[: done // EPOCH]]


def judge(ours: list[float], seed: list[float]) -> list[dict[str, Any]]:
    """One row an epoch: where it begins, both means, and the band and verdict where it has them."""
    rows = []
    for number, (mean, theirs) in enumerate(zip(ours, seed, strict=False)):  # a longer run than the seed's is cut
        row = {"step": number * EPOCH, "seed": theirs, "ours": round(mean, 6)}
        if band := BANDS.get(row["step"]):
            row |= {"band": band, "inside": abs(mean - band[0]) <= band[1]}
        rows.append(row)
    return rows


def show(row: dict[str, Any]) -> str:
    band, verdict = "", "-"
    if "band" in row:
        band, verdict = "{} +- {}".format(*row["band"]), "inside" if row["inside"] else "OUTSIDE"
    steps, difference = f"{row['step']}-{row['step'] + EPOCH - 1}", row["ours"] - row["seed"]
    return f"{steps:11} {row['seed']:9.5f} {row['ours']:9.5f} {difference:+9.5f}  {band:17} {verdict}"


def check_task(run_dir: Path) -> None:
    """Refuse a run that learned something else; without a checkpoint yet, nothing is known.

    Raises:
        ValueError: naming what differs.
    """
    for path in (run_dir / name / "training.json" for name in ("last", "best", ".")):
        if path.exists():
            training = json.loads(path.read_text(encoding="utf-8"))
            found = {name: training["config"].get(name) for name in TASK}
            wrong = [f"{name} {found[name]!r}, not {TASK[name]!r}" for name in TASK if found[name] != TASK[name]]
            if [document["sha256"] for document in training["data"]] != [TEXT_SHA256]:
                wrong.append("another text")
            if wrong:
                raise ValueError(f"{run_dir} is a run of another task: {'; '.join(wrong)}. --preset seed begins one.")


def held_out(run_dir: Path) -> tuple[dict[str, Any] | None, str]:
    """Figures of last/ on the end of the text, and where they come from: training.json, else scored now."""
    path = run_dir / "last" / "training.json"
    if not path.exists():
        return None, "the run has no last/ yet"
    training = json.loads(path.read_text(encoding="utf-8"))
    figures, facts = training["figures"], {"step": training["steps"]}
    if "held_out_bits_per_byte" in figures:
        nats = math.log(figures["held_out_perplexity"])
        return facts | {"bits_per_byte": figures["held_out_bits_per_byte"], "nats_per_token": nats}, "training.json"
    text = Path(os.environ.get("TINYSHAKESPEARE") or cache_dir() / "tinyshakespeare.txt")
    if not text.exists() or hashlib.sha256(text.read_bytes()).hexdigest() != TEXT_SHA256:
        return None, f"{text} is not tiny Shakespeare; TINYSHAKESPEARE names the file"
    return facts | score(*gpt2.load(run_dir / "last", dtype="float32"), text.read_text(encoding="utf-8")), "scored now"


@torch.no_grad()
def score(model: gpt2.GPT, tokenizer: gpt2.Tokenizer, text: str) -> dict[str, float]:
    """The last TAIL tokens, each once, in windows without overlap; the first follows a newline, as in training.json."""
    device = model.transformer.wte.weight.device
    ids = tokenizer.encode(text)[-TAIL:]
    idx = torch.tensor([tokenizer.encode("\n")[0], *ids[:-1]], device=device).split(model.config.block_size)
    targets = torch.tensor(ids, device=device).split(model.config.block_size)
    nats = sum(model(x[None], y[None])[1].item() * len(y) for x, y in zip(idx, targets, strict=True))
    n_bytes = sum(len(tokenizer.token_bytes(i)) for i in ids)
    return {"bits_per_byte": nats / math.log(2) / n_bytes, "nats_per_token": nats / len(ids)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--no-holdout", action="store_true", help="do not score the end of the text")
    parser.add_argument("--json", type=Path, help="write everything there too")
    args = parser.parse_args(argv)
    seed = json.loads(SEED_EPOCHS.read_text(encoding="utf-8"))["epoch_means"]
    try:
        check_task(args.run_dir)
        rows = judge(epoch_means(read_lines(args.run_dir / "metrics.jsonl")), seed)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{'steps':11} {'seed':>9} {'ours':>9} {'differs':>9}  {'band':17} verdict")
    print(*map(show, rows), sep="\n")
    verdicts = [row["inside"] for row in rows if "inside" in row]
    print(f"{len(verdicts)} of {len(BANDS)} bands reached, {verdicts.count(False)} of them OUTSIDE.")
    figures, source = (None, "not asked for") if args.no_holdout else held_out(args.run_dir)
    if figures:
        print(
            f"Held out, {TAIL:,} tokens: {figures['bits_per_byte']:.4f} bits per byte, {figures['nats_per_token']:.4f} "
            f"nats per token (last/, step {figures['step']}; {source})."
        )
    else:
        print(f"Held out: no figure ({source}).")
    if args.json:
        result = {"run": args.run_dir.resolve().name, "epochs": rows, "held_out": figures}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
