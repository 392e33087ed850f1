"""What the model thinks of a text: the same numbers that the sampler used, and that transformers and train/ compute."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import gpt2
from gpt2 import explain
from gpt2.sampler import filter_chain, sample
from train import scoring
from train.dataset import Part

TEXT = "the land and the inn, out there 😀 ÿ"


def generated(model, tokenizer, prompt: str, params: gpt2.SamplingParams) -> list[int]:
    stream = gpt2.generate(model, tokenizer, prompt, params)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return list(end.value.new_ids)


@pytest.fixture
def seen_by_the_sampler(monkeypatch):
    """Every (logits, text so far) that sample() is given, as a list that fills."""
    seen = []

    def watch(logits, params, text, generator):
        seen.append((logits.clone(), list(text)))
        return sample(logits, params, text, generator)

    monkeypatch.setattr("gpt2.sampler.sample", watch)
    return seen


PARAMS = gpt2.SamplingParams(max_new_tokens=60, temperature=0.8, top_k=20, min_p=0.01, repetition_penalty=1.2, seed=5)


@pytest.mark.parametrize("prompt", ["", "the ", "out " * 15])  # of 1 to 60 tokens; the window has 16
def test_a_generated_text_gets_the_probabilities_that_the_sampler_saw(
    tiny_model, tiny_tokenizer, seen_by_the_sampler, prompt
):
    ids = generated(tiny_model, tiny_tokenizer, prompt, PARAMS)
    assert len(ids) > 40  # so that the window is re-read more than once
    scored = gpt2.score(tiny_model, tiny_tokenizer, ids, prompt=prompt, params=PARAMS)
    for token, idx, (logits, text) in zip(scored.tokens, ids, seen_by_the_sampler, strict=False):
        assert token.id == idx
        assert token.logprob == pytest.approx(float(logits.log_softmax(0)[idx]), abs=1e-4)
        likeliest = token.alternatives[0]
        for _, apply in filter_chain(PARAMS, text):
            logits = apply(logits)
        assert likeliest.filtered == pytest.approx(float(logits.softmax(0)[likeliest.id]), abs=1e-4)


@pytest.mark.parametrize("prompt", ["", "the ", "out " * 15])
def test_every_step_of_a_generation_can_be_replayed_from_its_seed(tiny_model, tiny_tokenizer, prompt):
    ids = generated(tiny_model, tiny_tokenizer, prompt, PARAMS)
    for n, idx in enumerate(ids):
        u = explain.uniform(PARAMS.seed, n)
        found = gpt2.next_tokens(tiny_model, tiny_tokenizer, prompt, 5, PARAMS, u, drawn=ids[:n])
        assert found.chosen.id == idx
        assert found.interval[0] <= u < found.interval[1]
        width = found.interval[1] - found.interval[0]
        assert width == pytest.approx(found.chosen.filtered, abs=1e-6)


def test_the_steps_are_the_filter_chain_and_end_in_what_can_be_drawn(tiny_model, tiny_tokenizer):
    params = gpt2.SamplingParams(temperature=0.7, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.3)
    found = gpt2.next_tokens(tiny_model, tiny_tokenizer, "the land", 8, params)
    names = [name for name, _ in filter_chain(params, [])]
    assert [step.name for step in found.steps] == ["raw", *names]
    assert names == ["repetition_penalty", "temperature", "top_k", "top_p", "min_p"]
    survivors = [step.survivors for step in found.steps]
    assert survivors == sorted(survivors, reverse=True)
    assert survivors[:3] == [263, 263, 263] and survivors[3] == 40
    assert found.steps[0].probabilities == tuple(c.probability for c in found.candidates)
    assert found.steps[-1].probabilities == tuple(c.filtered for c in found.candidates)
    assert found.chosen is None and found.interval is None  # no number was given


def test_the_chosen_token_and_those_that_are_asked_for_follow_the_likeliest(tiny_model, tiny_tokenizer):
    hot = gpt2.SamplingParams(temperature=2.0, top_k=0, top_p=1.0)
    every = gpt2.next_tokens(tiny_model, tiny_tokenizer, "the", 263, hot).candidates
    found = gpt2.next_tokens(tiny_model, tiny_tokenizer, "the", 2, hot, 0.99, also=[every[40].id, every[1].id])
    assert found.chosen.id not in [c.id for c in (*every[:2], every[40])]
    assert [c.id for c in found.candidates] == [every[0].id, every[1].id, found.chosen.id, every[40].id]
    assert all(len(step.probabilities) == 4 for step in found.steps)


def test_a_token_that_the_filters_removed_has_probability_zero(tiny_model, tiny_tokenizer):
    params = gpt2.SamplingParams(top_k=3)
    found = gpt2.next_tokens(tiny_model, tiny_tokenizer, "the", 10, params)
    assert [c.filtered > 0 for c in found.candidates] == [True] * 3 + [False] * 7
    assert sum(c.filtered for c in found.candidates) == pytest.approx(1)
    assert all(c.probability > 0 for c in found.candidates)


def test_greedy_chooses_the_likeliest_and_needs_no_chance(tiny_model, tiny_tokenizer):
    found = gpt2.next_tokens(tiny_model, tiny_tokenizer, "the", 3, gpt2.SamplingParams(temperature=0))
    assert found.steps[-1].name == "greedy" and found.steps[-1].survivors == 1
    assert found.chosen == found.candidates[0] and found.chosen.filtered == 1
    assert found.interval is None


def test_rank_entropy_and_log_probability_are_those_of_the_whole_distribution(tiny_model, tiny_tokenizer):
    scored = gpt2.score(tiny_model, tiny_tokenizer, "the land")
    ids = [tiny_model.config.bos_token_id, *tiny_tokenizer.encode("the land")]
    logits = tiny_model(torch.tensor([ids[:-1]]))[0][0].double()
    for token, row, idx in zip(scored.tokens, logits, ids[1:], strict=True):
        p = row.softmax(0)
        assert token.logprob == pytest.approx(float(p[idx].log()), abs=1e-5)
        assert token.entropy == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
        assert token.rank == p.sort(descending=True).indices.tolist().index(idx) + 1
        assert [c.id for c in token.alternatives] == p.topk(10).indices.tolist()
    assert scored.nats == pytest.approx(sum(-t.logprob for t in scored.tokens))
    assert scored.perplexity == pytest.approx(math.exp(scored.nats / len(scored.tokens)))


def bits_per_byte_by_the_trainer(model, tokenizer, text: str) -> float:
    ids = torch.tensor([model.config.bos_token_id, *tokenizer.encode(text)])
    part = Part(ids, starts=(0,), bytes=len(text.encode("utf-8")))
    return scoring.score(model, part, overlap=True).bits_per_byte


def test_a_text_that_fits_into_the_window_has_the_trainers_bits_per_byte(tiny_model, tiny_tokenizer):
    text = "the land and 😀"
    assert len(tiny_tokenizer.encode(text)) <= 16
    expected = bits_per_byte_by_the_trainer(tiny_model, tiny_tokenizer, text)
    assert gpt2.score(tiny_model, tiny_tokenizer, text).bits_per_byte == pytest.approx(expected, abs=1e-5)


def test_a_longer_one_is_read_with_as_much_context_as_in_the_trainers_half_overlapping_windows():
    model, tokenizer = gpt2.load(gpt2.BUNDLED, "cpu", "float32")
    text = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n" * 12
    text += "JULIET:\nO Romeo, Romeo! wherefore art thou Romeo?\nDeny thy father and refuse thy name;\n" * 12
    assert len(tokenizer.encode(text)) > 2.5 * model.config.block_size
    expected = bits_per_byte_by_the_trainer(model, tokenizer, text)
    assert gpt2.score(model, tokenizer, text, alternatives=1).bits_per_byte == pytest.approx(expected, abs=0.01)


def test_a_prompt_is_read_and_not_scored(tiny_model, tiny_tokenizer):
    scored = gpt2.score(tiny_model, tiny_tokenizer, " land", prompt="the")
    assert "".join(token.text for token in scored.tokens) == " land"
    logits = tiny_model(torch.tensor([tiny_tokenizer.encode("the")]))[0][0, -1]
    assert scored.tokens[0].logprob == pytest.approx(float(logits.log_softmax(0)[scored.tokens[0].id]), abs=1e-5)


def test_a_perplexity_beyond_all_floats_is_a_number_all_the_same():
    assert 1e300 < explain.Score((None,), 800.0, 1).perplexity < math.inf
    assert explain.Score((None,), 0.0, 1).perplexity == 1.0


def test_an_empty_text_has_no_tokens_and_no_figure(tiny_model, tiny_tokenizer):
    scored = gpt2.score(tiny_model, tiny_tokenizer, "")
    assert scored == explain.Score((), 0.0, 0)
    assert scored.bits_per_byte is None and scored.perplexity is None


def test_an_empty_prompt_starts_a_text(tiny_model, tiny_tokenizer):
    bos = tiny_model.config.bos_token_id
    assert gpt2.next_tokens(tiny_model, tiny_tokenizer, "") == gpt2.next_tokens(tiny_model, tiny_tokenizer, [bos])


def test_pieces_of_characters_are_shown_as_bytes_and_all_bytes_are_counted(tiny_model, tiny_tokenizer):
    scored = gpt2.score(tiny_model, tiny_tokenizer, TEXT)
    assert scored.bytes == len(TEXT.encode("utf-8"))
    shown = [token.text for token in scored.tokens]
    assert [text for text in shown if "\\" in text] == [r"\xf0", r"\x9f", r"\x98", r"\x80", r"\xc3", r"\xbf"]
    assert not any("\N{REPLACEMENT CHARACTER}" in text for text in shown)


@pytest.mark.parametrize("text", ["\ud83d", "\x00\x07", "日本語のテキスト" * 9, "a" * 300])
def test_any_text_can_be_scored(tiny_model, tiny_tokenizer, text):
    scored = gpt2.score(tiny_model, tiny_tokenizer, text)
    assert len(scored.tokens) == len(tiny_tokenizer.encode(text))
    assert scored.bits_per_byte > 0


def test_the_marker_of_the_end_has_no_bytes(tiny_model, tiny_tokenizer):
    scored = gpt2.score(tiny_model, tiny_tokenizer, [tiny_tokenizer.endoftext], prompt="the")
    assert scored.bytes == 0 and scored.nats > 0 and scored.bits_per_byte is None
    assert scored.tokens[0].text == "<|endoftext|>"


def test_what_is_found_becomes_json(tiny_model, tiny_tokenizer):
    scored = gpt2.score(tiny_model, tiny_tokenizer, TEXT, alternatives=2)
    found = gpt2.next_tokens(tiny_model, tiny_tokenizer, TEXT, 4, u=0.5)
    for value in (scored, found):
        as_dict = dataclasses.asdict(value)
        assert json.loads(json.dumps(as_dict, allow_nan=False)) == json.loads(json.dumps(as_dict))


def test_a_window_of_one_token_works(make_model, tiny_tokenizer):
    config = gpt2.GPTConfig(block_size=1, vocab_size=tiny_tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8)
    scored = gpt2.score(make_model(config), tiny_tokenizer, "the land")
    assert "".join(token.text for token in scored.tokens) == "the land"


def test_more_candidates_than_tokens_are_all_there_are(tiny_model, tiny_tokenizer):
    found = gpt2.next_tokens(tiny_model, tiny_tokenizer, "the", 1000, gpt2.SamplingParams(top_k=0))
    assert len(found.candidates) == 263
    assert sum(c.probability for c in found.candidates) == pytest.approx(1, abs=1e-4)


def test_a_broken_model_is_named_as_such(tiny_tokenizer, tiny_model):
    model = gpt2.GPT(tiny_model.config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    for ask in (gpt2.score, gpt2.next_tokens):
        with pytest.raises(ValueError, match="checkpoint is damaged"):
            ask(model.eval(), tiny_tokenizer, "the")
