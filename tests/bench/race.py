"""The race to learn a text by heart, scaled down to a CPU: steps until the loss falls below 0.099.

    python tests/bench/race.py [--only NAME ...] [--seeds 1]

The seed's task (20 batches, the same in every epoch, no dropout) with a model and batches small enough for minutes:
4 layers, 192 wide, 8 x 128 tokens a step, 2,048 ids. Every recipe runs until an epoch's mean training loss is below
0.099 or its steps are used up; figures of recipes that are not run again are kept. The ratio between recipes is what
counts: learning rates do not carry over to 124M, where AdamW wants about a quarter of those here (they go with
1 / width) and Muon about half (1 / sqrt(width)). Prints a table and writes tests/bench/results/race.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from tests.bench.record import RESULTS, save  # noqa: E402
from train import optimizer  # noqa: E402
from train.config import TrainConfig, preset  # noqa: E402
from train.corpus import open_corpus  # noqa: E402

GOAL, BATCHES, ROWS, BLOCK = 0.099, 20, 8, 128
LIMIT = 1500  # steps: who is not there by then is out
SEED = replace(preset("seed"), n_layer=4, n_head=3, n_embd=192, block_size=BLOCK, batch_size=ROWS)


def seed_like(rate: float, **changes) -> TrainConfig:
    """The seed's schedule with another highest rate."""
    return replace(SEED, learning_rate=rate, min_learning_rate=rate / 10, **changes)


def fast(rate: float, steps: int, **changes) -> TrainConfig:
    """A short run that ends at a rate of zero."""
    values = {
        "learning_rate": rate,
        "min_learning_rate": 0.0,
        "max_steps": steps,
        "warmup_steps": 30,
        "schedule": "wsd",
    }
    return replace(SEED, **(values | changes))


RECIPES = {
    "seed": seed_like(6e-4),
    "seed, 4 x the rate (as wide as it is narrow)": seed_like(24e-4),
    "adamw 24e-4, falling to 0 over 800": fast(24e-4, 800, schedule="cosine"),
    "muon 12e-4": fast(12e-4, 800, optimizer="muon"),
    "muon 12e-4, no decay": fast(12e-4, 800, optimizer="muon", weight_decay=0.0),
    "muon 24e-4, no decay": fast(24e-4, 800, optimizer="muon", weight_decay=0.0),
    "muon 48e-4, no decay": fast(48e-4, 800, optimizer="muon", weight_decay=0.0),
    "muon 12e-4, falling to 0 over 400": fast(12e-4, 400, optimizer="muon", weight_decay=0.0, schedule="cosine"),
    "muon 24e-4, falling to 0 over 400": fast(24e-4, 400, optimizer="muon", weight_decay=0.0, schedule="cosine"),
    "muon 36e-4, falling to 0 over 400": fast(36e-4, 400, optimizer="muon", weight_decay=0.0, schedule="cosine"),
    "muon 24e-4, falling to 0 over 300": fast(24e-4, 300, optimizer="muon", weight_decay=0.0, schedule="cosine"),
}


def run(config: TrainConfig, ids: torch.Tensor, seed: int, vocab_size: int) -> dict[str, float | None]:
    """Train until an epoch's mean is below GOAL."""
    sizes = {name: getattr(config, name) for name in ("block_size", "n_layer", "n_head", "n_embd")}
    model = gpt2.GPT(gpt2.GPTConfig(vocab_size=vocab_size, **sizes)).init_weights(torch.Generator().manual_seed(seed))
    optimizers = optimizer.build(model, config)
    idx, targets = (t.view(BATCHES, ROWS, BLOCK) for t in (ids[:-1], ids[1:]))  # (20, B, T)
    started, losses, mean = time.perf_counter(), [], math.inf
    for step in range(min(config.max_steps, LIMIT)):
        rate = optimizer.learning_rate(step, config)
        _, loss = model(idx[step % BATCHES], targets[step % BATCHES])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for part in optimizers:
            optimizer.set_learning_rate(part, rate)
            part.step()
            part.zero_grad()
        losses.append(loss.item())
        if (step + 1) % BATCHES == 0:
            mean = sum(losses[-BATCHES:]) / BATCHES
            if mean < GOAL or not math.isfinite(mean):
                break
    reached = step + 1 if mean < GOAL else None
    return {"steps": reached, "loss": round(mean, 4), "seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(RECIPES))
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    tokenizer = gpt2.Tokenizer.from_directory(ROOT / "checkpoints" / "shakespeare")
    text = open_corpus((), "plays").documents[0].text
    ids = torch.tensor(tokenizer.encode(text)[: BATCHES * ROWS * BLOCK + 1])
    path = RESULTS / "race.json"
    known = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else {}
    results: dict[str, list] = {name: runs for name, runs in known.items() if name not in args.only}
    for name in args.only:
        results[name] = [run(RECIPES[name], ids, seed, tokenizer.vocab_size) for seed in range(args.seeds)]
        reached = ", ".join(str(r["steps"] or f"not ({r['loss']})") for r in results[name])
        print(f"{name:48} {reached:>16} steps   {results[name][0]['seconds']:8.1f} s", flush=True)
        save("race", {"goal": GOAL, "runs": results}, "torch")


if __name__ == "__main__":
    main()
