"""Every fault that the Hub of the tests knows, at every request of a push, of a load and of the app's start: what is
left, what is said.

    python tests/bench/hub_faults.py [--only push load app] [--workers 2]

The commands are real, each in a process of its own; the Hub runs here (tests/hub_server.py). A fault befalls one
request, the first, the second, and so on, or that one and all after it. A push must leave the repository as it was or
complete; a load must give the commit that is there or a sentence; the app must answer, from that commit or from the
bundled checkpoint, and then say why. Prints the counts, and every trial that did neither, said nothing at its end, or
took over 30 seconds and did not say what it waits for; writes tests/bench/results/hub_faults.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.kills import Runs  # noqa: E402
from tests.bench.record import RESULTS, save  # noqa: E402
from tests.hub_server import FAULTS, HubServer  # noqa: E402
from tests.page.visit import serve  # noqa: E402

PATH = RESULTS / "hub_faults.json"
STATUSES = (400, 401, 403, 404, 409, 413, 429, 500, 503)
LONG = 30  # seconds, after which it must have said what it waits for,
TOLD = ("Waiting for the Hub", "trying again in")  # in one of these ways
TOO_LONG = 900  # seconds after which a command is stopped, and counts as one that hangs
SLOW = 100  # bytes a second of a slow answer: one of the Hub's own takes ten seconds and more
TOKEN = "hf_faults"
PUSH = ["-m", "train.publish", "run", "ada/x"]
LOAD = """
import gpt2, sys
try:
    print(gpt2.find("ada/x").sha)
except gpt2.CheckpointError as error:
    sys.exit(f"error: {error}")
"""


def trial(what: str, run: Path, fault: dict[str, Any] | None, after: int = 0) -> dict[str, Any]:
    """One push, load or start of the app, with a fault after so many requests; no fault: how it goes without."""
    with HubServer() as hub, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(run, folder / "run")
        hub.add_token(TOKEN, "ada", "write")
        repo = hub.repo("ada/x")
        whole = {path.name: path.read_bytes() for path in (run / "best").iterdir() if path.is_file()}
        repo.commit({"config.json": b"{}", ".gitattributes": b""} if what == "push" else whole)
        before, hub.requests = repo.head, []
        if fault:
            hub.fail("*", "", after=after, **fault)
        env = Runs(folder).env | hub.env(TOKEN, folder / "home") | {"CC": ""}  # nothing is compiled: to be sooner done
        started = time.monotonic()
        if what == "app":
            code, said, left = first_answer(folder, env, before)
        else:
            code, said = run_command([*PUSH, "--overwrite"] if what == "push" else ["-c", LOAD], folder, env)
            files = repo.files()
            unchanged = repo.head == before
            complete = all(files.get(path) == content for path, content in whole.items() if path != "README.md")
            left = "unchanged" if unchanged else "complete" if complete else "neither"
            if what == "load":
                left = "the commit" if before in said else "a sentence" if code else "neither"
        seconds = time.monotonic() - started
    return {
        "what": what,
        "fault": {key: str(value) for key, value in (fault or {}).items()},
        "after": after,
        "requests": len(hub.requests),
        "code": code,
        "left": left,
        "traceback": "Traceback" in said,
        "seconds": round(seconds, 1),
        "told": any(words in said for words in TOLD),
        "said": said.strip().splitlines()[-1:],
        "secret told": TOKEN in said,
    }


def run_command(command: list[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    """Its exit status, 124 where it had to be stopped, and all that it said."""
    words = ["timeout", str(TOO_LONG), sys.executable, *command]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, encoding="utf-8")
    return done.returncode, done.stdout + done.stderr


def first_answer(folder: Path, env: dict[str, str], sha: str) -> tuple[int, str, str]:
    """Start the app for that model, and ask; 0 where it answered, all that it said, and what answered."""
    with serve(folder, TOO_LONG, MODEL_ID="ada/x", **env) as page:
        [info] = page.call("model_info", []).get("complete") or [{}]
        answered = bool(page.call("generate", ["ROMEO:", 5, 50, 1.0, 1.0, 0.0, 1.0, 1]).get("complete"))
        log = page.log()
    explained = bool(info.get("fallback") and info.get("notice"))
    left = "the commit" if info.get("sha") == sha else "the bundled one" if explained else "neither"
    return int(not answered), f"{log}\n{info.get('notice') or ''}", left


def trials(what: str, n: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Faults, and after how many requests. The app asks what a load asks: of it a few, which do not go away."""
    for after in sorted({0, 1, 2, n // 2, n - 1}) if what == "app" else range(n):
        for fault in [{"status": status} for status in STATUSES] + [{"kind": kind} for kind in sorted(FAULTS)]:
            for times in (math.inf,) if what == "app" else (1, math.inf):
                more = {"retry_after": 1} if fault.get("status") == 429 else {"rate": SLOW}
                yield {**fault, **more, "times": times}, after


def hangs(row: dict[str, Any]) -> bool:
    return row["code"] == 124 or (row["seconds"] > LONG and not row["told"])


def is_bad(row: dict[str, Any]) -> bool:
    silent = row["code"] != 0 and not row["said"]
    gave_up = row["what"] == "push" and row["code"] == 0 and row["left"] != "complete"
    gave_up |= row["what"] == "app" and row["code"] != 0
    return row["left"] == "neither" or row["traceback"] or row["secret told"] or silent or gave_up or hangs(row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=["push", "load", "app"], choices=["push", "load", "app"])
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    record = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.workers) as pool:
        process = Runs(Path(folder)).start("run", steps=20)
        assert process.communicate() and process.returncode == 0
        run = Path(folder) / "run"
        for what in args.only:
            n = trial(what, run, None)["requests"]
            rows, every = [], list(trials(what, n))
            for row in pool.map(lambda one: trial(what, run, *one), every):  # noqa: B023 (used at once)
                rows.append(row)
                print(f"{what} {len(rows):5}", end="\r", flush=True)
            # Alone once more: that a busy machine is slow to start is no silence of the Hub.
            rows = [trial(what, run, *one) if hangs(row) else row for row, one in zip(rows, every, strict=True)]
            bad = [row for row in rows if is_bad(row)]
            record[what] = {
                "requests of one": n,
                "tried": len(rows),
                "left": Counter(row["left"] for row in rows),
                "slowest, s": max(row["seconds"] for row in rows),
                f"over {LONG} s": sum(row["seconds"] > LONG for row in rows),
                "bad": bad,
            }
            print(what, *(f"    {name:20} {value}" for name, value in record[what].items() if name != "bad"), sep="\n")
            print(*(f"    BAD {row}" for row in bad), sep="\n", flush=True)
            save("hub_faults", record, "huggingface_hub")


if __name__ == "__main__":
    main()
