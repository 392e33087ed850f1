"""Dropout on the CPU: how much it drops, and that the rest of the model does not notice how."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import gpt2
from gpt2 import model as network
from gpt2.dropout import Dropout, dropout

CONFIG = gpt2.GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=0.2)


@pytest.mark.parametrize("p", [0.001, 0.1, 0.2, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_drops_the_share_it_is_asked_to_and_keeps_the_mean(p, dtype):
    torch.manual_seed(0)
    y = dropout(torch.ones(400, 1001, dtype=dtype), p).float()
    assert (y == 0).double().mean() == pytest.approx(p, abs=0.004)  # a 256th, and the draw
    assert y.mean() == pytest.approx(1, rel=0.05)
    assert len(y.unique()) == 2


def test_what_is_dropped_follows_from_the_generator_alone():
    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(7, 11), 0.5)

    assert draw(1).equal(draw(1))
    assert not draw(1).equal(draw(2))


def test_the_gradient_takes_the_way_that_the_numbers_took():
    x = torch.randn(30, 30, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x, y)


def test_nothing_is_dropped_but_in_training():
    x = torch.randn(100)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x


@pytest.mark.parametrize("length", [1, 16, network.ROWS, network.ROWS + 1, 2 * network.ROWS + 40])
def test_attention_that_drops_nothing_is_plain_attention(monkeypatch, length):
    model = gpt2.GPT(replace(CONFIG, block_size=length)).init_weights(torch.Generator().manual_seed(0))
    for p in model.parameters():
        torch.nn.init.normal_(p, 0, 0.2)
    idx = torch.randint(50, (3, length))
    expected = model.eval()(idx)[0]
    monkeypatch.setattr(network, "dropout", lambda x, p: x)  # of attention
    for part in model.modules():
        if isinstance(part, Dropout):
            part.p = 0.0
    torch.testing.assert_close(model.train()(idx)[0], expected, atol=1e-4, rtol=1e-4)


def test_in_training_two_passes_differ():
    model = gpt2.GPT(CONFIG).init_weights(torch.Generator().manual_seed(0)).train()
    idx = torch.randint(50, (3, 16))
    assert not model(idx)[0].equal(model(idx)[0])
