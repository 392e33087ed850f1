"""A training that is killed, or told to stop, again and again: what is left each time, and what it ends as.

    python tests/bench/kills.py [--kills 100] [--stops 30] [--seed 1]

Kills (SIGKILL) are drawn from the first new step on, over the time that a few steps and their saves take on this
machine, of a run that spends most of its time saving; after each the run is resumed. Stops (SIGTERM) are drawn from the
first step of a short run to its end. Prints the counts, writes tests/bench/results/kills.json. Not for
Windows, which has no such signals.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.record import save  # noqa: E402
from train import state  # noqa: E402

EVERY = 3  # steps between two saves
FLAGS = f"--preset tiny --device cpu --dtype float32 --eval-every {EVERY} --patience 0 --log-every 1 --prompts The"
TEXT = "The quick brown fox jumps over the lazy dog, again and again.\n" * 400


@dataclass
class Runs:
    """Trainings of one small text in an empty folder."""

    folder: Path

    def __post_init__(self):
        (self.folder / "my.txt").write_text(TEXT, encoding="utf-8")

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(self.folder / "cache")}

    def start(self, name: str, steps: int = 100_000) -> subprocess.Popen:
        """Begin the run of that name, or resume it where there is something to resume."""
        begun = state.load_facts(self.folder / name / "state") is not None
        flags = ["--resume"] if begun else ["my.txt", *FLAGS.split(), "--max-steps", str(steps)]
        return subprocess.Popen(
            [sys.executable, "-m", "train", *flags, "--out", name],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def steps(self, name: str) -> list[tuple[int, float]]:
        """Step and loss of every whole line of a journal; while a run writes, the last one may be half there."""
        path = self.folder / name / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        entries = [json.loads(line) for line in text.split("\n")[:-1]]
        return [(entry["step"], entry["loss"]) for entry in entries if "loss" in entry]

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen, seconds: float = 240) -> None:
        """Until the journal has a step; a resumed run has cut off by then what came after its state."""
        deadline, path = time.monotonic() + seconds, self.folder / name / "metrics.jsonl"
        before = path.stat().st_mtime_ns if path.exists() else 0
        while not (path.exists() and path.stat().st_mtime_ns > before and step in dict(self.steps(name))):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{name} did not come to step {step}"
            time.sleep(0.01)

    def go_on(self, name: str) -> tuple[subprocess.Popen, int]:
        """Start it, and wait for its first new step, so that what went before is settled; and its last step before."""
        before = (state.load_facts(self.folder / name / "state") or {"step": 0})["step"]
        process = self.start(name)
        self.wait_for_step(name, before + 1, process)
        return process, before

    def weights_at(self, name: str, step: int, process: subprocess.Popen, seconds: float = 900) -> dict:
        """What a state of the run holds, as soon as there is one of that step."""
        deadline, path = time.monotonic() + seconds, self.folder / name / "state" / f"{step:06}.safetensors"
        while not path.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline, f"{path} did not appear"
            time.sleep(0.005)
        return load_file(path)

    def is_saving(self, name: str) -> bool:
        run_dir = self.folder / name
        return any(path.suffix == ".tmp" for path in [*run_dir.glob(".*"), *run_dir.glob("state/.*")])


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.communicate()


def kill(folder: Path, kills: int, rng: random.Random) -> dict[str, Any]:
    """Kill a run so many times, and compare it with one that nobody disturbed.

    Raises:
        AssertionError: where a run can not go on.
    """
    runs, inside = Runs(folder), 0
    whole = runs.start("whole")
    runs.weights_at("whole", EVERY, whole)
    begun = time.monotonic()
    runs.weights_at("whole", 3 * EVERY, whole)
    window = time.monotonic() - begun
    end(whole)
    for _ in range(kills):
        process, _ = runs.go_on("killed")
        time.sleep(rng.uniform(0.0, window))
        end(process)
        inside += runs.is_saving("killed")
    process, before = runs.go_on("killed")
    last = (before // EVERY + 1) * EVERY
    ours = runs.weights_at("killed", last, process)
    end(process)
    whole = runs.start("whole")
    theirs = runs.weights_at("whole", last, whole)
    runs.wait_for_step("whole", last + 1, whole)
    end(whole)
    killed, undisturbed = ([one for one in runs.steps(name) if one[0] <= last] for name in ("killed", "whole"))
    return {
        "kills": kills,
        "inside a save": inside,
        "resumed": kills,  # or there would have been an error
        "steps": last,
        "journal without gap or double line": [step for step, _ in killed] == list(range(1, last + 1)),
        "journal as undisturbed": killed == undisturbed,
        "weights as undisturbed": ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours),
    }


def stop(folder: Path, stops: int, rng: random.Random) -> dict[str, Any]:
    """Tell runs of 30 steps to stop, each at one moment of its life."""
    runs, codes, seconds, said_so = Runs(folder), [], [], 0
    timed = runs.start("timed", steps=30)
    runs.wait_for_step("timed", 1, timed)
    begun = time.monotonic()
    assert timed.wait(timeout=600) == 0
    life = time.monotonic() - begun
    for number in range(stops):
        process = runs.start(f"stopped-{number}", steps=30)
        runs.wait_for_step(f"stopped-{number}", 1, process)
        time.sleep(rng.uniform(0.0, life))
        sent = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
        seconds.append(time.monotonic() - sent)
        codes.append(process.returncode)
        said_so += "Traceback" not in said
    return {
        "stops": stops,
        "ended with code 0": codes.count(0),
        "other codes": sorted(set(codes) - {0}),
        "without a traceback": said_so,
        "slowest, s": round(max(seconds), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--stops", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng, result = random.Random(args.seed), {}
    for name, trial, times in (("killed", kill, args.kills), ("told to stop", stop, args.stops)):
        with tempfile.TemporaryDirectory() as folder:
            result[name] = trial(Path(folder), times, rng)
        print(name, *(f"    {what:36} {value}" for what, value in result[name].items()), sep="\n", flush=True)
    save("kills", result, "torch")


if __name__ == "__main__":
    main()
