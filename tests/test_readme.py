"""The README keeps its word: its commands exist, its paths exist, its metadata is a Space's."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest

from gpt2.__main__ import parser
from train.__main__ import parse
from train.evaluate import parser as evaluating
from train.publish import parser as publishing

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FRONT, _, BODY = README.removeprefix("---\n").partition("\n---\n")
COMMANDS = [
    line.removeprefix("$ ").strip()
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", BODY, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


def of(module: str) -> list[list[str]]:
    """The arguments of every README command that runs python -m module."""
    found = []
    for command in COMMANDS:
        words = shlex.split(command, comments=True)
        if "-m" in words and words[words.index("-m") + 1] == module:
            found.append(words[words.index("-m") + 2 :])
    return found


def test_every_training_command_is_understood():
    assert of("train")
    for words in of("train"):
        if "--help" not in words:
            parse(words)


def test_every_generating_command_is_understood():
    assert of("gpt2")
    for words in of("gpt2"):
        parser().parse_args(words)


def test_every_publishing_command_is_understood():
    assert of("train.publish")
    for words in of("train.publish"):
        publishing().parse_args(words)


def test_every_evaluating_command_is_understood():
    assert of("train.evaluate")
    for words in of("train.evaluate"):
        evaluating().parse_args(words)


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)]+)\)", BODY)
    links += re.findall(r'src="(?!https?://)([^"]+)"', BODY)
    assert links
    for link in links:
        assert (ROOT / link.split("#")[0]).exists(), link


def test_every_file_of_its_map_exists():
    plan = re.search(r"```\n(app\.py.*?)```", BODY, re.DOTALL)
    folder = ""
    for line in plan[1].splitlines():
        name = line.split()[0]
        if name.endswith("/"):
            folder = name
        path = ROOT / (folder if line.startswith("  ") else "") / name
        assert path.exists(), path


def test_its_front_matter_is_what_a_space_reads():
    yaml = pytest.importorskip("yaml")
    data = yaml.safe_load(FRONT)
    assert data["sdk"] == "gradio"
    assert data["sdk_version"] == version("gradio")
    assert (ROOT / data["app_file"]).exists()
    assert isinstance(data["python_version"], str)
    assert len(data["short_description"]) <= 60
    assert data["license"] == "mit"
    colours = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
    assert {data["colorFrom"], data["colorTo"]} <= colours
    known = {"title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file"}
    known |= {"short_description", "license", "tags", "models", "suggested_hardware", "pinned", "datasets"}
    assert set(data) <= known


def test_both_set_ups_are_one_line_each_and_ci_runs_the_second():
    lines = [command for command in COMMANDS if "-m venv" in command]
    assert len(lines) == 2
    assert lines[0].endswith("app.py") and lines[1].endswith("-m pytest -n 2")
    assert all("pip install torch==2.13.0 -r" in line for line in lines)
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
