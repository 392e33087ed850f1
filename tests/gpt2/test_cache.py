"""gpt2/cache.py: positions, masks and where keys and values are kept. That cached logits are right: test_model.py."""

from __future__ import annotations

import pytest
import torch

from gpt2 import GPTConfig, KVCache

CONFIG = GPTConfig(block_size=6, vocab_size=257, n_layer=2, n_head=2, n_embd=8)


def keys_and_values(B: int, T: int, start: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    k = torch.arange(B * 2 * T * 4, dtype=torch.float32).view(B, 2, T, 4) + start
    return k, -k


def test_all_memory_is_taken_once():
    cache = KVCache(CONFIG, batch_size=3, dtype=torch.float16)
    k, v = cache.k.data_ptr(), cache.v.data_ptr()
    assert cache.k.shape == cache.v.shape == (2, 3, 2, 6, 4)
    assert cache.k.dtype == torch.float16
    cache.update(0, *(t.half() for t in keys_and_values(3, 4)))
    cache.advance(4)
    cache.reset()
    assert (cache.k.data_ptr(), cache.v.data_ptr()) == (k, v)


def test_positions_go_on_from_where_each_row_is():
    cache = KVCache(CONFIG, batch_size=3)
    cache.pos = [0, 2, 3]
    assert cache.positions(3).tolist() == [[0, 1, 2], [2, 3, 4], [3, 4, 5]]


def test_a_row_can_be_filled_to_the_last_position_and_no_further():
    cache = KVCache(CONFIG, batch_size=2)
    cache.pos = [5, 1]
    assert cache.positions(1).tolist() == [[5], [1]]
    with pytest.raises(ValueError, match="2 more tokens after 5.*block_size=6"):
        cache.positions(2)


def test_advance_counts_in_every_row_and_reset_forgets():
    cache = KVCache(CONFIG, batch_size=2)
    cache.pos = [0, 2]
    cache.advance(3)
    assert cache.pos == [3, 5]
    cache.reset()
    assert cache.pos == [0, 0]


def test_what_was_stored_comes_back_with_what_came_before():
    cache = KVCache(CONFIG, batch_size=2)
    k1, v1 = keys_and_values(2, 3)
    cache.update(1, k1, v1)
    cache.advance(3)
    k2, v2 = keys_and_values(2, 2, start=100.0)
    k, v = cache.update(1, k2, v2)
    assert torch.equal(k, torch.cat([k1, k2], dim=2))
    assert torch.equal(v, torch.cat([v1, v2], dim=2))
    assert (cache.k[0] == 0).all()  # the other layer


def test_each_row_stores_at_its_own_position():
    cache = KVCache(CONFIG, batch_size=2)
    cache.pos = [0, 3]
    k, v = keys_and_values(2, 2)
    keys, values = cache.update(0, k, v)
    assert keys.shape == values.shape == (2, 2, 5, 4)
    assert torch.equal(keys[0, :, 0:2], k[0]) and torch.equal(keys[1, :, 3:5], k[1])
    assert torch.equal(values[0, :, 0:2], v[0]) and torch.equal(values[1, :, 3:5], v[1])
    assert (keys[0, :, 2:] == 0).all() and (keys[1, :, :3] == 0).all()


@pytest.mark.parametrize(("pos", "T"), [([0, 0], 4), ([0], 1), ([3, 3], 1)])
def test_no_mask_where_attention_needs_none(pos, T):
    cache = KVCache(CONFIG, batch_size=len(pos))
    cache.pos = pos
    assert cache.mask(T) is None


@pytest.mark.parametrize(("pos", "T"), [([2, 2], 3), ([0, 3], 2), ([1, 4], 1), ([3], 3)])
def test_a_token_sees_itself_and_what_came_before_in_its_row(pos, T):
    cache = KVCache(CONFIG, batch_size=len(pos))
    cache.pos = pos
    mask = cache.mask(T)
    assert mask.shape == (len(pos), 1, T, max(pos) + T)
    for b, start in enumerate(pos):
        for t in range(T):
            assert mask[b, 0, t].tolist() == [s <= start + t for s in range(max(pos) + T)]
