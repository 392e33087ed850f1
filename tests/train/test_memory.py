"""What was learned by heart: a parrot is found out, an inventor is not, and the counting is right."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import gpt2
from train import memory
from train.corpus import Corpus, Document
from train.dataset import prepare
from train.memory import Words
from train.processes import Stopped

NAMES = ("first.txt", "second.txt")


def prose(seed: int, n: int) -> str:
    """Lines of eight words from a vocabulary of 300, capitalised and with a full stop."""
    draw = random.Random(seed)
    words = [f"{draw.choice('bdfgklmnprst')}{draw.choice('aeiou')}{draw.choice('bdfgklmnprst')}" for _ in range(n)]
    return "".join(" ".join(words[i : i + 8]).capitalize() + ".\n" for i in range(0, n, 8))


@pytest.fixture(scope="module")
def data(tmp_path_factory, config):
    """Two documents of 4,000 words in no order at all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        documents = tuple(Document(name, prose(seed, 4000)) for seed, name in enumerate(NAMES))
        return prepare(Corpus("prose", "Made for a test.", None, None, documents), config)


class Parrot:
    """Knows its training text by heart and goes on from wherever in it the last eight tokens stand; given fewer, it
    begins at the beginning. An inventor says anything at all."""

    def __init__(self, data, block_size: int = 256, invents: bool = False):
        self.config = gpt2.GPTConfig(
            block_size=block_size, vocab_size=data.tokenizer.vocab_size, n_layer=1, n_head=1, n_embd=8
        )
        self.transformer = SimpleNamespace(wte=SimpleNamespace(weight=torch.zeros(1)))
        self.ids, self.invents = data.train.ids.tolist(), invents
        self.after = {tuple(self.ids[i : i + 8]): self.ids[i + 8] for i in range(len(self.ids) - 8)}

    def __call__(self, idx, cache):
        cache.read = torch.cat([getattr(cache, "read", idx[:, :0]), idx], 1)
        logits = torch.zeros(len(idx), 1, self.config.vocab_size)
        for row, read in zip(logits, cache.read.tolist(), strict=True):
            if not self.invents:
                read = read if len(read) >= 8 else self.ids[:8][: len(read)]
                following = self.after.get(tuple(read[-8:]), 0) if len(read) >= 8 else self.ids[len(read)]
                row[0, following] = 100
        return logits, None


def test_a_parrot_recites_its_training_text_and_nothing_else(data):
    found = memory.report(Parrot(data), data, NAMES)
    extraction = found["extraction"]
    assert (extraction["prompt_tokens"], extraction["recited_tokens"]) == (50, 50)
    assert extraction["train"]["recited"] == extraction["train"]["prompts"] >= 3
    assert extraction["held_out"]["recited"] == 0 < extraction["held_out"]["prompts"]


class Reader(Parrot):
    """Knows windows of its training text by heart, from their beginning and as long as it hears nothing else."""

    window = 120

    def __call__(self, idx, cache):
        cache.read = torch.cat([getattr(cache, "read", idx[:, :0]), idx], 1)
        logits = torch.zeros(len(idx), 1, self.config.vocab_size)
        for row, read in zip(logits, cache.read.tolist(), strict=True):
            for start in range(0, len(self.ids), self.window):
                if self.ids[start : start + len(read)] == read and start + len(read) < len(self.ids):
                    row[0, self.ids[start + len(read)]] = 100
        return logits, None


def test_what_was_read_in_windows_is_recited_from_where_they_begin_and_that_is_where_it_is_looked_for(data):
    anywhere, there = (memory.report(Reader(data), data, NAMES, window=w)["extraction"] for w in (1, Reader.window))
    assert anywhere["train"]["recited"] < anywhere["train"]["prompts"] / 2 and not anywhere["from_window_starts"]
    assert there["train"]["recited"] == there["train"]["prompts"] >= 3 and there["from_window_starts"]


def test_what_a_parrot_writes_is_copied_from_its_first_word_to_its_last(data):
    found = memory.report(Parrot(data), data, NAMES)
    assert found["novelty"]["generated"] == [0.0] * 16
    assert found["copied"]["generated"] == 1
    longest = found["longest_copy"]["generated"]
    assert longest["words"] > 40
    assert (longest["document"], longest["line"]) == (NAMES[0], 1)


def test_what_an_inventor_writes_is_not_copied(data):
    found = memory.report(Parrot(data, invents=True), data, NAMES)
    assert found["extraction"]["train"]["recited"] == 0
    assert set(found["novelty"]["generated"][4:]) == {1.0}
    assert found["copied"]["generated"] == 0
    assert found["longest_copy"]["generated"]["words"] < 4


