"""Twenty thousand spoiled checkpoints, and what came of each.

    python tests/bench/fuzz.py [--cases 22000] [--seed 1] [--only KIND ...]

Tries every kind of file in tests/hostile.py, prints a table and the first of whatever was neither opened nor refused,
and writes tests/bench/results/fuzz.json.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import hypothesis
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests import hostile  # noqa: E402
from tests.bench.record import save  # noqa: E402

SHOWN = 5  # of what went wrong, for each kind


def attempt(folder: Path, name: str, cases: int, seed: int) -> dict:
    """So many cases of one kind; what is wrong is counted and the next one tried."""
    kind, trial = hostile.KINDS[name], hostile.Trial(folder)
    outcomes, wrong = Counter(), Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(kind.spoiled(trial.good))
    def tried(spoiled):
        try:
            outcomes[trial.run(kind, spoiled)] += 1
        except hostile.Broken as error:
            outcomes["other"] += 1
            wrong[str(error)[:200]] += 1

    started = time.perf_counter()
    tried()
    return {
        "cases": outcomes.total(),
        **{outcome: outcomes[outcome] for outcome in ("opened", "refused", "other")},
        "slowest, ms": round(1000 * trial.slowest),
        "seconds": round(time.perf_counter() - started, 1),
        "wrong": dict(wrong.most_common(SHOWN)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=22_000, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(hostile.KINDS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict] = {}
    columns = ("cases", "opened", "refused", "other", "slowest, ms")
    print(f"{'kind':24}" + "".join(f"{column:>12}" for column in columns))
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = attempt(Path(folder), name, -(-args.cases // len(args.only)), args.seed)
        print(f"{name:24}" + "".join(f"{results[name][column]:12,}" for column in columns), flush=True)
        for error, times in results[name]["wrong"].items():
            print(f"    {times}: {error!r}")
    together = {column: sum(result[column] for result in results.values()) for column in columns[:4]}
    print(f"{'together':24}" + "".join(f"{count:12,}" for count in together.values()))
    if len(results) == len(hostile.KINDS):
        record = {
            "together": together,
            "kinds": results,
            "seed": args.seed,
            "memory of a case, at most, MB": hostile.MEMORY // 2**20,
            "memory of the process, at most, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
        }
        save("fuzz", record, "torch", "safetensors", "tiktoken", "gradio", "hypothesis")
    sys.exit(f"{together['other']:,} cases were neither opened nor refused" if together["other"] else None)


if __name__ == "__main__":
    main()
