"""How fast a large text becomes tokens, and in how much memory.

    python tests/bench/tokenize_text.py [--mb 1000]

Makes a text of that size from the 38 plays (or the file that TINYSHAKESPEARE names), its lines in ever another order,
and prepares it in a process of its own with bpe:2048 and with gpt2; prints a table and writes
tests/bench/results/tokenize_text.json. Needs nothing else running on the machine, and twice the size on its disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.record import save  # noqa: E402
from train.config import preset  # noqa: E402
from train.corpus import open_corpus  # noqa: E402
from train.dataset import prepare  # noqa: E402

TOKENIZERS = ("bpe:2048", "gpt2")
MOST_MB = 1500  # of memory


def write_text(path: Path, size: int) -> None:
    """`size` bytes of lines in an order that does not repeat."""
    named = os.environ.get("TINYSHAKESPEARE")
    texts = [Path(named).read_text(encoding="utf-8")] if named else [d.text for d in open_corpus((), "plays").documents]
    lines, shuffled = [line for text in texts for line in text.splitlines(keepends=True)], random.Random(1)
    with path.open("wb") as file:
        while left := size - file.tell():
            shuffled.shuffle(lines)
            file.write("".join(lines).encode("utf-8")[:left])


def measure(path: Path, tokenizer: str) -> dict[str, float]:
    """Seconds of every stage of this process, and the most memory that it ever had."""
    marks, before = {}, _peak()
    marks["start"] = time.perf_counter()
    corpus = open_corpus([path], None)
    marks["read"] = time.perf_counter()
    data = prepare(
        corpus,
        replace(preset("mini"), tokenizer=tokenizer),
        say=lambda sentence: marks.setdefault(sentence.split()[0], time.perf_counter()),
    )
    end, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    mb = path.stat().st_size / 1e6
    return {
        "first pass, MB/s": mb / (marks["read"] - marks["start"]),
        "vocabulary, s": marks["Tokenising"] - marks["read"],
        "tokenising, MB/s": mb / (end - marks["Tokenising"]),
        "all, MB/s": mb / (end - marks["start"]),
        "all, s": end - marks["start"],
        "processor, s": used.ru_utime + used.ru_stime,
        "tokens, millions": sum(len(part) for part in (data.train, data.validation, data.holdout)) / 1e6,
        "memory before, MB": before,
        "memory at most, MB": _peak(),
    }


def _peak() -> float:
    """Megabytes of memory at the worst moment so far; macOS counts in bytes, others in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--measure", nargs=2, metavar=("TEXT", "TOKENIZER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
        return
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "large.txt")
        write_text(text, args.mb * 10**6)
        for tokenizer in TOKENIZERS:
            command = [sys.executable, __file__, "--measure", str(text), tokenizer]
            env = {**os.environ, "XDG_CACHE_HOME": folder}
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, encoding="utf-8", check=True)
            measured[tokenizer] = {name: round(value, 1) for name, value in json.loads(done.stdout).items()}
    print(f"{f'{args.mb:,} MB of text':24}" + "".join(f"{tokenizer:>12}" for tokenizer in TOKENIZERS))
    for name in measured[TOKENIZERS[0]]:
        print(f"{name:24}" + "".join(f"{measured[tokenizer][name]:12,.1f}" for tokenizer in TOKENIZERS))
    save("tokenize_text", {"measured": measured, "text, MB": args.mb}, "torch", "tiktoken", "tokenizers")
    worst = max(figures["memory at most, MB"] for figures in measured.values())
    sys.exit(f"{worst:,.0f} MB of memory are more than {MOST_MB:,}" if worst > MOST_MB else None)


if __name__ == "__main__":
    main()
