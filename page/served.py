"""The checkpoint behind the page: found, loaded, or replaced by the bundled one with a sentence that says so.

Knows what to tell visitors about a checkpoint and what to keep from them. Knows nothing of widgets or requests.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

import gpt2
from gpt2.files import check_file, read_json
from gpt2.quantize import dtype_of
from gpt2.tokenizer import well_formed

MAX_CARD = 100_000  # bytes of a card that we are willing to parse


@dataclass(frozen=True)
class Served:
    """The checkpoint behind the page, and how we came by it."""

    model: gpt2.GPT
    tokenizer: gpt2.Tokenizer
    name: str
    sha: str | None  # the Hub commit
    training: dict[str, str | float | None]
    directory: Path
    notice: str | None = None  # why this is not the checkpoint that was asked for

    @property
    def dtype(self) -> str:
        """The number format that it computes in: another one may write another text."""
        return dtype_of(self.model)


def load(source: str | Path) -> Served:
    """Load the checkpoint that source names, and what its training.json says.

    Raises:
        ValueError: in one sentence that shows visitors no path of this machine.
    """
    shown, hidden = str(source), str(source)
    try:
        if (path := Path(source)).is_absolute() or path.is_dir():
            path = path.resolve()
            shown = path.parent.name if path.name in ("best", "last") else path.name
        found = gpt2.find(source)
        hidden = str(found.directory)
        # On ZeroGPU a model starts on the CPU: there is no GPU until a visitor's request borrows one.
        device = "cpu" if os.environ.get("SPACES_ZERO_GPU") else "auto"
        model, tokenizer = gpt2.load(found.directory, device=device)
    except Exception as error:  # whatever is wrong with somebody's checkpoint, the page must open
        raise ValueError(short(str(error).replace(hidden, shown), 400) or type(error).__name__) from error
    name = shown.removesuffix(f"@{found.sha}")  # said beside it, and in a few digits
    return Served(model, tokenizer, short(name), found.sha, provenance(found.directory), found.directory)


def load_or_fall_back(model_id: str, revision: str) -> Served:
    """The checkpoint that was asked for or, with a notice, the bundled one.

    Raises:
        ValueError: where not even that can be loaded.
    """
    if not model_id:
        try:
            return load(gpt2.BUNDLED)
        except ValueError as error:
            raise ValueError(
                f"The bundled checkpoint could not be loaded ({error}) Set MODEL_ID, or train one: python -m train."
            ) from error
    try:
        return load(f"{model_id}@{revision}" if revision and not os.path.isdir(model_id) else model_id)
    except ValueError as error:
        notice = f"The checkpoint that this page was set up for could not be loaded: {error}"
        print(notice, file=sys.stderr)
    return replace(load_or_fall_back("", ""), notice=f"{notice} You see the bundled one.")


def provenance(directory: Path) -> dict[str, str | float | None]:
    """What training.json says, as short strings and plain numbers: anyone may have written it."""
    try:
        record = read_json(directory / "training.json")
    except (ValueError, OSError):
        record = None

    def at(kind: type, *path: str) -> Any:
        value = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if kind is str:
            return short(value) if isinstance(value, str) else None
        return value if type(value) in (int, float) and abs(value) < 1e15 else None  # False for NaN

    return {
        "corpus": at(str, "corpus", "name"),
        "origin": at(str, "corpus", "origin"),
        "steps": at(float, "steps"),
        "tokens_seen": at(float, "tokens_seen"),
        "held_out_bits_per_byte": at(float, "figures", "held_out_bits_per_byte"),
        "validation_bits_per_byte": at(float, "figures", "validation_bits_per_byte"),
    }


def examples(directory: Path, most: int = 6) -> list[str]:
    """The prompts that the checkpoint's own card names; none where it names none that can be read."""
    try:
        check_file(directory / "README.md", MAX_CARD)
        card = (directory / "README.md").read_text(encoding="utf-8")
        widget = yaml.safe_load(card.split("---\n", 2)[1])["widget"]
        texts = [entry["text"] for entry in widget[:most]]
    except Exception:  # PyYAML alone raises five kinds for what strangers write, a 13th month for one
        return []
    return [well_formed(text[:200]) for text in texts if isinstance(text, str) and text.strip()]


def short(text: str, limit: int = 80) -> str:
    text = " ".join(well_formed(text[: 2 * limit]).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
