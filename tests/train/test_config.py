"""TrainConfig: one run's whole truth."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import fields, replace
from pathlib import Path

import pytest

from train.__main__ import parse
from train.config import PRESETS, TrainConfig, preset


def test_the_seed_preset_is_the_original_run_to_the_letter():
    seed = preset("seed")
    assert (seed.n_layer, seed.n_head, seed.n_embd, seed.block_size, seed.dropout) == (12, 12, 768, 1024, 0)
    assert (seed.batch_size, seed.max_steps, seed.order, seed.seed) == (16, 5000, "sequential", 1337)
    assert (seed.beta1, seed.beta2, seed.weight_decay, seed.grad_clip) == (0.9, 0.95, 0.1, 1.0)
    assert (seed.learning_rate, seed.min_learning_rate, seed.warmup_steps) == (6e-4, 6e-5, 60)
    assert (seed.corpus, seed.tokenizer, seed.holdout, seed.validation) == ("tinyshakespeare", "gpt2", 10_345, 0)
    assert (seed.patience, seed.result) == (0, "last")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_the_trip_through_json(name):
    config = replace(preset(name), texts=(Path("a.txt"), Path("b")), out=Path("there"), prompts=("x", "y"))
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_named_after_its_key(name):
    assert preset(name).preset == name


def test_the_recorded_command_gives_the_same_run_again():
    config = replace(preset("tiny"), max_steps=7, endoftext=False, prompts=("a b", "c"), compile=True, dropout=0.2)
    words = shlex.split(config.command())
    assert words[:3] == ["python", "-m", "train"]
    assert parse(words[3:]) == config


def test_no_overlap_is_a_flag_and_is_recorded():
    config = parse(["--preset", "tiny", "--no-overlap"])
    assert not config.overlap and parse(["--preset", "tiny"]).overlap
    assert config.command() == "python -m train --preset tiny --no-overlap"


def test_the_recorded_command_names_files_without_the_folders_they_lay_in():
    config = replace(preset("tiny"), texts=(Path("/home/someone/private/my.txt"),), out=Path("/home/someone/run"))
    assert config.command() == "python -m train my.txt --preset tiny"


def test_a_file_name_that_is_no_utf8_can_be_recorded():
    config = replace(preset("tiny"), texts=(Path(os.fsdecode(b"caf\xe9.txt")),), corpus=None)
    assert (
        json.dumps(config.public().to_json(), ensure_ascii=False).encode("utf-8").count("caf\ufffd.txt".encode()) == 1
    )


def test_the_recorded_command_for_a_text_of_ones_own_names_no_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        replace(preset("seed"), texts=(Path("a.txt"),), corpus=None).command() == "python -m train a.txt --preset seed"
    )
    assert replace(preset("tiny"), texts=(Path("."),)).command() == f"python -m train {tmp_path.name} --preset tiny"


@pytest.mark.parametrize(
    "change",
    [
        {"max_steps": 0},
        {"holdout": 100},
        {"n_layer": 0},
        {"learning_rate": float("nan")},
        {"learning_rate": -1e-3},
        {"weight_decay": float("inf")},
        {"dropout": 1.0},
        {"beta2": 1.0},
        {"ema": 1.0},
        {"ema": 0.9, "validation": 0.0, "result": "last"},
        {"input_noise": 1.5},
        {"cooldown": -0.1},
        {"tokenizer": "inherited"},
        {"init_from": "user/repo"},
        {"init_from": "user/repo", "tokenizer": "inherited", "head_start": True},
        {"head_start": True, "n_layer": 1},
        {"head_start": True, "n_head": 1},
        {"echo": 1.0},
        {"micro_batch": 0},
        {"holdout": 0.6, "validation": 0.5},
        {"validation": 0.0},
        {"tokenizer": "bpe:100"},
        {"tokenizer": "words"},
        {"name": "../up"},
        {"seed": -1},
    ],
)
def test_a_value_that_makes_no_sense_is_one_sentence_that_names_it(change):
    with pytest.raises(ValueError) as caught:
        replace(preset("mini"), **change)
    assert any(name in str(caught.value) for name in change)
    assert "\n" not in str(caught.value)


def test_every_field_says_why_it_is_there(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in fields(TrainConfig):
        if field.name != "texts":
            assert f"--{field.name.replace('_', '-')}" in shown, field.name
    assert "None given: the corpus" in " ".join(shown.replace("\u2502", " ").split())


def test_the_preset_is_read_first_and_flags_override_it():
    assert parse(["--max-steps", "3", "--preset", "tiny"]) == replace(preset("tiny"), max_steps=3)
    assert parse(["--preset=tiny", "a.txt"]).texts == (Path("a.txt"),)
    assert parse([]) == preset("mini")


def test_compile_is_three_valued():
    assert parse([]).compile is None
    assert parse(["--compile"]).compile is True
    assert parse(["--no-compile", "a.txt"]).compile is False
