"""Parameter groups and the learning rate."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
import torch

import gpt2
from train import optimizer
from train.config import TrainConfig, preset


def test_matrices_and_embeddings_decay_and_nothing_else_does():
    model = gpt2.GPT(gpt2.GPTConfig.named("tiny"))
    (adamw,) = optimizer.build(model, preset("seed"))
    groups = {group["weight_decay"]: group["params"] for group in adamw.param_groups}
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
    (built,) = optimizer.build(gpt2.GPT(gpt2.GPTConfig.named("tiny")), preset("tiny"))
    optimizer.set_learning_rate(built, 0.125)
    assert {group["lr"] for group in built.param_groups} == {0.125}


def test_the_rate_never_exceeds_its_highest_and_reaches_its_end():
    config = TrainConfig(learning_rate=1e-5, max_steps=50)  # below its lowest, within its warm-up
    rates = [optimizer.learning_rate(step, config) for step in range(51)]
    assert max(rates) == 1e-5
    assert rates[24] == 1e-5 and rates[50] == 1e-5
    config = replace(config, learning_rate=2e-3)
    rates = [optimizer.learning_rate(step, config) for step in range(51)]
    assert max(rates) == rates[24] == 2e-3
    assert rates[50] == config.min_learning_rate


def test_wsd_stays_at_the_top_and_falls_in_a_line_to_zero():
    config = replace(preset("tiny"), schedule="wsd", cooldown=0.25, warmup_steps=10, max_steps=100)
    config = replace(config, learning_rate=1.0, min_learning_rate=0.1)  # which is cosine's
    rates = [optimizer.learning_rate(step, config) for step in range(101)]
    assert rates[9:76] == [1.0] * 67
    assert rates[75:] == pytest.approx([(100 - step) / 25 for step in range(75, 101)])


def test_muon_gets_the_hidden_matrices_and_adamw_all_the_rest():
    model = gpt2.GPT(gpt2.GPTConfig.named("tiny"))
    muon, adamw = optimizer.build(model, replace(preset("tiny"), optimizer="muon"))
    names = {id(p): name for name, p in model.named_parameters()}
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    rest = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert hidden | rest == set(names.values()) and not hidden & rest
    assert all(name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) for name in hidden)
    assert len(hidden) == 4 * model.config.n_layer


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 64, 16), (2, 16, 64)])
def test_orthogonalising_keeps_the_directions_and_evens_out_the_sizes(shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, vt = torch.linalg.svd(matrices, full_matrices=False)
    directions = optimizer.orthogonalise(matrices)
    turned = u.mT @ directions @ vt.mT  # diagonal where the singular vectors are the same
    values = torch.diagonal(turned, dim1=1, dim2=2)
    torch.testing.assert_close(turned, torch.diag_embed(values), atol=1e-4, rtol=0)
    assert (s[:, :1] / s)[values > 0.5].max() > 2  # sizes that differed this much
    assert values[s / s[:, :1] > 0.1].min() > 0.5 and values.max() < 1.3  # are now nearly one


def test_muon_orthogonalises_query_key_and_value_apart():
    p = torch.nn.Parameter(torch.zeros(48, 16))
    p.grad = torch.randn(48, 16, generator=torch.Generator().manual_seed(0))
    p.grad[16:32] *= 1000  # would drown the others in one matrix of 48 rows
    optimizer.Muon([{"params": [p], "blocks": 3}], lr=1.0, weight_decay=0.0).step()
    for block in p.detach().chunk(3):
        assert float(block.norm()) == pytest.approx(0.2 * 16**0.5 * 16**0.5, rel=0.2)


def test_an_update_of_muon_is_as_large_as_a_usual_one_of_adamw():
    moves = []
    for name in ("muon", "adamw"):
        model = gpt2.GPT(gpt2.GPTConfig.named("tiny")).init_weights(torch.Generator().manual_seed(0))
        before = model.transformer.h[0].mlp.c_fc.weight.detach().clone()
        generator = torch.Generator().manual_seed(1)
        parts = optimizer.build(model, replace(preset("tiny"), optimizer=name, learning_rate=1e-3, weight_decay=0.0))
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        for part in parts:
            part.step()
        move = (model.transformer.h[0].mlp.c_fc.weight.detach() - before).square().mean().sqrt()
        moves.append(float(move))
    assert moves[1] == pytest.approx(1e-3, rel=0.01)  # AdamW's first step; later ones are about a fifth of it
    assert moves[0] == pytest.approx(0.2e-3, rel=0.5)
