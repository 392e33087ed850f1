"""What a run left in a checkpoint's directory, read with distrust: anyone may have written it, and any may be missing.

Knows metrics.jsonl, samples.jsonl and how to find a value in training.json. Knows nothing of how it is shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gpt2.files import MAX_JSON, check_file
from gpt2.tokenizer import well_formed
from page.served import short

MAX_STEPS = 30  # whose samples are offered


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; what is no object is passed over, and a file that can not be read is empty."""
    try:
        check_file(path, MAX_JSON)
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except (ValueError, OSError):
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    return entries


def points(entries: list[dict[str, Any]], key: str, scale: float = 1.0) -> list[tuple[float, float]]:
    """(step, value) of all entries that have both, in the order of steps."""
    return sorted(
        (entry["step"], entry[key] * scale)
        for entry in entries
        if all(type(entry.get(k)) in (int, float) and 0 <= entry[k] < 1e9 for k in ("step", key))
    )


def samples(directory: Path) -> dict[str, dict[int, str]]:
    """Prompt -> step -> what the model wrote then."""
    found: dict[str, dict[int, str]] = {}
    for entry in read_lines(directory / "samples.jsonl"):
        step, prompt, text = entry.get("step"), entry.get("prompt"), entry.get("text")
        if type(step) is int and 0 <= step < 1e9 and isinstance(prompt, str) and isinstance(text, str):
            found.setdefault(well_formed(prompt[:200]), {}).setdefault(step, well_formed(text[:4000]))
    return {prompt: dict(thin(sorted(by_step.items()), MAX_STEPS)) for prompt, by_step in list(found.items())[:20]}


def thin(points: list[Any], most: int) -> list[Any]:
    """At most that many of them, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return points
    return [points[i * (len(points) - 1) // (most - 1)] for i in range(most)]


def number_at(record: Any, *path: str) -> float | None:
    """A number above 0; None for anything else."""
    return fraction_at(record, *path) or None


def fraction_at(record: Any, *path: str) -> float | None:
    """A number from 0 on; None for anything else."""
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record if type(record) in (int, float) and 0 <= record < 1e15 else None  # False for NaN


def text_at(record: Any, *path: str) -> str | None:
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return short(record, 200) if isinstance(record, str) else None
