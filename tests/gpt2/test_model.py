"""gpt2/model.py: GPT-2 exactly, and a loss that never holds all the logits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import gpt2
from gpt2 import model as model_module
from gpt2.model import IGNORE, chunked_cross_entropy

SMALL = gpt2.GPTConfig(block_size=16, vocab_size=263, n_layer=2, n_head=2, n_embd=32)


def random_ids(*shape: int, vocab_size: int = SMALL.vocab_size, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def test_gpt2_has_124_439_808_parameters():
    with torch.device("meta"):
        model = gpt2.GPT(gpt2.GPTConfig())
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


@pytest.mark.parametrize("config", [SMALL, gpt2.GPTConfig(7, 300, 3, 4, 24), gpt2.GPTConfig.named("gpt2-medium")])
def test_the_count_without_a_model_is_the_count_of_the_model(config):
    with torch.device("meta"):
        assert config.n_parameters == sum(p.numel() for p in gpt2.GPT(config).parameters())


def test_the_keys_are_those_of_transformers_less_the_tied_head():
    with torch.device("meta"):
        theirs = GPT2LMHeadModel(GPT2Config(n_layer=2)).state_dict().keys()
        ours = gpt2.GPT(gpt2.GPTConfig(n_layer=2)).state_dict().keys()
    assert set(ours) == set(theirs) - {"lm_head.weight"}


def test_state_holds_weights_only_and_no_buffers(tiny_model):
    assert set(tiny_model.state_dict()) == {name for name, _ in tiny_model.named_parameters()}
    assert list(tiny_model.buffers()) == []


def test_logits_equal_those_of_transformers(tiny_model, tiny_checkpoint):
    theirs = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    idx = random_ids(3, 16)
    with torch.no_grad():
        torch.testing.assert_close(tiny_model(idx)[0], theirs(idx).logits, rtol=1e-4, atol=1e-4)


def test_logits_before_a_changed_token_stay_the_same_to_the_bit(tiny_model):
    idx = random_ids(1, 16)
    changed = idx.clone()
    changed[0, 9] = (idx[0, 9] + 1) % SMALL.vocab_size
    before, after = tiny_model(idx)[0], tiny_model(changed)[0]
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.isclose(before[:, 9:], after[:, 9:]).all(dim=-1).any()


def test_the_same_token_means_something_else_at_another_position(tiny_model):
    logits = tiny_model(torch.zeros(1, 16, dtype=torch.int64))[0]
    assert not torch.allclose(logits[0, 0], logits[0, 1])


@pytest.mark.parametrize("chunks", [[11], [1] * 11, [5, 1, 1, 1, 1, 1, 1], [4, 4, 3], [1, 10], [15, 1], [8, 8]])
def test_the_cache_changes_nothing_but_speed(tiny_model, chunks):
    idx = random_ids(2, sum(chunks))
    plain = tiny_model(idx)[0]  # (B, T, V)
    cache, end = gpt2.KVCache(tiny_model.config, batch_size=2), 0
    for T in chunks:
        end += T
        stepped = tiny_model(idx[:, end - T : end], cache=cache)[0]
        torch.testing.assert_close(stepped, plain[:, end - 1 : end])


@pytest.mark.parametrize("T", [1, 3])
def test_rows_at_different_positions_do_not_touch_each_other(tiny_model, T):
    """Rows that were read one by one go on together, as an engine batches them."""
    lengths = [0, 3, 7, 13]
    idx = random_ids(len(lengths), 16)
    cache = gpt2.KVCache(tiny_model.config, batch_size=len(lengths))
    for row, length in enumerate(lengths):
        if length:
            alone = gpt2.KVCache(tiny_model.config)
            tiny_model(idx[row : row + 1, :length], cache=alone)
            cache.k[:, row], cache.v[:, row], cache.pos[row] = alone.k[:, 0], alone.v[:, 0], length
    new = torch.stack([idx[row, length : length + T] for row, length in enumerate(lengths)])
    together = tiny_model(new, cache=cache)[0]
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, 0], tiny_model(idx[row : row + 1, : length + T])[0][0, -1])
    assert cache.pos == [length + T for length in lengths]


def test_leftovers_of_an_earlier_text_in_the_cache_are_never_seen(tiny_model):
    idx = random_ids(1, 6)
    used = gpt2.KVCache(tiny_model.config)
    tiny_model(random_ids(1, 16, seed=1), cache=used)
    used.reset()
    tiny_model(idx[:, :4], cache=used)
    torch.testing.assert_close(tiny_model(idx[:, 4:], cache=used)[0], tiny_model(idx)[0][:, -1:])


def test_with_a_cache_only_the_last_position_is_scored(tiny_model):
    logits, loss = tiny_model(random_ids(2, 5), cache=gpt2.KVCache(tiny_model.config, batch_size=2))
    assert logits.shape == (2, 1, SMALL.vocab_size)
    assert loss is None


def test_with_targets_there_is_a_loss_and_no_logits(tiny_model):
    logits, loss = tiny_model(random_ids(2, 5), random_ids(2, 5, seed=1))
    assert logits is None
    assert loss.shape == ()


def test_too_long_an_input_is_refused(tiny_model):
    with pytest.raises(ValueError, match="17 tokens.*block_size=16"):
        tiny_model(random_ids(1, 17))


def test_too_long_an_input_is_refused_behind_a_cache_too(tiny_model):
    cache = gpt2.KVCache(tiny_model.config)
    tiny_model(random_ids(1, 10), cache=cache)
    with pytest.raises(ValueError, match="7 more tokens after 10.*block_size=16"):
        tiny_model(random_ids(1, 7), cache=cache)
    assert cache.pos == [10]


def test_a_fresh_model_knows_nothing():
    """Its loss is that of a uniform guess, ln(vocab_size)."""
    config = gpt2.GPTConfig(block_size=32, vocab_size=5000, n_layer=2, n_head=2, n_embd=64)
    model = gpt2.GPT(config).init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = model(random_ids(8, 32, vocab_size=5000), random_ids(8, 32, vocab_size=5000, seed=1))[1]
    assert loss.item() == pytest.approx(math.log(5000), abs=0.3)


def test_fresh_weights_are_drawn_as_gpt2_drew_them():
    config = gpt2.GPTConfig(block_size=64, vocab_size=1000, n_layer=8, n_head=2, n_embd=64)
    model = gpt2.GPT(config).init_weights(torch.Generator().manual_seed(0))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif ".ln_" in name:
            assert (p == 1).all(), name
        else:
            std = 0.02 / math.sqrt(2 * 8) if name.endswith("c_proj.weight") else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05), name
            assert p.mean().item() == pytest.approx(0, abs=0.05 * std), name


def test_the_same_generator_draws_the_same_weights_and_leaves_the_global_one_alone():
    ambient = torch.get_rng_state()
    with torch.device("meta"):
        a, b = gpt2.GPT(SMALL), gpt2.GPT(SMALL)
    a, b = (m.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(7)) for m in (a, b))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert torch.equal(ambient, torch.get_rng_state())


def test_one_batch_can_be_learned_by_heart():
    model = gpt2.GPT(SMALL).init_weights(torch.Generator().manual_seed(0))
    idx, targets = random_ids(2, 16), random_ids(2, 16, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
    for _ in range(80):
        loss = model(idx, targets)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


def test_dropout_works_while_training_and_only_then():
    config = gpt2.GPTConfig(16, 263, 2, 2, 32, dropout=0.5)
    model = gpt2.GPT(config).init_weights(torch.Generator().manual_seed(0))
    idx = random_ids(1, 8)
    assert not torch.equal(model(idx)[0], model(idx)[0])
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])


# The chunked loss. (N, C) @ (rows, C): 11 positions, of which V=13 of 16 rows are real.
N, C, V, ROWS = 11, 8, 13, 16


def loss_inputs(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, C, generator=g, requires_grad=True)
    head = torch.randn(ROWS, C, generator=g, requires_grad=True)
    targets = torch.randint(V, (N,), generator=g)
    targets[[2, 7]] = IGNORE
    return x, head, targets


def full_cross_entropy(x, head, targets) -> torch.Tensor:
    return F.cross_entropy(F.linear(x, head)[:, :V], targets, ignore_index=IGNORE)


@pytest.mark.parametrize("chunk", [1, 2, 4, 11, 2048])
def test_the_chunked_loss_equals_cross_entropy_in_value_and_gradients(monkeypatch, chunk):
    monkeypatch.setattr(model_module, "LOSS_CHUNK", chunk)
    x, head, targets = loss_inputs()
    ours = chunked_cross_entropy(x, head, targets, V)
    theirs = full_cross_entropy(x, head, targets)
    torch.testing.assert_close(ours, theirs)
    for mine, plain in zip(
        torch.autograd.grad(3 * ours, (x, head)), torch.autograd.grad(3 * theirs, (x, head)), strict=True
    ):
        torch.testing.assert_close(mine, plain)


def test_padded_rows_learn_nothing():
    x, head, targets = loss_inputs()
    chunked_cross_entropy(x, head, targets, V).backward()
    assert (head.grad[V:] == 0).all()
    assert (head.grad[:V] != 0).all()


def test_ignored_targets_give_their_position_no_gradient():
    x, head, targets = loss_inputs()
    chunked_cross_entropy(x, head, targets, V).backward()
    assert (x.grad[targets == IGNORE] == 0).all()
    assert (x.grad[targets != IGNORE] != 0).all()


def test_a_batch_with_nothing_to_score_has_no_loss_and_no_gradient():
    x, head, targets = loss_inputs()
    loss = chunked_cross_entropy(x, head, torch.full_like(targets, IGNORE), V)
    loss.backward()
    assert loss.item() == 0
    assert (x.grad == 0).all() and (head.grad == 0).all()


def test_the_loss_without_gradients_is_the_same():
    x, head, targets = loss_inputs()
    with torch.no_grad():
        assert torch.equal(chunked_cross_entropy(x, head, targets, V), chunked_cross_entropy(x, head, targets, V))
        torch.testing.assert_close(chunked_cross_entropy(x, head, targets, V), full_cross_entropy(x, head, targets))


def test_every_gradient_of_the_model_equals_plain_cross_entropy(monkeypatch):
    monkeypatch.setattr(model_module, "LOSS_CHUNK", 5)
    idx, targets = random_ids(2, 8), random_ids(2, 8, seed=1)
    targets[0, 3] = IGNORE
    model = gpt2.GPT(SMALL, pad_vocab_to=128).init_weights(torch.Generator().manual_seed(0))
    ours = model(idx, targets)[1]
    theirs = F.cross_entropy(model(idx)[0].flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(ours, theirs)
    weights = dict(model.named_parameters())
    grads = zip(
        weights, torch.autograd.grad(ours, weights.values()), torch.autograd.grad(theirs, weights.values()), strict=True
    )
    for name, mine, plain in grads:
        torch.testing.assert_close(mine, plain, msg=lambda text, name=name: f"{name}: {text}")


def test_the_loss_under_bfloat16_autocast_is_near(monkeypatch):
    monkeypatch.setattr(model_module, "LOSS_CHUNK", 5)
    model = gpt2.GPT(SMALL).init_weights(torch.Generator().manual_seed(0))
    idx, targets = random_ids(2, 8), random_ids(2, 8, seed=1)
    exact = model(idx, targets)[1]
    exact.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(idx, targets)[1]
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=1e-2)
    for name, p in model.named_parameters():
        assert p.grad.dtype == torch.float32
        assert (p.grad - expected[name]).norm() <= 0.05 * expected[name].norm() + 1e-6, name


def test_padding_never_leaves_the_model(make_model):
    plain, padded = make_model(SMALL), make_model(SMALL, pad_vocab_to=128)
    assert padded.transformer.wte.weight.shape == (384, 32)
    assert padded.config.vocab_size == 263
    state = {**plain.state_dict(), "transformer.wte.weight": padded.transformer.wte.weight.clone()}
    state["transformer.wte.weight"][:263] = plain.transformer.wte.weight
    padded.load_state_dict(state)
    idx, targets = random_ids(2, 8), random_ids(2, 8, seed=1)
    assert padded(idx)[0].shape == (2, 8, 263)
    torch.testing.assert_close(padded(idx)[0], plain(idx)[0])
    torch.testing.assert_close(padded(idx, targets)[1], plain(idx, targets)[1])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_compiler_sees_a_model_in_training_whole(dropout):
    model = gpt2.GPT(gpt2.GPTConfig(vocab_size=50, block_size=16, n_layer=2, n_head=2, n_embd=32, dropout=dropout))
    model.init_weights(torch.Generator().manual_seed(0)).train()
    idx = torch.arange(32).view(2, 16)
    _, loss = torch.compile(model, backend="eager", fullgraph=True)(idx, idx)  # raises where it would have to cut
    loss.backward()
    assert loss.isfinite() and model.transformer.wte.weight.grad.abs().sum() > 0
