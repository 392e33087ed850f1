"""Bits per byte: every byte once. Calibration: of what was counted."""

from __future__ import annotations

import math

import pytest
import torch

import gpt2
from gpt2.model import IGNORE
from train import scoring
from train.dataset import Part


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("n", [2, 7, 8, 9, 16, 17, 40])
def test_every_token_but_the_separators_is_a_target_exactly_once(n, overlap):
    part = Part(torch.arange(100, 100 + n), starts=(0, 5) if n > 5 else (0,), bytes=n)
    seen = []
    for idx, targets in scoring.windows(part, block_size=8, overlap=overlap):
        assert len(idx) == len(targets) == 8
        for here, following in zip(idx.tolist(), targets.tolist(), strict=True):
            if following != IGNORE:
                assert following == here + 1
                seen.append(following)
    assert seen == [100 + i for i in range(n) if i not in part.starts]


def test_with_overlap_every_target_after_the_first_window_has_half_a_window_of_context():
    part = Part(torch.arange(50), starts=(0,), bytes=50)
    for idx, targets in list(scoring.windows(part, block_size=8, overlap=True))[1:]:
        assert (targets[:4] == IGNORE).all()
        assert int(idx[0]) % 4 == 0


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32])
def test_windows_are_cut_as_from_a_whole_copy_in_memory(dtype, overlap):
    n, T, stride = 203, 16, 8 if overlap else 16
    ids = torch.randint(0, 500, (n,), generator=torch.Generator().manual_seed(1))
    starts = (0, 1, 16, 17, 40, 64, 201, 202)
    targets = ids.clone()
    targets[list(starts)] = IGNORE
    targets = torch.cat([targets[1:], torch.full((T + 1,), IGNORE)])  # targets[i] comes after ids[i]
    padded, scored, expected = torch.cat([ids, torch.zeros(T, dtype=torch.long)]), 0, []
    while scored < n - 1:
        start = max(0, scored + stride - T)
        y = targets[start : start + T].clone()
        y[: scored - start] = IGNORE
        expected.append((padded[start : start + T], y))
        scored = start + T
    found = list(scoring.windows(Part(ids.to(dtype), starts, 1), T, overlap))
    torch.testing.assert_close(found, expected)


def test_windows_take_no_more_of_the_ids_than_they_show():
    class Slices:
        def __getitem__(self, where: slice) -> torch.Tensor:
            assert where.stop - where.start <= 17
            return torch.zeros(where.stop - where.start, dtype=torch.uint16)

        def numel(self) -> int:
            return 10**12  # tokens: no memory holds them

    windows = scoring.windows(Part(Slices(), (0,), 10**12), block_size=16, overlap=True)
    assert [next(windows)[0].shape for _ in range(3)] == [(16,)] * 3


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_token():
    config = gpt2.GPTConfig(block_size=8, vocab_size=256, n_layer=1, n_head=1, n_embd=8)
    model = gpt2.GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    part = Part(torch.randint(0, 256, (101,)), starts=(0,), bytes=50)
    score = scoring.score(model, part)
    assert score.bits_per_byte == pytest.approx(8 * 100 / 50)
    assert score.perplexity == pytest.approx(256)
    assert score.tokens == 100


def test_the_score_is_the_sum_over_plain_forward_passes(tiny_model, monkeypatch):
    monkeypatch.setattr(scoring, "EVAL_TOKENS", 48)  # several batches
    ids = torch.randint(0, tiny_model.config.vocab_size, (100,), generator=torch.Generator().manual_seed(0))
    score = scoring.score(tiny_model, Part(ids, starts=(0,), bytes=321))
    nats = 0.0
    for start in range(0, 99, 16):
        window = ids[start : start + 17]
        logits, _ = tiny_model(window[None, :-1])
        nats += float(torch.nn.functional.cross_entropy(logits[0], window[1:], reduction="sum"))
    assert score.nats == pytest.approx(nats, rel=1e-5)
    assert score.bits_per_byte == pytest.approx(nats / math.log(2) / 321, rel=1e-5)


def test_scoring_leaves_the_models_mode_as_it_was(tiny_model):
    part = Part(torch.arange(20), starts=(0,), bytes=20)
    model = gpt2.GPT(tiny_model.config).train()
    scoring.score(model, part)
    assert model.training


def test_calibration_is_the_distance_of_confidence_from_accuracy_in_fifteen_bins():
    top = torch.tensor([0.1, 0.1, 0.95, 0.97, 1.0, 14 / 15])
    hit = torch.tensor([True, False, True, True, False, True])
    result = scoring.Score(torch.zeros(6), top, hit, bytes=6)
    rows = result.calibration()
    assert [(row["tokens"], row["up_to"]) for row in rows] == [(2, 2 / 15), (1, 14 / 15), (3, 1.0)]
    assert [row["accuracy"] for row in rows] == pytest.approx([1 / 2, 1, 2 / 3])
    assert [row["confidence"] for row in rows] == pytest.approx([0.1, 14 / 15, 2.92 / 3])
    assert result.calibration_error == pytest.approx((2 * 0.4 + 1 / 15 + 3 * (2.92 - 2) / 3) / 6)
    assert result.accuracy == pytest.approx(4 / 6)


def test_a_large_vocabulary_is_scored_in_smaller_batches(tiny_model, monkeypatch):
    part = Part(torch.randint(0, 263, (200,), generator=torch.Generator().manual_seed(0)), starts=(0, 50), bytes=200)
    passes = []
    whole = scoring.score(tiny_model, part, done=passes.append)
    assert passes == [198]
    monkeypatch.setattr(scoring, "MAX_LOGITS", 1)
    assert scoring.score(tiny_model, part, done=passes.append).nats == pytest.approx(whole.nats, rel=1e-6)
    assert sum(passes[1:]) == 198 and len(passes) == 1 + 13
