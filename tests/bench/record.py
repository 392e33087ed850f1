"""What a bench leaves: its figures as JSON, with the machine and the versions that they hold for. Measures nothing."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gpt2.device import describe

RESULTS = Path(__file__).parent / "results"


def installed(package: str) -> str | None:
    """Its version; None where it is not here."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def here(*packages: str) -> dict[str, Any]:
    """The machine and the versions."""
    versions = {"python": platform.python_version()} | {package: installed(package) for package in packages}
    return {"machine": describe(torch.device("cpu")), "versions": versions}


def save(name: str, figures: dict[str, Any], *packages: str) -> None:
    """Write results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(figures | here(*packages), indent=2) + "\n"
    (RESULTS / f"{name}.json").write_text(text, encoding="utf-8")
