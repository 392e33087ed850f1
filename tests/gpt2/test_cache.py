"""gpt2/cache.py: positions, masks and where keys and values are kept. That cached logits are right: test_model.py."""

from __future__ import annotations

import math

import pytest
import torch

from gpt2 import GPTConfig, KVCache
from gpt2.cache import PIECE, weighted_sum

CONFIG = GPTConfig(block_size=6, vocab_size=257, n_layer=2, n_head=2, n_embd=8)


def keys_and_values(B: int, T: int, start: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    k = torch.arange(B * 2 * T * 4, dtype=torch.float32).view(B, 2, T, 4) + start
    return k, -k


def test_all_memory_is_taken_once():
    cache = KVCache(CONFIG, batch_size=3, dtype=torch.float16)
    k, v = cache.k.data_ptr(), cache.v.data_ptr()
    assert cache.k.shape == cache.v.shape == (2, 3, 2, PIECE, 4)
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
    assert torch.equal(k[:, :, :5], torch.cat([k1, k2], dim=2))
    assert torch.equal(v[:, :, :5], torch.cat([v1, v2], dim=2))
    assert (cache.k[0] == 0).all()  # the other layer


def test_each_row_stores_at_its_own_position():
    cache = KVCache(CONFIG, batch_size=2)
    cache.pos = [0, 3]
    k, v = keys_and_values(2, 2)
    keys, values = cache.update(0, k, v)
    assert keys.shape == values.shape == (2, 2, PIECE, 4)
    assert torch.equal(keys[0, :, 0:2], k[0]) and torch.equal(keys[1, :, 3:5], k[1])
    assert torch.equal(values[0, :, 0:2], v[0]) and torch.equal(values[1, :, 3:5], v[1])
    assert (keys[0, :, 2:] == 0).all() and (keys[1, :, :3] == 0).all()


@pytest.mark.parametrize(("pos", "T"), [([0, 0], 4), ([0], 1), ([2, 2], 3), ([0, 3], 2), ([1, 4], 1), ([3], 3)])
def test_a_token_sees_itself_and_what_came_before_in_its_row(pos, T):
    cache = KVCache(CONFIG, batch_size=len(pos))
    cache.pos = pos
    mask = cache.mask(T)
    assert mask.shape == (len(pos), 1, T, PIECE)
    for b, start in enumerate(pos):
        for t in range(T):
            assert mask[b, 0, t].tolist() == [s <= start + t for s in range(PIECE)]


def test_keys_are_read_in_whole_pieces_so_that_no_row_sees_how_long_another_is():
    cache = KVCache(GPTConfig(block_size=200, vocab_size=257, n_layer=1, n_head=2, n_embd=8), batch_size=2)
    for pos, size in ([0, 0], 64), ([3, 63], 64), ([3, 64], 128), ([199, 0], 256):
        cache.pos = pos
        assert cache.mask(1).size(-1) == cache.update(0, *keys_and_values(2, 1))[0].size(2) == size


def test_a_row_joins_as_the_last_and_the_last_takes_the_place_of_one_that_leaves():
    cache, rows = KVCache(CONFIG, batch_size=3), []
    cache.pos = []
    for T in (2, 4, 3):
        rows.append(KVCache(CONFIG))
        for layer in range(2):
            rows[-1].update(layer, *keys_and_values(1, T, start=100.0 * T + layer))
        rows[-1].advance(T)
        cache.join(rows[-1])

    def holds(*expected: KVCache) -> bool:
        same = [
            torch.equal(mine[:, b, :, : row.pos[0]], its[:, 0, :, : row.pos[0]])
            for b, row in enumerate(expected)
            for mine, its in ((cache.k, row.k), (cache.v, row.v))
        ]
        return all(same) and cache.pos == [row.pos[0] for row in expected]

    assert holds(*rows)
    cache.leave(0)
    assert holds(rows[2], rows[1])
    cache.leave(1)
    assert holds(rows[2])
    cache.leave(0)
    assert cache.pos == []


@torch.no_grad()
def test_numbers_that_overflowed_in_one_text_reach_no_other(tiny_model):
    idx, cache = torch.arange(4).view(1, 4), KVCache(tiny_model.config, batch_size=3)
    tiny_model(idx[:, :3].expand(3, 3), cache=cache)
    cache.v[:, [0, 2], :, 1:4] = math.nan  # the fourth by a step that failed half-way
    cache.leave(2)
    cache.leave(0)
    cache.join(KVCache(tiny_model.config))
    assert cache.pos == [3, 0]
    found = tiny_model(torch.tensor([[3], [0]]), cache=cache)[0][:, 0]  # one goes on, another begins in an old row
    torch.testing.assert_close(found[0], tiny_model(idx)[0][0, -1])
    torch.testing.assert_close(found[1], tiny_model(idx)[0][0, 0])


def test_a_step_moves_only_the_rows_that_are_there():
    cache = KVCache(CONFIG, batch_size=3)
    cache.pos = [1, 4]
    assert cache.positions(1).tolist() == [[1], [4]]
    k, v = cache.update(0, *keys_and_values(2, 1))
    assert k.size(0) == v.size(0) == 2
    assert (cache.k[:, 2] == 0).all()


@torch.inference_mode()
@pytest.mark.parametrize("B", [1, 2, 5])
@pytest.mark.parametrize("T", [1, 3])
def test_values_are_weighted_as_a_product_would_and_in_any_company_to_the_same_bits(B, T):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 3, 4 * PIECE, 8, generator=generator)[:B, :, : 2 * PIECE]  # as rows of a cache: with gaps
    weights = torch.rand(B, 3, T, 2 * PIECE, generator=generator)
    weights[..., PIECE - 7 :] = 0
    found = weighted_sum(weights, values)
    torch.testing.assert_close(found, weights @ values, atol=1e-5, rtol=1e-5)
    assert torch.equal(weighted_sum(weights[:1], values[:1]), found[:1])
    if T == 1:
        assert torch.equal(weighted_sum(weights[..., :PIECE], values[:, :, :PIECE]), found)
