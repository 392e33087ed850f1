"""Text -> shards -> batches."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

from gpt2.model import IGNORE
from train import dataset
from train.config import preset
from train.corpus import Corpus, Document, cache_dir, open_corpus
from train.dataset import Batches, prepare, split


def text_of(data, part) -> str:
    ids = [int(i) for i in part.ids]
    return data.tokenizer.decode(i for n, i in enumerate(ids) if n not in part.starts)


def test_the_three_parts_are_contiguous_and_together_the_whole_document(config):
    text = "".join(chr(0x4E00 + i % 500) for i in range(1000))
    train, validation, holdout = split(text, config)
    assert train + validation + holdout == text
    assert (len(train), len(validation), len(holdout)) == (850, 50, 100)


def test_every_document_gives_to_every_part(corpus, config):
    data = prepare(corpus, config)
    pieces = [split(document.text, config) for document in corpus.documents]
    for number, part in enumerate((data.train, data.validation, data.holdout)):
        assert text_of(data, part) == "".join(piece[number] for piece in pieces)
        assert part.bytes == sum(len(piece[number].encode()) for piece in pieces)
        assert len(part.starts) == 2
        assert [int(part.ids[start]) for start in part.starts] == [data.tokenizer.endoftext] * 2


def test_the_vocabulary_is_learned_from_the_training_part_alone(config):
    secret = "zq" * 400
    corpus = Corpus("c", "o", None, None, (Document("d", "hello there, old friend. " * 300 + secret),))
    tokenizer = prepare(corpus, config).tokenizer
    assert len(tokenizer.encode(secret)) == len(secret)


def test_without_endoftext_training_sees_text_only_and_a_newline_starts_one(corpus, config):
    data = prepare(corpus, replace(config, endoftext=False))
    assert data.tokenizer.endoftext not in data.train.ids.tolist()
    assert data.tokenizer.decode([data.bos]) == "\n"


def test_the_second_time_the_shards_are_read_and_equal(corpus, config, monkeypatch):
    first = prepare(corpus, config)
    monkeypatch.setattr(dataset, "_write_shards", lambda *_: pytest.fail("tokenised again"))
    second = prepare(corpus, config)
    assert second.train.ids.equal(first.train.ids)
    assert second.holdout == second.holdout


def test_a_damaged_cache_is_made_anew(corpus, config):
    first = prepare(corpus, config)
    shard = next(cache_dir().rglob("train-*.safetensors"))
    shard.unlink()  # first maps the file: it keeps what it has, and another takes its place
    shard.write_bytes(b"")
    assert prepare(corpus, config).train.ids.equal(first.train.ids)


def test_another_text_or_split_or_vocabulary_is_other_shards(corpus, config):
    changed = Corpus("rhymes", "o", None, None, (Document("one", corpus.documents[0].text + "!"),))
    for other, settings in [
        (changed, config),
        (corpus, replace(config, holdout=0.2)),
        (corpus, replace(config, tokenizer="char")),
    ]:
        prepare(other, settings)
    prepare(corpus, config)
    assert len(list((cache_dir() / "tokens").iterdir())) == 4


def test_a_part_larger_than_a_shard_is_several_files_and_one_part(corpus, config, monkeypatch):
    whole = prepare(corpus, config)
    monkeypatch.setattr(dataset, "SHARD_TOKENS", 100)
    monkeypatch.setattr(dataset, "FORMAT", 0)
    assert prepare(corpus, config).train.ids.long().equal(whole.train.ids.long())
    assert len(list(cache_dir().rglob("train-*.safetensors"))) > 5


def test_a_text_shorter_than_a_window_is_one_sentence_with_a_block_size_that_works(config):
    corpus = Corpus("short", "o", None, None, (Document("d", "To be, or not to be. " * 8),))
    with pytest.raises(ValueError, match=r"too short.*--block-size \d+") as caught:
        prepare(corpus, replace(config, block_size=256))
    works = int(str(caught.value).split("--block-size ")[1].rstrip("."))
    prepare(corpus, replace(config, block_size=works))


@pytest.mark.parametrize("n", [33, 40, 64, 65, 100, 1000])
def test_every_shuffled_window_is_a_stretch_of_the_text_and_its_successor(n):
    batches = Batches(torch.arange(n), block_size=32, batch_size=3, seed=1, order="shuffled")
    for step in range(20):
        idx, targets = batches.at(step)
        assert idx.shape == targets.shape == (3, 32)
        assert targets.equal(idx + 1)
        assert int(targets.max()) < n


def test_an_epoch_takes_every_window_once_and_the_next_is_cut_elsewhere():
    batches = Batches(torch.arange(32 * 11), block_size=32, batch_size=10, seed=1, order="shuffled")
    first, second = (sorted(batches.at(step)[0][:, 0].tolist()) for step in (0, 1))
    assert [b - a for a, b in zip(first, first[1:], strict=False)] == [32] * 9
    assert first != second


def test_a_batch_depends_on_seed_and_step_and_nothing_else():
    def batches(seed=1):
        return Batches(torch.arange(1000), block_size=32, batch_size=4, seed=seed, order="shuffled")

    walked = batches()
    for step in range(30):
        expected = walked.at(step)[0]
    assert batches().at(29)[0].equal(expected)
    assert not batches(seed=2).at(29)[0].equal(expected)


def test_sequential_batches_follow_each_other_and_repeat():
    batches = Batches(torch.arange(64 * 4), block_size=64, batch_size=2, seed=1, order="sequential")
    idx, targets = batches.at(1)
    assert idx.flatten().tolist() == list(range(128, 256))
    assert targets.flatten().tolist() == [*range(129, 256), IGNORE]
    assert batches.at(3)[0].equal(idx)


def test_the_seed_preset_reads_twenty_batches_and_never_the_tail():
    if not os.environ.get("TINYSHAKESPEARE"):
        pytest.skip("TINYSHAKESPEARE names no file")
    config = preset("seed")
    corpus = open_corpus((), config.corpus)
    data = prepare(corpus, config)
    assert len(data.train) == 20 * 16 * 1024
    assert len(data.holdout) - len(data.holdout.starts) == 10_345
    assert len(data.validation) == 0
    batches = Batches(data.train.ids, 1024, 16, config.seed, config.order)
    whole = data.tokenizer.encode(corpus.documents[0].text)
    assert batches.at(0)[0].flatten().tolist() == whole[: 16 * 1024]
    assert batches.at(20)[0].equal(batches.at(0)[0])
    assert data.tokenizer.decode(whole[-10_345:]) == text_of(data, data.holdout)
