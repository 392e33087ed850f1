"""The files of a checkpoint directory: their names, how large they may be, how JSON among them is read, what is wrong
with one that can not be used.

Knows nothing of models, nor of where a directory comes from.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WEIGHTS = "model.safetensors"
NEEDED = ("config.json", WEIGHTS, "vocab.json", "merges.txt")
# Bytes of a file of text or JSON that we are willing to parse. As Python's objects it can take 25 times as much, where
# it says nothing but "[],": 400 MB is the most that one costs.
MAX_JSON = 16 * 2**20
MAX_SENTENCE = 500  # characters


class CheckpointError(ValueError):
    """A checkpoint that can not be used, in one sentence with the way out.

    What is quoted in it, a stranger may have written: it is cut in the middle where it is long, and has no character
    that would do something to a terminal.
    """

    def __init__(self, sentence: str):
        if len(sentence) > MAX_SENTENCE:
            sentence = f"{sentence[: MAX_SENTENCE - 150]} ... {sentence[-145:]}"
        super().__init__("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in sentence))


@dataclass(frozen=True)
class Found:
    """Where a checkpoint lies."""

    directory: Path
    name: str  # as it was asked for
    sha: str | None = None  # the Hub commit, None for a local directory


def read_json(path: Path) -> Any:
    """Parse one JSON file of a checkpoint.

    Raises:
        CheckpointError: where it is missing, too large or not JSON.
    """
    check_file(path, MAX_JSON)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}); download or save it again.") from error


def check_file(path: Path, max_bytes: int | None = None) -> None:
    """See that a file of a checkpoint is there, no link to elsewhere, no larger than it may be, no git-lfs pointer.

    Raises:
        CheckpointError: where it is not so.
    """
    if not path.is_file():
        if path.name == WEIGHTS and path.parent.is_dir():
            raise CheckpointError(f"{path.parent} {lack(os.listdir(path.parent))}")
        raise CheckpointError(
            f"{path.parent} has no {path.name}, so it is not a whole checkpoint: it needs {', '.join(NEEDED)}."
        )
    home, real = path.parent.resolve(), path.resolve()
    # In the Hub's cache, where snapshots/COMMIT/ holds links, the files lie in blobs/.
    if real.parent not in (home, (home.parent.parent / "blobs").resolve()):
        raise CheckpointError(
            f"{path} is a link that leads out of its directory, where nothing of a checkpoint is read; put the file "
            "itself there."
        )
    if max_bytes is not None and path.stat().st_size > max_bytes:
        raise CheckpointError(f"{path} is larger than {max_bytes / 2**20:.0f} MB; that is no {path.name}.")
    with path.open("rb") as file:
        if file.read(24) == b"version https://git-lfs.":
            raise CheckpointError(
                f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull`, or download it from the Hub."
            )


def lack(files: Collection[str]) -> str | None:
    """What a directory of these files lacks to be a checkpoint: the end of a sentence, with the way out."""
    way_out = "load it with transformers once and save_pretrained(DIR, max_shard_size='100GB')."
    if WEIGHTS not in files and f"{WEIGHTS}.index.json" in files:
        return f"has no {WEIGHTS}: it is cut into shards; {way_out}"
    if WEIGHTS not in files and any(name.startswith("pytorch_model") for name in files):
        return f"has no {WEIGHTS}, only a pickle, which could run any code and is never opened; {way_out}"
    for name in (WEIGHTS, "config.json"):
        if name not in files:
            return f"has no {name}, so it is not a whole checkpoint: it needs {', '.join(NEEDED)}."
    if "tokenizer.json" not in files and not {"vocab.json", "merges.txt"} <= set(files):
        return (
            "has neither vocab.json and merges.txt nor tokenizer.json: only byte-level BPE, GPT-2's kind of tokenizer, "
            "is read."
        )
    return None
