"""The fast tests under every Python and with the oldest and newest packages that the requirements admit.

    python tests/bench/versions.py [--only "3.11 oldest" ...] [--workers 2]

Needs uv, which finds or fetches the Pythons and resolves each environment (its own settings are heeded, as UV_INDEX).
Each is made in a temporary folder and runs what is neither slow nor of the browser. Prints the counts, writes
tests/bench/results/versions.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATH = ROOT / "tests" / "bench" / "results" / "versions.json"
REQUIREMENTS = ROOT / "tests" / "requirements.txt"
RESOLUTIONS = {"oldest": "lowest-direct", "newest": "highest"}  # of the packages that the requirements name
PYTHONS = ("3.11", "3.12", "3.13")
NAMES = [f"{python} {age}" for python in PYTHONS for age in RESOLUTIONS if age == "newest" or python == PYTHONS[0]]
FAST = "not slow and not browser and not network"
TOLD = ("torch", "gradio", "huggingface-hub", "tiktoken", "safetensors", "tokenizers", "transformers", "filelock")


def trial(name: str, folder: Path, workers: int) -> dict[str, Any]:
    """Make an environment, and run the tests there."""
    version, age = name.split()
    python = folder / "bin" / "python"
    subprocess.run(["uv", "venv", "--python", version, "--seed", folder], check=True)
    install = ["uv", "pip", "install", "--python", python, "--resolution", RESOLUTIONS[age], "-r", REQUIREMENTS]
    subprocess.run(install, check=True)
    listed = subprocess.run(["uv", "pip", "list", "--python", python, "--format", "json"], capture_output=True)
    versions = {package["name"]: package["version"] for package in json.loads(listed.stdout)}
    tests = [python, "-m", "pytest", "-q", "-n", str(workers), "-m", FAST, "-rfE", "--no-header"]
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, encoding="utf-8")
    lines = done.stdout.splitlines()
    last = next((line for line in reversed(lines) if re.search(r" in [0-9.]+s", line)), "no test was run")
    return {
        "python": version,
        "versions": {package: versions.get(package) for package in TOLD},
        "passed": done.returncode == 0,
        "said": re.sub("=+ ?| ?=+", "", last),
        "failed": [line for line in lines if re.match("(FAILED|ERROR) ", line)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    record = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            record[name] = trial(name, Path(folder), args.workers)
        print(f"{name:14} {record[name]['said']}", *record[name]["failed"], sep="\n    ", flush=True)
        PATH.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
