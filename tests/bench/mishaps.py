"""What befalls the folder of a training beside kills: what is said each time, and whether the run ends as it would.

    python tests/bench/mishaps.py [--times 10] [--seed 1]

A disk that fills up (the largest size of a file falls, a tenth at a time, below that of a state), a folder that can not
be written to, one that vanishes and is put back, clocks that run back, a second training of the same folder, and a
newest state cut at every tenth of its length. Each befalls a run of its own, which is resumed afterwards and compared
with one that nobody disturbed. Prints the counts, writes tests/bench/results/mishaps.json. Not for Windows.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.kills import FLAGS, Runs, end  # noqa: E402
from tests.bench.record import save  # noqa: E402
from train import state  # noqa: E402

BEFORE, STEPS = 6, 30  # when it happens, and the end of every run
HEED_PERMISSIONS = ["setpriv", "--bounding-set", "-dac_override"]  # where root would write everywhere
# Before the command line's own main(): no file may become larger than so many bytes, or the clock goes an hour back
# each time that somebody looks at it.
FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
BACK = "import time; looks = iter(range(10**9)); now = time.time; time.time = lambda: now() - 3600 * next(looks)"
MAIN = "; import sys; from train.__main__ import main; sys.exit(main())"


class Mishaps(Runs):
    """Trainings that come to step BEFORE, meet with something, and are to come to their end all the same."""

    def run(self, name: str, *more: str, first: str = "", under: Sequence[str] = ()) -> tuple[int, str]:
        """The exit status of a training, and all that it said.

        Args:
            first: Python before its own.
            under: a command that starts it.
        """
        program = ["-c", first + MAIN] if first else ["-m", "train"]
        done = subprocess.run(
            [*under, sys.executable, *program, *more, "--out", name, "--max-steps", str(STEPS)],
            cwd=self.folder, env=self.env, encoding="utf-8", timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        return done.returncode, done.stdout

    def begin(self, name: str) -> subprocess.Popen:
        """A training on its way: past step BEFORE, which is saved."""
        process = self.start(name, STEPS)
        self.wait_for_step(name, BEFORE + 1, process)
        return process

    def half(self, name: str) -> Path:
        """The folder of a training that was killed on its way."""
        shutil.copytree(self.folder / "half", self.folder / name)
        return self.folder / name

    def ends_as_undisturbed(self, name: str) -> bool:
        """Resume it, and compare."""
        code, said = self.run(name, "--resume")
        if code:
            print(name, said[-500:])
            return False
        last = f"state/{STEPS:06}.safetensors"
        ours, theirs = (load_file(self.folder / one / last) for one in (name, "whole"))
        same = ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
        return same and self.steps(name) == self.steps("whole")


def in_a_sentence(code: int, said: str) -> bool:
    """Whether it refused as it should."""
    right = code == 1 and len(re.findall("^error: ", said, re.MULTILINE)) == 1 and "Traceback" not in said
    if not right:
        print(code, said[-800:])
    return right


def disk_full(runs: Mishaps, number: int, times: int, rng: random.Random) -> tuple[bool, bool]:
    name = f"full-{number}"
    largest = max(path.stat().st_size for path in runs.half(name).rglob("*") if path.is_file())
    said = runs.run(name, "--resume", first=FULL.format(size=largest * number // times))
    return in_a_sentence(*said), runs.ends_as_undisturbed(name)


def read_only(runs: Mishaps, number: int, times: int, rng: random.Random) -> tuple[bool, bool]:
    """The run's folder, its states', or the journal."""
    name = f"read-only-{number}"
    run_dir = runs.half(name)
    shut = [run_dir, run_dir / "state", run_dir / "metrics.jsonl"][number % 3]
    mode = shut.stat().st_mode
    shut.chmod(0o555 if shut.is_dir() else 0o444)
    said = runs.run(name, "--resume", under=HEED_PERMISSIONS if os.geteuid() == 0 else [])
    shut.chmod(mode)
    return in_a_sentence(*said), runs.ends_as_undisturbed(name)


def vanished(runs: Mishaps, number: int, times: int, rng: random.Random) -> tuple[bool, bool]:
    """Renamed on its way, and put back after the training's end."""
    name = f"vanished-{number}"
    process = runs.begin(name)
    (runs.folder / name).rename(runs.folder / "elsewhere")
    said = process.communicate(timeout=300)[0]
    shutil.rmtree(runs.folder / name, ignore_errors=True)
    (runs.folder / "elsewhere").rename(runs.folder / name)
    return in_a_sentence(process.returncode, said), runs.ends_as_undisturbed(name)


def clock(runs: Mishaps, number: int, times: int, rng: random.Random) -> tuple[bool, bool]:
    """Files of next year, in an order of age that is drawn, and a clock that goes back while it trains."""
    name = f"clock-{number}"
    for path in runs.half(name).rglob("*"):
        os.utime(path, (4e9, 4e9 + rng.randrange(10**6)))
    code, said = runs.run(name, "--resume", first=BACK)
    return code == 0 and "Traceback" not in said, runs.ends_as_undisturbed(name)


def two(runs: Mishaps, number: int, times: int, rng: random.Random) -> tuple[bool, bool]:
    """A second training of the folder, as a new one or to go on with; the first is then left to its end."""
    name = f"two-{number}"
    process = runs.start(name, STEPS)
    runs.wait_for_step(name, 1 + rng.randrange(BEFORE), process)
    process.send_signal(signal.SIGSTOP)  # a fast machine would be done before the second one begins
    begun = state.states(runs.folder / name / "state")
    said = runs.run(name, *(["--resume"] if begun else ["my.txt", *FLAGS.split()]))
    process.send_signal(signal.SIGCONT)
    first = process.communicate(timeout=300)[0]
    return in_a_sentence(*said) and process.returncode == 0 and "Traceback" not in first, runs.ends_as_undisturbed(name)


def cut(runs: Mishaps, number: int, times: int, rng: random.Random) -> tuple[bool, bool]:
    name = f"cut-{number}"
    newest = state.states(runs.half(name) / "state")[0]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size * number // times])
    code, said = runs.run(name, "--resume")
    return code == 0 and "Traceback" not in said, runs.ends_as_undisturbed(name)


MISHAPS: dict[str, Callable[..., tuple[bool, bool]]] = {
    "disk full": disk_full,
    "read-only": read_only,
    "vanished": vanished,
    "clock set back": clock,
    "two trainings": two,
    "state cut": cut,
}


def befall(folder: Path, times: int, rng: random.Random, only: list[str]) -> dict[str, Any]:
    """Let each of them happen so many times."""
    runs, found = Mishaps(folder), {}
    folder.chmod(0o755)
    code, said = runs.run("whole", "my.txt", *FLAGS.split())
    assert code == 0, said
    end(runs.begin("half"))
    for what in only:
        outcomes = [MISHAPS[what](runs, number, times, rng) for number in range(times)]
        found[what] = {
            "tried": times,
            "answered as it should be": sum(answer for answer, _ in outcomes),
            "ended as undisturbed": sum(end for _, end in outcomes),
        }
        print(f"{what:16}", *(f"{name}: {value:3}" for name, value in found[what].items()), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=list(MISHAPS), choices=list(MISHAPS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        save("mishaps", befall(Path(folder), args.times, random.Random(args.seed), args.only), "torch", "filelock")


if __name__ == "__main__":
    main()
