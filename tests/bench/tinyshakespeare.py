"""How well a plain GPT-2 learns tiny Shakespeare on a CPU within an hour, and what of its recipe helps.

    python tests/bench/tinyshakespeare.py final --seeds 1 [2 3]     # the recipe, trained and scored
    python tests/bench/tinyshakespeare.py sweep [--steps 200]       # one change at a time, by successive halving

The text is the file that TINYSHAKESPEARE names, or comes over the network. Its last tenth is held out, and scored once
when a run is over, in one contiguous pass; the sweep goes by the validation part before it alone. A run is what
`python -m train` makes of the flags. Adds to tests/bench/results/tinyshakespeare.json and prints tables. A final run
needs nothing else running.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.record import RESULTS, here, save  # noqa: E402

PATH = RESULTS / "tinyshakespeare.json"
# What every run here has; the model is that of the preset `mini`.
BASE = {"corpus": "tinyshakespeare", "validation": 0.03, "eval-every": 400, "patience": 0}
RECIPE = {
    "optimizer": "muon",
    "learning-rate": 2e-3,
    "schedule": "wsd",
    "cooldown": 0.4,
    "dropout": 0.2,
    "weight-decay": 0.1,
    "ema": 0.995,
}
FINAL_STEPS = 2600
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "adamw": {"optimizer": "adamw"},
    "cosine": {"schedule": "cosine"},
    "rate x 2": {"learning-rate": 4e-3},
    "rate / 2": {"learning-rate": 1e-3},
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.3": {"dropout": 0.3},
    "weight decay 0.5": {"weight-decay": 0.5},
    "input noise 0.1": {"input-noise": 0.1},
    "no average": {"ema": 0.0},
    "bpe:1024": {"tokenizer": "bpe:1024"},
    "bpe:4096": {"tokenizer": "bpe:4096"},
    "char": {"tokenizer": "char"},
    "wider and flatter": {"n-layer": 4, "n-embd": 384, "n-head": 6},
    "narrower and deeper": {"n-layer": 8, "n-embd": 256, "n-head": 4},
    "24 sequences a step": {"batch-size": 24},
}


def train(flags: dict[str, Any], steps: int, seed: int, out: Path) -> dict[str, Any]:
    """The training.json of a run."""
    words = [word for name, value in (BASE | RECIPE | flags).items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "train", *words, "--max-steps", str(steps), "--seed", str(seed), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    return json.loads((out / "best" / "training.json").read_text(encoding="utf-8"))


def final(seeds: list[int], folder: Path) -> None:
    record = known()
    for seed in seeds:
        said = train({}, FINAL_STEPS, seed, folder / f"seed-{seed}")
        keys = ("command", "parameters", "steps", "run_steps", "tokens_seen", "seconds", "figures", "hardware")
        record["final"][str(seed)] = {key: said[key] for key in (*keys, "precision", "versions")}
        save("tinyshakespeare", record)
    runs = record["final"].values()
    for name in ("held_out_bits_per_byte", "held_out_bits_per_byte_half_overlap", "validation_bits_per_byte"):
        figures = [run["figures"][name] for run in runs]
        print(f"{name:38}", *figures, f"mean {statistics.mean(figures):.4f}")
    print(f"{'minutes':38}", *(round(run["seconds"] / 60, 1) for run in runs))


def sweep(steps: int, seed: int, folder: Path) -> None:
    """All changes for so many steps; the better half, and the recipe itself, for twice as many; and so on to four."""
    record, names = known(), list(CHANGES)
    while len(names) > 2:
        row = record["sweep"].setdefault(f"{steps} steps, seed {seed}", {})
        for number, name in enumerate(names):
            if name not in row:  # an interrupted sweep goes on
                said = train(CHANGES[name], steps, seed, folder / f"{steps}-{number}")
                row[name] = {"validation": best(folder / f"{steps}-{number}"), "seconds": said["seconds"]} | here()
                save("tinyshakespeare", record)
            print(f"{steps:5} {name:24} {row[name]['validation']:.4f}", flush=True)
        ranked = sorted(names, key=lambda name: row[name]["validation"])[: len(names) // 2]
        names, steps = sorted({"as it is", *ranked}, key=names.index), 2 * steps


def best(run: Path) -> float:
    """The lowest validation figure of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return min(value for line in lines for name, value in line.items() if name.startswith("validation_bits"))


def known() -> dict[str, Any]:
    found = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    return {"recipe": BASE | RECIPE, "final": found.get("final", {}), "sweep": found.get("sweep", {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["final", "sweep"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--keep", type=Path, help="the runs themselves")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name)
        if args.what == "final":
            final(args.seeds, folder)
        else:
            sweep(args.steps, args.seeds[0], folder)


if __name__ == "__main__":
    main()
