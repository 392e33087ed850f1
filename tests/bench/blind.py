"""Two checkpoints, twenty prompts, side by side: which writes better, for a reader who does not know which is which.

    python tests/bench/blind.py OLD NEW

Both write with the same settings and seeds; a coin decides for every prompt which of them is A. Writes
tests/bench/results/blind.md, without the answers, and blind_key.json, with them. Judges nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from tests.bench.record import RESULTS  # noqa: E402

TOKENS = 120
PROMPTS = [
    "ROMEO:\n", "JULIET:\n", "HAMLET:\nTo die, to sleep", "MACBETH:\nIs this a dagger", "KING LEAR:\nBlow, winds",
    "OTHELLO:\nIt is the cause", "PORTIA:\nThe quality of mercy", "First Witch:\n", "FALSTAFF:\nA cup of sack",
    "KING HENRY V:\nOnce more", "Messenger:\nMy lord, the army", "CLEOPATRA:\nGive me my robe", "All:\n",
    "PROSPERO:\nThese our actors", "Clown:\nA riddle, sir:", "First Citizen:\nBefore we proceed",
    "VIOLA:\nMy father had", "QUEEN MARGARET:\nThou art", "To be, or not to be", "",
]  # fmt: skip


def write(checkpoint: Path) -> list[str]:
    model, tokenizer = gpt2.load(checkpoint)
    texts = []
    for seed, prompt in enumerate(PROMPTS):
        params = gpt2.SamplingParams(max_new_tokens=TOKENS, temperature=0.8, top_k=50, seed=seed)
        texts.append(prompt + "".join(gpt2.generate(model, tokenizer, prompt, params)))
    return texts


def quoted(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.strip("\n").split("\n"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    coin, key, parts = random.Random(20), [], []
    for number, (prompt, *texts) in enumerate(zip(PROMPTS, write(args.old), write(args.new), strict=True), 1):
        names = ["old", "new"]
        if coin.random() < 0.5:
            names.reverse()
            texts.reverse()
        key.append(names)
        title = prompt.replace("\n", " ").strip() or "(nothing)"
        parts.append(f"## {number}. {title}\n\nA\n\n{quoted(texts[0])}\n\nB\n\n{quoted(texts[1])}\n")
    how = f"{TOKENS} tokens each, temperature 0.8, top-k 50. Who is who: blind_key.json."
    text = f"# Twenty prompts, two checkpoints\n\n{how}\n\n" + "\n".join(parts)
    (RESULTS / "blind.md").write_text(text, encoding="utf-8")
    (RESULTS / "blind_key.json").write_text(json.dumps(key) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
