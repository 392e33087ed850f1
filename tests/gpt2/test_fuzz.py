"""Hostile checkpoints: whatever a file says, it is read or refused in a sentence, and nothing else happens.

A few hundred cases, the same on every run; tests/bench/fuzz.py tries twenty thousand.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from gpt2.files import WEIGHTS
from tests import hostile

CASES = 40  # of each kind


@pytest.fixture(scope="module")
def trial(tmp_path_factory) -> hostile.Trial:
    return hostile.Trial(tmp_path_factory.mktemp("hostile"))


@pytest.mark.parametrize("name", hostile.KINDS)
def test_a_spoiled_file_is_read_or_refused_in_a_sentence_and_nothing_else_happens(trial, name):
    kind = hostile.KINDS[name]
    outcomes = []

    @settings(max_examples=CASES, suppress_health_check=list(HealthCheck))
    @given(kind.spoiled(trial.good))
    def tried(spoiled):
        outcomes.append(trial.run(kind, spoiled))

    tried()
    assert len(outcomes) > CASES / 2
    assert ("refused" in outcomes) is (kind.error != ())


def read_elsewhere(directory: Path) -> None:
    (directory.parent / "elsewhere" / "secret").read_bytes()


def write(directory: Path) -> None:
    (directory / "new").write_bytes(b"")


def run_code(directory: Path) -> None:
    pickle.loads(pickle.dumps(hostile.Exploit)).__reduce__()


def take_memory(directory: Path) -> None:
    torch.ones(2 * hostile.MEMORY, dtype=torch.uint8)


def panic(directory: Path) -> None:
    raise SystemExit


@pytest.mark.parametrize("read", [read_elsewhere, write, run_code, take_memory, panic], ids=lambda read: read.__name__)
def test_a_reader_that_does_anything_else_is_caught(trial, read):
    if read is take_memory and sys.platform != "linux":
        pytest.skip("the limit on memory is Linux's")
    with pytest.raises(hostile.Broken):
        trial.run(hostile.Kind(None, read), {})


def test_a_secret_or_a_terminals_command_in_a_refusal_is_caught(trial):
    for sentence in (hostile.SECRET, "\x1b[2J", "two\nlines", "x" * 5000):

        def read(directory, sentence=sentence):
            raise ValueError(sentence)

        with pytest.raises(hostile.Broken):
            trial.run(hostile.Kind(None, read, ValueError), {})


@pytest.mark.parametrize("name", [WEIGHTS, "overlap.safetensors", "config.json", "vocab.json", "tokenizer.json"])
def test_a_pickle_under_a_good_name_is_refused_and_not_run(trial, name, tmp_path):
    gone = {"vocab.json": None, "merges.txt": None} if name == "tokenizer.json" else {}
    torch.save({"a": hostile.Exploit()}, tmp_path / "saved.pt")
    for content in (pickle.dumps(hostile.Exploit()), (tmp_path / "saved.pt").read_bytes()):
        assert trial.run(hostile.KINDS[name], {name: content, **gone}) == "refused"


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "vocab.json", "merges.txt"])
def test_a_link_out_of_the_directory_is_refused_even_to_a_good_file(trial, name):
    link = {name: Path("..", "elsewhere", name)}
    assert trial.run(hostile.Kind(None, hostile.open_checkpoint), link) == "refused"
