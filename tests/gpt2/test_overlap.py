"""Copies are found, inventions are not, and no file can do harm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

import gpt2
from gpt2 import overlap

SOURCE = (
    "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east, and Juliet is the sun.\n"
    "Arise, fair sun, and kill the envious moon,\nWho is already sick and pale with grief,\n"
)
SEEN = torch.tensor([True, False, True])


@pytest.fixture(scope="module")
def known() -> gpt2.Overlap:
    return overlap.Overlap.from_tensors(overlap.build([SOURCE], SEEN))


def save(directory, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, directory / overlap.FILE)


def test_a_copied_passage_is_marked_from_its_first_word_to_its_last(known):
    text = "He says: It is the east, and Juliet is the sun. Good night!"
    [(start, end)] = known.spans(text)
    assert text[start:end] == "It is the east, and Juliet is the sun"
    assert known.share(text) == pytest.approx(9 / 13)


@pytest.mark.parametrize(
    "text",
    [
        "it is\nthe east,   and\n\tJuliet is the",  # wrapped in another way
        "IT IS THE EAST AND JULIET IS THE",  # no punctuation, capitals
        "\u201cIt is the east \u2014 and Juliet is the\u2026\u201d",  # quoted
        "*It is the east; and _Juliet_ is the*",
    ],
)
def test_wrapping_case_and_punctuation_hide_no_copy(known, text):
    assert known.share(text) == 1
    assert len(known.spans(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "It is the east, and Juliet",  # seven words
        "It is the east, but Juliet is the sun.",
        "sun the is Juliet and east the is It",
        "It is the east, and Juliet was the sun.",
    ],
)
def test_seven_words_another_word_or_another_order_are_no_copy(known, text):
    assert known.spans(text) == []
    assert known.share(text) == 0


def test_copies_that_touch_are_one_and_others_are_not(known):
    line = "Arise, fair sun, and kill the envious moon"
    assert len(known.spans(f"{line}, who is already")) == 1
    assert len(known.spans(f"{line}, she said: {line}")) == 2


def test_no_run_leads_from_one_text_into_the_next():
    known = overlap.Overlap.from_tensors(overlap.build(["one two three four", "five six seven eight"], SEEN))
    assert known.share("one two three four five six seven eight") == 0


@given(st.lists(st.text(max_size=60), max_size=8), st.text(max_size=40))
def test_every_text_that_was_read_is_a_copy_and_any_other_can_be_asked_about(texts, other):
    known = overlap.Overlap.from_tensors(overlap.build(texts, SEEN))
    for text in [*texts, other]:
        spans = known.spans(text)
        assert all(0 <= start < end <= len(text) for start, end in spans)
        assert all(a[1] < b[0] for a, b in zip(spans, spans[1:], strict=False))
    for text in texts:
        n = len(overlap.words(text)[0])
        assert known.share(text) == (1 if n >= 8 else 0)


def test_it_takes_six_bytes_a_run_and_holds_no_text(tmp_path):
    tensors = overlap.build([SOURCE, SOURCE], SEEN)
    n = len(overlap.words(SOURCE)[0]) - 7
    assert tensors[overlap.RUNS].shape == (n, 6)  # what stands twice is kept once
    save(tmp_path, tensors)
    data = (tmp_path / overlap.FILE).read_bytes().lower()
    assert not any(word in data for word in (b"romeo", b"light", b"window", b"juliet", b"envious"))


def test_the_file_says_the_same_as_the_text(tmp_path, known):
    save(tmp_path, overlap.build([SOURCE], SEEN))
    read = gpt2.Overlap.from_directory(tmp_path)
    assert read.spans(SOURCE) == known.spans(SOURCE) == [(0, len(SOURCE) - 2)]
    assert [read.saw(idx) for idx in range(4)] == [True, False, True, False]


def test_the_hashes_are_the_same_on_every_machine():
    tensors = overlap.build(["One two three four five six seven eight"], SEEN)
    assert bytes(tensors[overlap.RUNS].flatten().tolist()).hex() == "4329a3473b6d"


def test_false_positives_are_as_rare_as_the_number_of_bits_says():
    """With 20 bits instead of 48, in 400,000 runs of words in random order, against 100,000 known ones."""
    generator = np.random.default_rng(0)
    vocabulary = overlap.words(" ".join(map(str, range(5000))))[1]
    known = np.unique(overlap.ngrams(generator.choice(vocabulary, 100_007), 8) >> 44)
    asked = overlap.ngrams(generator.choice(vocabulary, 400_007), 8) >> 44
    expected = len(known) / 2**20
    assert overlap.contains(known, asked).mean() == pytest.approx(expected, rel=0.03)


def test_the_largest_file_accepted_has_fewer_false_positives_than_one_in_a_million_words():
    assert overlap.MAX_FILE / 6 / 2**48 < 4e-8


@pytest.mark.parametrize("n", [1, 2, 8, 100])
def test_equal_runs_and_no_others_have_equal_hashes_wherever_they_stand(n):
    generator = np.random.default_rng(n)
    hashes = generator.integers(0, 2**64, 300, dtype=np.uint64)
    hashes[200:] = hashes[:100]
    runs = overlap.ngrams(hashes, n)
    assert len(runs) == 301 - n
    assert (runs[200:] == runs[: 101 - n]).all()
    assert len(set(runs.tolist())) == 301 - n - (101 - n)
    assert len(overlap.ngrams(hashes[: n - 1], n)) == 0


def test_a_checkpoint_without_the_file_has_no_overlap(tmp_path):
    assert gpt2.Overlap.from_directory(tmp_path) is None


good = overlap.build([SOURCE], SEEN)
RUNS = good[overlap.RUNS]


@pytest.mark.parametrize(
    "tensors",
    [
        {overlap.RUNS: RUNS},
        {overlap.SEEN: SEEN},
        good | {overlap.RUNS: RUNS[:, :5].contiguous()},
        good | {overlap.RUNS: RUNS.flatten()},
        good | {overlap.RUNS: RUNS.to(torch.int64)},
        good | {overlap.RUNS: RUNS.to(torch.bfloat16)},
        good | {overlap.RUNS: RUNS.flip(0)},
        good | {overlap.RUNS: torch.cat([RUNS, RUNS[-1:]])},
        good | {overlap.SEEN: SEEN.to(torch.float32)},
        good | {overlap.SEEN: SEEN.reshape(3, 1)},
        good | {overlap.SEEN: torch.tensor(True)},
    ],
)
def test_a_file_with_other_numbers_is_refused_in_a_sentence(tmp_path, tensors):
    save(tmp_path, tensors)
    with pytest.raises(ValueError, match="download or save it again"):
        gpt2.Overlap.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\xff" * 100])
def test_a_file_that_is_none_is_refused_in_a_sentence(tmp_path, content):
    (tmp_path / overlap.FILE).write_bytes(content)
    with pytest.raises(ValueError, match="download"):
        gpt2.Overlap.from_directory(tmp_path)


def test_a_truncated_file_is_refused_in_a_sentence(tmp_path):
    save(tmp_path, good)
    whole = (tmp_path / overlap.FILE).read_bytes()
    (tmp_path / overlap.FILE).write_bytes(whole[:-6])
    with pytest.raises(ValueError, match="download or save it again"):
        gpt2.Overlap.from_directory(tmp_path)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / overlap.FILE).open("wb") as file:
        file.truncate(overlap.MAX_FILE + 1)
    with pytest.raises(ValueError, match="larger than 64 MB"):
        gpt2.Overlap.from_directory(tmp_path)
