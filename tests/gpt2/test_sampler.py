"""gpt2/sampler.py: transformers' filters, honest draws, text of any length, and a generator that is safe to share."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import gpt2
from gpt2 import SamplingParams, sampler
from gpt2.sampler import draw, filter_chain, sample

EVERYTHING = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "temperature": 1.0}
GREEDY = SamplingParams(temperature=0)


def collect(stream: Iterator[str]) -> tuple[list[str], gpt2.Outcome]:
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            return pieces, end.value


def run(model, tokenizer, prompt: str, params: SamplingParams) -> gpt2.Outcome:
    return collect(gpt2.generate(model, tokenizer, prompt, params))[1]


def without_a_cache(model, ids: Sequence[int], params: SamplingParams) -> tuple[int, ...]:
    """The same text, every token from a plain forward pass over the window: once it is full, its last half."""
    generator = torch.Generator().manual_seed(params.seed)
    block_size = model.config.block_size
    text, start = list(ids), max(0, len(ids) - block_size)
    while len(text) < len(ids) + params.max_new_tokens:
        if len(text) - start > block_size:
            start = len(text) - max(1, block_size // 2)
        idx = sample(model(torch.tensor([text[start:]]))[0][0, -1], params, text, generator)
        if idx == model.config.eos_token_id:
            break
        text.append(idx)
    return tuple(text[len(ids) :])


def with_config(model, **changes):
    """The same weights under another configuration."""
    other = copy.copy(model)
    other.config = replace(model.config, **changes)
    return other


# The filters


def filtered(logits: torch.Tensor, seen: Sequence[int], **params) -> torch.Tensor:
    for _, apply in filter_chain(SamplingParams(**{**EVERYTHING, **params}), seen):
        logits = apply(logits)
    return logits


def transformers_chain(**params) -> LogitsProcessorList:
    """Its processors in the order of its generate()."""
    make = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    return LogitsProcessorList([make[name](params[name]) for name in make if name in params])


@pytest.mark.parametrize("kind", ["random", "ties", "flat", "peaked", "wide"])
@pytest.mark.parametrize(
    "params",
    [{"repetition_penalty": r} for r in (0.5, 1.3, 10.0)]
    + [{"temperature": t} for t in (0.1, 0.7, 2.5)]
    + [{"top_k": k} for k in (1, 5, 50, 299, 300, 1000)]
    + [{"top_p": p} for p in (1e-9, 0.1, 0.5, 0.9, 0.9999)]
    + [{"min_p": p} for p in (1e-9, 0.05, 0.5, 1.0)]
    + [
        {"temperature": 0.8, "top_k": 40},
        {"top_k": 5, "top_p": 0.5},
        {"top_p": 0.9, "min_p": 0.1},
        {"repetition_penalty": 1.2, "temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
        {"repetition_penalty": 0.8, "temperature": 1.7, "top_k": 100, "top_p": 0.7, "min_p": 0.2},
    ],
    ids=str,
)
def test_the_filters_are_those_of_transformers(kind, params):
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(300, generator=generator)
        seen = torch.randint(300, (20,), generator=generator).tolist()
        if kind == "ties":
            logits = (2 * logits).round()
        elif kind == "flat":
            logits = torch.zeros(300)
        elif kind == "peaked":
            logits[17] = 60.0
        elif kind == "wide":
            logits = 30 * logits
        expected = transformers_chain(**params)(torch.tensor([seen]), logits[None].clone())[0]
        assert torch.equal(filtered(logits, seen, **params), expected)


def test_a_filter_that_is_off_is_not_in_the_chain():
    assert filter_chain(SamplingParams(**EVERYTHING), [1, 2]) == []
    on = SamplingParams(repetition_penalty=1.1, temperature=0.5, top_k=3, top_p=0.5, min_p=0.1)
    assert [name for name, _ in filter_chain(on, [])] == [
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
    ]


def test_the_filters_leave_their_input_alone():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    filtered(logits, [1, 2], repetition_penalty=1.5, temperature=0.5, top_k=10, top_p=0.5, min_p=0.1)
    assert torch.equal(logits, before)


def test_the_penalty_may_find_nothing_to_penalise():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(filtered(logits, [], repetition_penalty=1.5), logits)


# The draw


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0},
        {"temperature": 1e-6},
        {"temperature": 1e-40},
        {"temperature": 5e-324},
        {"top_k": 1},
        {"top_p": 1e-12},
        {"top_p": 5e-324},
        {"min_p": 1},
    ],
    ids=str,
)
def test_whatever_leaves_one_token_takes_the_likeliest(params):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(300, generator=generator)
        assert sample(logits, SamplingParams(**{**EVERYTHING, **params}), [], generator) == logits.argmax()


def test_the_draw_matches_the_probabilities():
    """Pearson's chi-square of 20,000 draws over 30 tokens; 29 degrees of freedom exceed 58.3 once in a thousand."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(30, generator=generator)
    params = SamplingParams(**EVERYTHING)
    n = 20_000
    counts = torch.bincount(torch.tensor([sample(logits, params, [], generator) for _ in range(n)]), minlength=30)
    expected = n * logits.softmax(0)
    assert ((counts - expected) ** 2 / expected).sum() < 58.3


