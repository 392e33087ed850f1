"""How well a plain GPT-2 learns tiny Shakespeare, and what of its recipe helps.

    python tests/bench/tinyshakespeare.py final RECIPE --seeds 1 2 3     # trained and scored
    python tests/bench/tinyshakespeare.py sweep [--steps 300] [--rounds 2]   # one change at a time, by halving

The text is the file that TINYSHAKESPEARE names, or comes over the network. Its last tenth is held out, and scored once
when a run is over, in one contiguous pass; the sweep goes by the validation part before it alone. A run is what
`python -m train` makes of the flags. Adds to tests/bench/results/tinyshakespeare.json and prints tables. --at-once N
trains so many at a time, each on one CPU core: on a GPU the times are then none to speak of, on N cores they are
those of one core. Needs nothing else running.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.record import RESULTS, save  # noqa: E402

PATH = RESULTS / "tinyshakespeare.json"
FACTS = ("command", "parameters", "steps", "run_steps", "tokens_seen", "seconds", "figures", "memorisation", "hardware")
# What every run here has.
BASE = {
    "corpus": "tinyshakespeare",
    "validation": 0.03,
    "patience": 0,
    "prompts": "",
    "optimizer": "muon",
    "learning-rate": 2e-3,
    "schedule": "wsd",
    "cooldown": 0.4,
    "dropout": 0.2,
    "weight-decay": 0.1,
    "ema": 0.995,
    "head-start": False,
    "renaming": 0.0,
    "echo": 0.0,
    "store": "float16",
}
# As large as nanoGPT's for this text; for a GPU.
SMALL = {"tokenizer": "bpe:1024", "n-layer": 6, "n-head": 6, "n-embd": 384, "batch-size": 32, "max-steps": 2000}
# What the sweep changes one thing of at a time.
SWEPT = {"tokenizer": "bpe:512", "n-layer": 4, "n-head": 4, "n-embd": 256, "block-size": 512, "batch-size": 4}
SWEPT |= {"learning-rate": 4e-3, "warmup-steps": 100, "cooldown": 0.5, "weight-decay": 0.3, "dropout": 0.1}
SWEPT |= {"head-start": True, "renaming": 0.5, "echo": 0.5, "max-steps": 3000}
# What came of it, and the preset `short`: within an hour on two CPU cores, or on one that has bfloat16.
MINI = SWEPT | {"dropout": 0.0}
RECIPES: dict[str, dict[str, Any]] = {
    "mini": MINI,
    "swept": SWEPT,
    "small": SMALL,
    "mini-gpt2": MINI | {"tokenizer": "gpt2", "dropout": 0.1, "max-steps": 1600},
    "gpt2": SMALL | {"tokenizer": "gpt2", "dropout": 0.4, "max-steps": 1200},
    # Teachers are runs of another recipe, of `final RECIPE --keep` with the same folder.
    "mini-distilled": MINI | {"teachers": ["mini-1", "mini-2", "mini-3"], "distill-share": 0.8},
    "small-distilled": SMALL | {"teachers": [f"small-{i}" for i in (1, 2, 3, 4)], "distill-share": 0.8, "dropout": 0.1},
}
# Of SWEPT, each for about as much work: where a step is more of it, there are fewer.
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "another seed": {"seed": 2},
    "a third seed": {"seed": 3},
    "no head start": {"head-start": False},
    "no echo": {"echo": 0.0},
    "no renaming": {"renaming": 0.0},
    "none of the three": {"head-start": False, "echo": 0.0, "renaming": 0.0},
    "dropout 0": {"dropout": 0.0},
    "dropout 0.2": {"dropout": 0.2},
    "weight decay 0.1": {"weight-decay": 0.1},
    "weight decay 1": {"weight-decay": 1.0},
    "input noise 0.1": {"input-noise": 0.1},
    "tokens taken apart 0.1": {"bpe-dropout": 0.1},
    "adamw": {"optimizer": "adamw", "learning-rate": 2e-3},
    "rate x 2": {"learning-rate": 8e-3},
    "rate / 2": {"learning-rate": 2e-3},
    "cosine": {"schedule": "cosine"},
    "no average": {"ema": 0.0},
    "average 0.99": {"ema": 0.99},
    "bpe:384": {"tokenizer": "bpe:384"},
    "bpe:1024": {"tokenizer": "bpe:1024"},
    "char": {"tokenizer": "char"},
    "windows of 256": {"block-size": 256, "batch-size": 8},
    "windows of 1024": {"block-size": 1024, "batch-size": 2},
    "8 windows a step": {"batch-size": 8, "steps": 0.55},
    "2 windows a step": {"batch-size": 2, "steps": 1.6},
    "6 layers": {"n-layer": 6, "steps": 0.69},
    "320 wide": {"n-embd": 320, "n-head": 5, "steps": 0.69},
    "6 layers, 192 wide": {"n-layer": 6, "n-embd": 192, "n-head": 3, "steps": 1.2},
}

SEEDS = ("as it is", "another seed", "a third seed")


def train(flags: dict[str, Any], seed: int, out: Path) -> dict[str, Any]:
    """The training.json of a run; one that was interrupted goes on."""
    flags = {"eval-every": max(1, flags["max-steps"] // 10), "seed": seed} | BASE | flags
    words = [word for name, value in flags.items() for word in as_words(name, value)]
    words += ["--out", str(out), *(["--resume"] if (out / "state").is_dir() else [])]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.log").open("w", encoding="utf-8") as log:
        command = [sys.executable, "-m", "train", *words]
        subprocess.run(command, cwd=ROOT, check=True, stdout=log, stderr=subprocess.STDOUT)
    return json.loads((out / "best" / "training.json").read_text(encoding="utf-8"))


def as_words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def final(name: str, flags: dict[str, Any], seeds: list[int], folder: Path, at_once: int) -> None:
    record = known()
    runs = record["final"].setdefault(name, {})

    def run(seed: int) -> None:
        teachers = [str(folder / teacher) for teacher in flags.get("teachers", [])]
        if missing := [name for name in teachers if not Path(name, "best").is_dir()]:
            raise FileNotFoundError(f"{missing[0]} is not there: `final` makes it, with the same --keep.")
        own = {key: value for key, value in flags.items() if key != "teachers"} | {"distill-from": teachers}
        said = train(own if teachers else flags, seed, folder / f"{name}-{seed}")
        facts = {key: said[key] for key in (*FACTS, "precision", "versions")}
        runs[str(seed)] = facts | {"at once": at_once, "flags": BASE | flags}

    for seed in [seed for seed, run in runs.items() if run["flags"] != BASE | flags or int(seed) in seeds]:
        del runs[seed]  # of another recipe, or made anew
    all_of(run, seeds, at_once, record)
    if missing := [seed for seed in seeds if str(seed) not in runs]:
        raise SystemExit(f"no end came to the runs of seeds {missing}.")
    print(f"{'seeds':38}", *runs)
    for figure in ("held_out_bits_per_byte", "held_out_bits_per_byte_half_overlap", "validation_bits_per_byte"):
        found = [run["figures"][figure] for run in runs.values()]
        print(f"{figure:38}", *found, f"mean {statistics.mean(found):.4f}")
    print(f"{'minutes':38}", *(round(run["seconds"] / 60, 1) for run in runs.values()))


def sweep(steps: int, rounds: int, folder: Path, at_once: int) -> None:
    """All changes for so many steps; the better half, and the recipe, for twice as many; and so on."""
    record, names = known(), list(CHANGES)
    for _ in range(rounds):
        row = record["sweep"].setdefault(f"{steps} steps", {})

        def run(name: str, steps: int = steps, row: dict = row) -> None:
            out = folder / f"{steps}-{list(CHANGES).index(name)}"
            said = train(changed(name, steps), 1, out)
            row[name] = {"validation": best(out), "flags": changed(name, steps)}
            row[name] |= {key: said[key] for key in ("command", "seconds", "hardware")}
            print(f"{steps:5} {name:32} {row[name]['validation']:.4f} {said['seconds']:8.1f} s", flush=True)

        for name in [name for name, run in row.items() if run["flags"] != changed(name, steps)]:
            del row[name]  # of another recipe
        all_of(run, [name for name in names if name not in row], at_once, record)  # an interrupted sweep goes on
        ranked = sorted((name for name in names if name in row), key=lambda name: row[name]["validation"])
        better = [*SEEDS, *ranked[: len(ranked) // 2]]  # these first
        names, steps = list(dict.fromkeys(better)), 2 * steps
    print(*table(record["sweep"]), sep="\n")


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Every change beside the mean of the three seeds of the recipe as it is; best first, the longest runs before."""
    columns = sorted(rows, key=lambda title: -int(title.split()[0]))
    tried = [name for name in CHANGES if any(name in row for row in rows.values())]
    tried.sort(key=lambda name: [rows[c][name]["validation"] if name in rows[c] else 99 for c in columns])
    lines = [f"| of the recipe | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    own = {title: statistics.mean(rows[title][seed]["validation"] for seed in SEEDS) for title in columns}
    for name in tried:
        cells = []
        for title in columns:
            found = rows[title].get(name, {}).get("validation")
            cells.append("" if found is None else f"{found:.3f} ({found - own[title]:+.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def changed(name: str, steps: int) -> dict[str, Any]:
    """The recipe with a change, for about the work of so many of its steps."""
    flags = BASE | SWEPT | CHANGES[name]
    whole = int(steps * flags.pop("steps", 1))
    return flags | {"max-steps": whole, "eval-every": whole}


def all_of(run: Callable[[Any], None], work: Iterable[Any], at_once: int, record: dict[str, Any]) -> None:
    """Run all the work, and keep the record after each."""
    if at_once > 1:
        os.environ["OMP_NUM_THREADS"] = "1"  # of each
    with ThreadPoolExecutor(at_once) as pool:
        for done in as_completed([pool.submit(run, one) for one in work]):
            if error := done.exception():  # one that diverged, say; the others go on
                print(error, flush=True)
            save("tinyshakespeare", record)


def best(run: Path) -> float:
    """The lowest validation figure of a run."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return min(value for line in lines for name, value in line.items() if name.startswith("validation_bits"))


def known() -> dict[str, Any]:
    found = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    return {"final": {}, "sweep": {}} | found | {"base": BASE, "recipes": RECIPES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["final", "sweep"])
    parser.add_argument("recipe", nargs="?", choices=list(RECIPES), default="mini", help="of `final`")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of `final`")
    parser.add_argument("--steps", type=int, default=300, help="of the sweep's first round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="the runs themselves")
    args = parser.parse_args()
    if args.what == "sweep" and (args.recipe != "mini" or args.seeds != [1]):
        parser.error("the sweep has a recipe of its own, with seed 1 and two others.")
    with tempfile.TemporaryDirectory() as name:
        folder = (args.keep or Path(name)).resolve()
        if args.what == "final":
            final(args.recipe, RECIPES[args.recipe], args.seeds, folder, args.at_once)
        else:
            sweep(args.steps, args.rounds, folder, args.at_once)


if __name__ == "__main__":
    main()
