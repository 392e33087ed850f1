"""tests/bench/train_speed.py: what it times, and how it counts."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import sys
from pathlib import Path

import pytest

import gpt2

PATH = Path(__file__).resolve().parents[1] / "bench" / "train_speed.py"
spec = importlib.util.spec_from_file_location("train_speed", PATH)
train_speed = importlib.util.module_from_spec(spec)
spec.loader.exec_module(train_speed)

SMALL = gpt2.GPTConfig(block_size=16, vocab_size=300, n_layer=1, n_head=2, n_embd=32)


def test_the_work_of_one_token_is_counted_as_everyone_counts_it():
    assert train_speed.flop_per_token(gpt2.GPTConfig()) == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


@pytest.mark.parametrize("name", train_speed.CONTENDERS)
def test_a_contender_trains_one_step_for_every_line(name, monkeypatch, capsys):
    monkeypatch.setattr(train_speed, "prepare", lambda device: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("step\n" * 3))
    train_speed.contend(getattr(train_speed, name), SMALL, batch=2)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == 3
    assert answers[0]["loss"] == pytest.approx(math.log(300), abs=0.2)
    assert all(answer["seconds"] > 0 and answer["peak"] > 50 for answer in answers)


def test_both_contenders_train_the_same_weights():
    numbers = [
        sum(p.numel() for p in getattr(train_speed, name)(SMALL)[0].parameters()) for name in ("ours", "transformers")
    ]
    assert numbers[0] - numbers[1] == (384 - 300) * 32  # ours are padded to a multiple of 128 rows


def test_the_middle_step_is_the_figure():
    answers = [{"seconds": seconds, "peak": 100.0, "loss": 5.0} for seconds in (9.0, 1.0, 2.0)]
    row = train_speed.summary(answers, 4, SMALL, peak=train_speed.flop_per_token(SMALL) * 64.0)
    assert row == {"s/step": 2.0, "tok/s": 32.0, "of matrix peak": 0.5, "peak MB": 100, "loss": 5.0}
