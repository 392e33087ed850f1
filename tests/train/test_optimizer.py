"""Parameter groups and the learning rate."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

import gpt2
from train import optimizer
from train.config import preset


def test_matrices_and_embeddings_decay_and_nothing_else_does():
    model = gpt2.GPT(gpt2.GPTConfig.named("tiny"))
    groups = {group["weight_decay"]: group["params"] for group in optimizer.build(model, preset("seed")).param_groups}
    assert set(groups) == {0.1, 0.0}
    assert all(p.dim() == 2 for p in groups[0.1])
    assert all(p.dim() == 1 for p in groups[0.0])
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_the_rate_rises_in_a_line_and_falls_along_half_a_cosine():
    config = replace(preset("seed"), warmup_steps=10, max_steps=110, learning_rate=1.0, min_learning_rate=0.1)
    rates = [optimizer.learning_rate(step, config) for step in range(111)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[110] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_the_seed_preset_has_the_original_runs_learning_rates():
    # Four points of the original log: step, learning rate.
    original = "0,0.00001000\n1,0.00002000\n59,0.00060000\n4999,0.00006000"
    for step, rate in csv.reader(original.splitlines()):
        assert optimizer.learning_rate(int(step), preset("seed")) == pytest.approx(float(rate), abs=5e-9)


def test_setting_the_rate_reaches_every_group():
    built = optimizer.build(gpt2.GPT(gpt2.GPTConfig.named("tiny")), preset("tiny"))
    optimizer.set_learning_rate(built, 0.125)
    assert {group["lr"] for group in built.param_groups} == {0.125}
