"""Vocabularies learned from a text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt2.tokenizer import Tokenizer
from train import vocabulary

TEXT = "the cat sat on the mat, and the cat sang: la la la \u00e9t\u00e9 \U0001f431\n" * 20


@pytest.mark.parametrize("spec", ["gpt2", "bpe:300", "char"])
def test_a_learned_vocabulary_gives_any_text_back(spec):
    tokenizer = vocabulary.build(spec, [TEXT], len(TEXT))
    text = TEXT + "unseen \u4e2d\u6587 \U0001f984\r\n\x00"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bpe_n_counts_bytes_merges_and_endoftext():
    tokenizer = vocabulary.build("bpe:270", [TEXT], len(TEXT))
    assert tokenizer.vocab_size == 270
    assert tokenizer.endoftext == 269


def test_a_text_with_too_few_pairs_gives_a_smaller_vocabulary():
    assert 257 < vocabulary.build("bpe:5000", [TEXT], len(TEXT)).vocab_size < 1000


def test_char_gives_every_seen_character_one_id_and_the_rest_their_bytes():
    tokenizer = vocabulary.build("char", [TEXT], len(TEXT))
    assert all(len(tokenizer.encode(char)) == 1 for char in set(TEXT))
    assert len(tokenizer.encode("\u4e2d")) == 3
    assert tokenizer.endoftext == tokenizer.vocab_size - 1


def test_tiktoken_and_transformers_agree_on_a_vocabulary_learned_from_shakespeare(tmp_path):
    path = os.environ.get("TINYSHAKESPEARE")
    if not path:
        pytest.skip("TINYSHAKESPEARE names no file")
    from transformers import AutoTokenizer

    text = Path(path).read_text(encoding="utf-8")
    ours = vocabulary.build("bpe:2048", [text[: len(text) // 2]], len(text) // 2)
    ours.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode(text) == theirs(text)["input_ids"]
    assert Tokenizer.from_directory(tmp_path).sha256 == ours.sha256


def test_of_a_text_too_large_to_learn_from_an_even_share_is_taken_and_that_is_said(monkeypatch):
    monkeypatch.setattr(vocabulary, "BPE_CHARACTERS", 100_000)
    texts, learned_from, said = [f"{n:09} " for n in range(100_000)], [], []
    monkeypatch.setattr(vocabulary, "bpe_merges", lambda texts, vocab_size: learned_from.extend(texts) or [])
    vocabulary.build("bpe:300", texts, 1_000_000, said.append)
    assert [int(text) for text in learned_from] == list(range(9, 100_000, 10))
    assert said == [
        "Learning a vocabulary of 300 tokens from 0 million characters, spread evenly over 1.0 million characters ..."
    ]


@pytest.mark.parametrize("most", [1, 999, 54_321, 10**9])
def test_no_more_is_taken_than_may_be_and_a_text_that_fits_is_taken_whole(most):
    texts = ["x" * (n * 7919 % 997) for n in range(1000)]
    characters = sum(map(len, texts))
    taken = sum(map(len, vocabulary.spread(texts, characters, most)))
    assert min(most, characters) - 997 < taken <= min(most, characters)


def test_whoever_waits_is_told_for_what():
    said = []
    vocabulary.build("bpe:300", [TEXT], len(TEXT), said.append)
    vocabulary.build("char", [TEXT], len(TEXT), said.append)
    vocabulary.build("gpt2", [TEXT], len(TEXT), said.append)
    assert said == [
        "Learning a vocabulary of 300 tokens from 0.0 million characters ...",
        "Collecting the characters that occur in 0.0 million characters ...",
    ]
