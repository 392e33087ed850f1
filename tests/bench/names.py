"""What the names over the speeches cost a model, on the held-out tenth of tiny Shakespeare.

    python tests/bench/names.py CHECKPOINT [CHECKPOINT ...]     # trained with --corpus tinyshakespeare

Prints bits per name, apart for names that the text has before that tenth and new ones, and for those that stood in the
same window before, so that a model might copy them, and those that did not. The part that is scored is the run's own,
which it never read. The text is the file that TINYSHAKESPEARE names, or comes over the network.
"""

from __future__ import annotations

import math
import re
import sys
from bisect import bisect_left, bisect_right
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import gpt2  # noqa: E402
from train import scoring  # noqa: E402
from train.evaluate import Trained, own_test  # noqa: E402

NAME = re.compile(rb"(?:(?<=\n\n)|\A)([^\n]+):\n")


def costs(directory: str) -> tuple[float, dict[tuple[bool, bool], list[float]], int]:
    """Bits per byte, the bits of every name by (known before, stood in the window before), and the bytes."""
    model, tokenizer = gpt2.load(directory, dtype="float32")
    trained = Trained.read(gpt2.find(directory).directory)
    if trained is None or trained.config.get("corpus") != "tinyshakespeare":
        sys.exit(f"{directory} was not trained on tiny Shakespeare: name one that was (--corpus tinyshakespeare)")
    own = own_test(trained, tokenizer, print).own
    before = "".join(text for part in (own.train, own.validation) for text in part.texts(tokenizer)).encode()
    known = {match[1] for match in NAME.finditer(before)}
    pieces = [tokenizer.token_bytes(idx) for idx in own.holdout.ids.tolist()[1:]]  # the first one separates
    text = b"".join(pieces)
    ends = list(accumulate(map(len, pieces)))
    result = scoring.score(model, own.holdout)
    last: dict[bytes, int] = {}
    found = defaultdict(list)
    for match in NAME.finditer(text):
        tokens = slice(bisect_right(ends, match.start(1)), bisect_left(ends, match.end(1)) + 1)
        window = tokens.start // model.config.block_size
        bits = float(result.each[tokens].sum()) / math.log(2)
        found[match[1] in known, last.get(match[1]) == window].append(bits)
        last[match[1]] = window
    return result.bits_per_byte, found, len(text)


def main() -> None:
    for directory in sys.argv[1:] or sys.exit(__doc__):
        total, found, size = costs(directory)
        every = sum(sum(bits) for bits in found.values()) / size
        print(f"{directory}: {total:.4f} bits per byte, {every:.3f} of them for names")
        print("| name | stood in the window before | mentions | bits each |\n|---|---|---|---|")
        for (known, again), bits in sorted(found.items(), reverse=True):
            row = "known" if known else "new", "yes" if again else "no", str(len(bits)), f"{sum(bits) / len(bits):.1f}"
            print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