def test_a_token_that_was_filtered_out_is_never_drawn():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.75, 0.0])
    below_one = math.nextafter(1, 0)
    assert [draw(probabilities, u) for u in (0.0, 0.2499, 0.25, 0.9, below_one)] == [1, 1, 3, 3, 3]


def test_what_top_k_leaves_is_drawn_from_as_if_nothing_had_been_left_out():
    """sample() looks at k numbers after top-k; here all of them stay in the row to the end."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(300, generator=generator)
        params = SamplingParams(top_k=1 + seed, temperature=0.9, top_p=0.9, min_p=0.01, repetition_penalty=1.1)
        same = torch.Generator().manual_seed(seed)
        kept = filtered(logits, [1, 2], **{name: getattr(params, name) for name in EVERYTHING})
        expected = draw(kept.softmax(0), float(torch.rand((), generator=same, dtype=torch.float64)))
        assert sample(logits, params, [1, 2], torch.Generator().manual_seed(seed)) == expected


def test_a_draw_takes_one_number_and_a_greedy_choice_none():
    logits = torch.randn(300, generator=torch.Generator().manual_seed(0))
    used, counted = (torch.Generator().manual_seed(1) for _ in range(2))
    sample(logits, GREEDY, [], used)
    assert torch.equal(used.get_state(), counted.get_state())
    sample(logits, SamplingParams(top_k=5), [], used)
    torch.rand((), generator=counted, dtype=torch.float64)
    assert torch.equal(used.get_state(), counted.get_state())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("params", [SamplingParams(), GREEDY])
def test_logits_that_are_not_finite_are_refused(bad, params):
    logits = torch.zeros(300)
    logits[7] = bad
    with pytest.raises(ValueError, match="not finite") as error:
        sample(logits, params, [], torch.Generator())
    assert "\n" not in str(error.value)


# SamplingParams


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_new_tokens", v) for v in (0, -1, 1.5, True, "9", None, 10**9)]
    + [("top_k", v) for v in (-1, 1.5, True, "9", None, math.nan, math.inf)]
    + [(f, v) for f in ("temperature", "top_p", "min_p") for v in (-0.1, math.nan, math.inf, True, "1", None, 1000)]
    + [("top_p", 0), ("top_p", 0.0), ("top_p", 1.01), ("min_p", 1.01)]
    + [("repetition_penalty", v) for v in (0, -1, math.nan, math.inf, True, "1", None)]
    + [("seed", v) for v in (-1, 2**63, 1.0, True, "1", math.nan)]
    + [("deadline", v) for v in (-1, math.nan, math.inf, True, "1")],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}=") as error:
        SamplingParams(**{field: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"max_new_tokens": 1, "temperature": 0, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 0, "deadline": 0},
        {"max_new_tokens": 100_000, "temperature": 100.0, "top_k": 10**9, "top_p": 1e-9, "min_p": 1.0},
        {"seed": 2**63 - 1, "deadline": None, "repetition_penalty": 100},
    ],
)
def test_the_ends_of_the_ranges_are_allowed_and_work(tiny_model, tiny_tokenizer, values):
    params = SamplingParams(**values)
    run(tiny_model, tiny_tokenizer, "the", replace(params, max_new_tokens=min(params.max_new_tokens, 3)))


# generate()


@pytest.mark.parametrize("prompt", ["the land", "", "\u65e5\u672c\U0001f642"])
def test_the_pieces_joined_are_the_new_ids_decoded(tiny_model, tiny_tokenizer, prompt):
    pieces, outcome = collect(gpt2.generate(tiny_model, tiny_tokenizer, prompt, SamplingParams(seed=1)))
    assert "".join(pieces) == tiny_tokenizer.decode(outcome.new_ids)
    assert all(pieces)


def test_without_params_the_defaults_hold(tiny_model, tiny_tokenizer):
    outcome = collect(gpt2.generate(tiny_model, tiny_tokenizer, "the"))[1]
    assert run(tiny_model, tiny_tokenizer, "the", SamplingParams(seed=outcome.seed)) == outcome


def test_the_same_seed_gives_the_same_text(tiny_model, tiny_tokenizer):
    a, b = (run(tiny_model, tiny_tokenizer, "the", SamplingParams(seed=5)) for _ in range(2))
    assert a == b
    assert a.seed == 5


def test_another_seed_gives_another_text(tiny_model, tiny_tokenizer):
    params = [SamplingParams(max_new_tokens=20, seed=seed) for seed in range(10)]
    assert len({run(tiny_model, tiny_tokenizer, "the", p).new_ids for p in params}) == 10


def test_without_a_seed_texts_differ_and_each_can_be_repeated(tiny_model, tiny_tokenizer):
    a, b = (run(tiny_model, tiny_tokenizer, "the", SamplingParams()) for _ in range(2))
    assert a.new_ids != b.new_ids
    assert run(tiny_model, tiny_tokenizer, "the", SamplingParams(seed=a.seed)) == a


def test_neither_reads_nor_moves_the_global_random_state(tiny_model, tiny_tokenizer):
    before = torch.get_rng_state()
    first = run(tiny_model, tiny_tokenizer, "the", SamplingParams(seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert run(tiny_model, tiny_tokenizer, "the", SamplingParams(seed=5)) == first


def test_two_generations_in_turn_are_the_same_as_one_after_the_other(tiny_model, tiny_tokenizer):
    params = [SamplingParams(max_new_tokens=30, seed=seed) for seed in (1, 2)]
    alone = [collect(gpt2.generate(tiny_model, tiny_tokenizer, "the", p))[0] for p in params]
    streams = [gpt2.generate(tiny_model, tiny_tokenizer, "the", p) for p in params]
    in_turn = [[], []]
    for _ in range(max(map(len, alone))):
        for pieces, stream in zip(in_turn, streams, strict=True):
            pieces.extend(piece for piece in [next(stream, None)] if piece is not None)
    assert in_turn == alone


@pytest.mark.parametrize("extra", [-1, 0, 1, 32])
@pytest.mark.parametrize("prompt", ["a", "the land of"])
def test_text_past_the_window_is_what_plain_passes_over_half_windows_give(tiny_model, tiny_tokenizer, prompt, extra):
    ids = tiny_tokenizer.encode(prompt)
    n = tiny_model.config.block_size + extra - len(ids)
    for params in (GREEDY, SamplingParams(temperature=0.9, top_k=30, top_p=0.95, min_p=0.01, repetition_penalty=1.1)):
        params = replace(params, max_new_tokens=n, seed=3)
        outcome = run(tiny_model, tiny_tokenizer, prompt, params)
        assert outcome.new_ids == without_a_cache(tiny_model, ids, params)
        assert (len(outcome.new_ids), outcome.stop_reason, outcome.dropped) == (n, "length", 0)


@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_the_smallest_windows_work(make_model, tiny_tokenizer, block_size):
    model = make_model(gpt2.GPTConfig(block_size, tiny_tokenizer.vocab_size, 1, 1, 8))
    params = SamplingParams(max_new_tokens=3 * block_size + 4, seed=1)
    ids = tiny_tokenizer.encode("the land")
    assert run(model, tiny_tokenizer, "the land", params).new_ids == without_a_cache(model, ids, params)


def test_of_an_overlong_prompt_the_tail_is_read_and_the_rest_counted(tiny_model, tiny_tokenizer):
    prompt = "What is the city but the people? "
    ids = tiny_tokenizer.encode(prompt)
    params = SamplingParams(max_new_tokens=40, seed=2)
    outcome = run(tiny_model, tiny_tokenizer, prompt, params)
    assert outcome.dropped == len(ids) - 16 > 0
    assert outcome.new_ids == run(tiny_model, tiny_tokenizer, tiny_tokenizer.decode(ids[-16:]), params).new_ids
    assert outcome.new_ids == without_a_cache(tiny_model, ids, params)


def test_a_prompt_that_just_fits_loses_nothing(tiny_model, tiny_tokenizer):
    prompt = "x" * 16
    outcome = run(tiny_model, tiny_tokenizer, prompt, SamplingParams(max_new_tokens=3, seed=2))
    assert outcome.dropped == 0
    assert run(tiny_model, tiny_tokenizer, prompt + "x", SamplingParams(max_new_tokens=3, seed=2)).dropped == 1


def test_the_penalty_remembers_what_the_window_has_lost(tiny_model, tiny_tokenizer):
    """With a strong penalty no id comes twice, though the window is far shorter than the text."""
    model = with_config(copy.deepcopy(tiny_model), eos_token_id=0)
    model.transformer.ln_f.weight.mul_(0.1)  # flat enough for the penalty to outweigh everything
    model.transformer.ln_f.bias.fill_(0)
    ids = run(model, tiny_tokenizer, "the", SamplingParams(max_new_tokens=60, temperature=0, repetition_penalty=100))
    assert len(set(ids.new_ids)) == len(ids.new_ids) > 32


@pytest.mark.parametrize("bos", [5, 262])
def test_an_empty_prompt_starts_from_bos(tiny_model, tiny_tokenizer, bos):
    model = with_config(tiny_model, bos_token_id=bos)
    params = SamplingParams(max_new_tokens=10, seed=2)
    assert run(model, tiny_tokenizer, "", params).new_ids == without_a_cache(model, [bos], params)


def test_an_untrained_model_never_leaves_the_vocabulary(tiny_tokenizer):
    """Of 384 rows only 263 have a token; a fresh model has no preference."""
    config = gpt2.GPTConfig(16, tiny_tokenizer.vocab_size, 1, 1, 8, eos_token_id=0)
    model = gpt2.GPT(config, pad_vocab_to=128).init_weights(torch.Generator().manual_seed(0)).eval()
    params = SamplingParams(max_new_tokens=500, top_k=0, temperature=100.0)
    drawn = [run(model, tiny_tokenizer, "", replace(params, seed=seed)).new_ids for seed in range(4)]
    assert sum(map(len, drawn)) > 500
    assert all(0 <= idx < tiny_tokenizer.vocab_size for ids in drawn for idx in ids)


# Why it stops


def test_it_stops_at_the_length_asked_for(tiny_model, tiny_tokenizer):
    outcome = run(tiny_model, tiny_tokenizer, "the", SamplingParams(max_new_tokens=7, temperature=0))
    assert (outcome.stop_reason, len(outcome.new_ids)) == ("length", 7)


def test_end_of_text_ends_the_stream_and_is_not_part_of_it(tiny_model, tiny_tokenizer):
    free = run(tiny_model, tiny_tokenizer, "the", SamplingParams(max_new_tokens=30, seed=1)).new_ids
    at = next(i for i, idx in enumerate(free) if i >= 3 and idx not in free[:i])
    model = with_config(tiny_model, eos_token_id=free[at])
    outcome = run(model, tiny_tokenizer, "the", SamplingParams(max_new_tokens=30, seed=1))
    assert (outcome.stop_reason, outcome.new_ids) == ("end-of-text", free[:at])


def test_end_of_text_may_come_first(tiny_model, tiny_tokenizer):
    first = run(tiny_model, tiny_tokenizer, "the", replace(GREEDY, max_new_tokens=1)).new_ids[0]
    pieces, outcome = collect(gpt2.generate(with_config(tiny_model, eos_token_id=first), tiny_tokenizer, "the", GREEDY))
    assert (pieces, outcome.stop_reason, outcome.new_ids) == ([], "end-of-text", ())


def test_the_deadline_stops_it(tiny_model, tiny_tokenizer, monkeypatch):
    seconds = iter(range(1000))
    monkeypatch.setattr(sampler.time, "monotonic", lambda: float(next(seconds)))
    outcome = run(tiny_model, tiny_tokenizer, "the", SamplingParams(temperature=0, deadline=5))
    assert (outcome.stop_reason, len(outcome.new_ids)) == ("deadline", 4)


def test_a_deadline_of_zero_gives_nothing(tiny_model, tiny_tokenizer):
    outcome = run(tiny_model, tiny_tokenizer, "the", SamplingParams(deadline=0))
    assert (outcome.stop_reason, outcome.new_ids) == ("deadline", ())


def test_a_character_cut_by_the_end_is_shown_as_broken(tiny_model, tiny_tokenizer):
    """Half a character is held back until the end, and then shown as U+FFFD, as decode() does."""
    model = copy.deepcopy(tiny_model)
    lead = tiny_tokenizer.encode("\U0001f642")[0]
    model.transformer.ln_f.weight.zero_()
    model.transformer.ln_f.bias.copy_(100 * model.transformer.wte.weight[lead])
    pieces, outcome = collect(gpt2.generate(model, tiny_tokenizer, "a", replace(GREEDY, max_new_tokens=1)))
    assert (outcome.new_ids, pieces) == ((lead,), ["\ufffd"])


def test_a_damaged_model_ends_in_one_sentence(tiny_model, tiny_tokenizer):
    model = copy.deepcopy(tiny_model)
    model.transformer.ln_f.bias[0] = math.nan
    with pytest.raises(ValueError, match="damaged") as error:
        run(model, tiny_tokenizer, "the", SamplingParams())
    assert "\n" not in str(error.value)


# Threads and inference mode


def test_every_token_is_computed_in_inference_mode(tiny_model, tiny_tokenizer, monkeypatch):
    modes = []

    def spy(*args):
        modes.append(torch.is_inference_mode_enabled())
        return sample(*args)

    monkeypatch.setattr(sampler, "sample", spy)
    stream = gpt2.generate(tiny_model, tiny_tokenizer, "the", SamplingParams(max_new_tokens=6, seed=1))
    for use in (lambda: next(stream), lambda: collect(stream)):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert modes == [True] * 6


def test_inference_mode_stays_inside(tiny_model, tiny_tokenizer):
    stream = gpt2.generate(tiny_model, tiny_tokenizer, "the", SamplingParams(seed=1))
    assert not torch.is_inference_mode_enabled()
    for _ in range(3):
        next(stream)
        assert not torch.is_inference_mode_enabled()
    stream.close()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_it_can_be_closed_at_any_time(tiny_model, tiny_tokenizer, steps):
    stream = gpt2.generate(tiny_model, tiny_tokenizer, "the", SamplingParams(seed=1))
    for _ in range(steps):
        next(stream)
    stream.close()
    assert next(stream, "over") == "over"
    assert torch.ones(1, requires_grad=True).sum().requires_grad


def test_it_can_be_stepped_from_one_thread_after_another(tiny_model, tiny_tokenizer):
    params = SamplingParams(max_new_tokens=40, seed=1)
    expected = collect(gpt2.generate(tiny_model, tiny_tokenizer, "the", params))[0]
    stream = gpt2.generate(tiny_model, tiny_tokenizer, "the", params)
    pieces, leaked = [], []

    def step():
        pieces.append(next(stream))
        leaked.append(torch.is_inference_mode_enabled())

    for turn in range(len(expected)):
        if turn % 3:
            thread = threading.Thread(target=step)
            thread.start()
            thread.join()
        else:
            step()
    assert pieces == expected
    assert not any(leaked)
    closer = threading.Thread(target=stream.close)
    closer.start()
    closer.join()
    assert not torch.is_inference_mode_enabled()


def test_the_model_can_still_learn_after_generating(tiny_model, tiny_tokenizer):
    model = copy.deepcopy(tiny_model).requires_grad_(True)
    run(model, tiny_tokenizer, "the", SamplingParams(max_new_tokens=3, seed=1))
    model(torch.zeros(1, 4, dtype=torch.int64), torch.zeros(1, 4, dtype=torch.int64))[1].backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("size", [1, 63, 64, 130, 2048, 50_257])
@pytest.mark.parametrize("k", [1, 7, 50, 1000])
@pytest.mark.parametrize("decimals", [0, 1, 6])  # of the scores: the fewer, the more of them tie
def test_the_top_k_of_many_are_those_of_the_filter(size, k, decimals):
    logits = torch.randn(size, generator=torch.Generator().manual_seed(size + k)).round(decimals=decimals)
    logits[-1] = 3.0  # in no whole block
    (_, apply), *_ = sampler.filter_chain(SamplingParams(top_k=k), [])
    assert sampler._top_ids(logits, k).tolist() == (apply(logits) > -math.inf).nonzero().squeeze(1).tolist()
