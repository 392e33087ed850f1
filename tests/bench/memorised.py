"""Memorised, or learned? What the original run's model and a small one make of the same text, in one picture.

    python tests/bench/memorised.py

The original holds out the last 3% of the text, the small one the last 10%. Reads the records of both
(checkpoints/gpt2-124m-seed/, and the run of seed 1 in results/tinyshakespeare.json), and draws results/memorised.png.
Trains nothing.
"""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.record import RESULTS  # noqa: E402
from train.fetch import tinyshakespeare  # noqa: E402

BLUE, ORANGE, GREEN, GREY = "#4c72b0", "#dd8452", "#55a868", "#888888"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def xz(text: str, holdout: float) -> float:
    """Bits per byte that xz -9e needs for the end of a text, when it has seen the rest."""
    data, cut = text.encode("utf-8"), len(text[: -round(len(text) * holdout)].encode("utf-8"))
    seen, all_of_it = (len(lzma.compress(part, preset=9 | lzma.PRESET_EXTREME)) for part in (data[:cut], data))
    return 8 * (all_of_it - seen) / (len(data) - cut)


def main() -> None:
    seed = read(ROOT / "checkpoints" / "gpt2-124m-seed" / "training.json")
    young = read(RESULTS / "seed_first_60" / "reproduce.json")
    small = read(RESULTS / "tinyshakespeare.json")["final"]["mini"]["1"]
    small_name = f"{small['parameters'] / 1e6:.1f}M, {small['steps']:,} steps"
    bits = {
        "124M, 5,000 steps": (seed["figures"]["held_out_bits_per_byte"], ORANGE),
        "124M, 60 steps": (young["held_out"]["bits_per_byte"], ORANGE),
        small_name: (small["figures"]["held_out_bits_per_byte"], BLUE),
        "xz -9e": (xz(tinyshakespeare().text, 0.1), GREY),
    }
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2, 3])
    names = list(bits)[::-1]
    bars = left.barh(names, [bits[name][0] for name in names], color=[bits[name][1] for name in names])
    left.bar_label(bars, fmt="%.2f", padding=3)
    left.set(title="The end of the text, unread", xlabel="bits per byte; fewer is better", xlim=(0, 8))
    lines = (
        ("124M, 5,000 steps", seed["memorisation"]["novelty"]["generated"], ORANGE, "o-"),
        (small_name, small["memorisation"]["novelty"]["generated"], BLUE, "o-"),
        ("the held-out text itself", small["memorisation"]["novelty"]["held_out"], GREEN, "--"),
    )
    for name, values, color, style in lines:
        right.plot(range(1, 1 + len(values)), [100 * value for value in values], style, color=color, label=name, ms=3)
    right.set(title="What it writes", xlabel="words in a row", ylabel="% not in its training text", ylim=(-4, 104))
    right.legend(loc="center right")
    right.grid(alpha=0.25)
    figure.savefig(RESULTS / "memorised.png", dpi=100)
    print(*(f"{name:20} {value:.3f}" for name, (value, _) in bits.items()), sep="\n")


if __name__ == "__main__":
    main()
