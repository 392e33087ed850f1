"""A model that begins with attention that copies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import gpt2
from gpt2.config import GPTConfig
from train import headstart


def fresh(with_head_start: bool, **sizes) -> gpt2.GPT:
    draw = torch.Generator().manual_seed(1)
    model = gpt2.GPT(GPTConfig(vocab_size=500, **sizes)).init_weights(draw).eval()
    return headstart.give(model, draw) if with_head_start else model


@torch.no_grad()
def nats(model: gpt2.GPT) -> tuple[float, float]:
    """For a random text, and for the same once more right after."""
    once = torch.randint(500, (8, 30), generator=torch.Generator().manual_seed(2))
    idx = torch.cat([once, once], 1)  # (8, 60)
    losses = F.cross_entropy(model(idx)[0][:, :-1].transpose(1, 2), idx[:, 1:], reduction="none")  # (8, 59)
    return float(losses[:, :29].mean()), float(losses[:, 30:].mean())


@pytest.mark.parametrize(("n_layer", "n_head", "n_embd"), [(4, 4, 256), (2, 5, 320), (6, 6, 384), (3, 4, 124)])
def test_it_foresees_what_it_has_seen_before_it_is_trained_at_all(n_layer, n_head, n_embd):
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": 64}
    first, again = nats(fresh(True, **sizes))
    assert again < first - 1
    first, again = nats(fresh(False, **sizes))
    assert again > first - 0.05, "noise does not"


@pytest.mark.parametrize(("n_layer", "n_head", "n_embd"), [(2, 2, 2), (2, 2, 10), (2, 3, 9), (12, 12, 768)])
def test_it_is_a_plain_network_of_any_size(n_layer, n_head, n_embd):
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": 64}
    assert all(loss < 9 for loss in nats(fresh(True, **sizes)))