def test_novelty_is_the_share_of_n_grams_that_the_training_text_lacks(data):
    def grams(texts, n: int) -> list[tuple[str, ...]]:
        words = [text.lower().replace(".", "").split() for text in texts]
        return [tuple(some[i : i + n]) for some in words for i in range(len(some) - n + 1)]

    train, held_out = (list(part.texts(data.tokenizer)) for part in (data.train, data.holdout))
    found = memory.copies(data, {"held_out": held_out}, NAMES)["novelty"]["held_out"]
    for n in (1, 2, 3):
        known, asked = set(grams(train, n)), grams(held_out, n)
        assert found[n - 1] == round(sum(gram not in known for gram in asked) / len(asked), 4)
    assert 0 < found[1] < found[2]


def test_the_longest_copy_is_named_by_its_document_and_line(data):
    second = list(data.train.texts(data.tokenizer))[1]
    line = second.splitlines()[41]
    found = memory.copies(data, {"generated": [f"Hear: {line.upper()} so", "other words"]}, NAMES)
    assert found["longest_copy"]["generated"] == {"words": 8, "document": "second.txt", "line": 42}
    assert found["copied"]["generated"] == round(8 / 12, 5)


def test_rows_of_a_data_set_are_named_by_their_number(data):
    text = list(data.train.texts(data.tokenizer))[1]
    found = memory.copies(data, {"generated": [text]}, ["only.parquet"])["longest_copy"]["generated"]
    assert (found["text"], found["line"]) == (1, 1) and "document" not in found


def test_documents_without_anything_between_them_are_one_text(data):
    joined = replace(data, train=replace(data.train, starts=()))
    line = list(data.train.texts(data.tokenizer))[1].splitlines()[41]
    found = memory.copies(joined, {"generated": [line]}, NAMES)["longest_copy"]["generated"]
    assert found["text"] == 0 and found["line"] > 42 and "document" not in found


def test_no_run_of_words_leads_from_one_text_into_the_next():
    texts = Words.of(["one two three", "", "four", "five six"])
    assert [len(texts.runs(n)) for n in range(1, 5)] == [6, 3, 1, 0]
    assert len(Words.of([]).runs(2)) == 0


def test_a_text_without_a_held_out_part_has_no_control(data):
    found = memory.report(Parrot(data), replace(data, holdout=replace(data.holdout, ids=data.holdout.ids[:0])), NAMES)
    assert found["extraction"]["held_out"] == {"prompts": 0, "recited": 0}
    assert set(found["copied"]) == set(found["longest_copy"]) == {"generated"}


def test_a_large_text_is_not_held_against_the_output_word_by_word(data, monkeypatch):
    monkeypatch.setattr(memory, "MAX_TEXT", data.train.bytes - 1)
    assert set(memory.report(Parrot(data), data, NAMES)) == {"extraction"}


@pytest.mark.parametrize("block_size", [1, 2, 7, 64])
def test_a_small_window_is_given_and_asked_for_less(data, block_size):
    found = memory.report(Parrot(data, block_size), data, NAMES)
    assert found["extraction"]["prompt_tokens"] == block_size // 2
    assert found["sampling"]["tokens"] == block_size - 1
    json.dumps(found, allow_nan=False)


def test_a_real_model_is_measured_the_same_twice_and_its_text_ends_where_it_ends_it(data, make_model):
    config = gpt2.GPTConfig(block_size=128, vocab_size=data.tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16)
    model = make_model(config)
    assert memory.report(model, data, NAMES) == memory.report(model, data, NAMES)
    always = Parrot(data, 64)
    always.config = replace(always.config, eos_token_id=always.ids[3])
    assert memory.report(always, data, NAMES)["longest_copy"]["generated"]["words"] <= 3


def test_recited_is_what_the_likeliest_tokens_say(data, make_model):
    """Against plain forward passes without a cache."""
    config = gpt2.GPTConfig(block_size=16, vocab_size=data.tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=16)
    model = make_model(config)
    expected = []
    for i in memory._places(data.train, 16):
        ids = data.train.ids[i : i + 16].long()
        said = ids[:8].tolist()
        for _ in range(8):
            said.append(int(model(torch.tensor([said]))[0][0, -1].argmax()))
        expected.append(said[8:] == ids[8:].tolist())
    found = memory.report(model, data, NAMES)["extraction"]["train"]
    assert found == {"prompts": len(expected), "recited": sum(expected)}


def test_it_can_be_stopped_at_every_forward_pass(data):
    asked = []

    def stop() -> None:
        asked.append(True)
        if len(asked) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        memory.report(Parrot(data), data, NAMES, stop)
