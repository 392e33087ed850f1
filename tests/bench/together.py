"""How well several checkpoints predict together: what one that is distilled from them may come near to.

    python tests/bench/together.py CHECKPOINT CHECKPOINT ...     # trained on one text, with one vocabulary

Scores the part that none of them ever read: each alone, all by the mean of their probabilities (an ensemble, which is
no checkpoint), and one by the mean of their weights (which is one). Prints a table of bits per byte.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import gpt2  # noqa: E402
from train import scoring  # noqa: E402
from train.evaluate import Trained, own_test  # noqa: E402


def main() -> None:
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    models, parts = [], []
    for directory in sys.argv[1:]:
        model, tokenizer = gpt2.load(directory, dtype="float32")
        trained = Trained.read(gpt2.find(directory).directory)
        if trained is None:
            sys.exit(f"{directory} has no training.json, which says what it never read: name one that was trained here")
        models.append(model)
        parts.append(own_test(trained, tokenizer, print).own.holdout)
    part = parts[0]
    if any(not torch.equal(other.ids, part.ids) for other in parts):
        sys.exit("these do not hold out the same tokens: name checkpoints of one text, with one --tokenizer")
    scores = [scoring.score(model, part) for model in models]
    of_all = torch.stack([-score.each for score in scores]).logsumexp(0) - math.log(len(scores))  # (n,) log p, in nats
    states = [model.state_dict() for model in models]
    soup = models[0]
    soup.load_state_dict({name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]})
    rows = dict(zip(sys.argv[1:], (score.bits_per_byte for score in scores), strict=True))
    rows["mean of their probabilities"] = replace(scores[0], each=-of_all).bits_per_byte
    rows["mean of their weights"] = scoring.score(soup, part).bits_per_byte
    print("| | bits per byte |\n|---|---|")
    print(*(f"| {name} | {bits:.4f} |" for name, bits in rows.items()), sep="\n")


if __name__ == "__main__":
    main()
