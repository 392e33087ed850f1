"""Text -> tokens on disk -> batches."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from gpt2.model import IGNORE
from gpt2.tokenizer import Tokenizer
from train import dataset, tokens
from train.augment import Augmentation, shape
from train.config import preset
from train.corpus import Corpus, open_corpus
from train.dataset import PARTS, Batches, prepare
from train.document import Document
from train.fetch import cache_dir

# What GPT-2's splitting rule has a branch for, and what Python and tiktoken might not call white space alike.
AWKWARD = [*"'A7!\u00bd\u0301\U0001f984 \n\t\r\x0b\x1c\x1f\x85\xa0\u2003\u2028\u200b\u3000\ufeff"]
AWKWARD += ["'ll", "'s", "don't", "bc", "\u00e9\u4e2d", "--", "  ", "\n\n \n", "<|endoftext|>"]
ODD_TEXTS = ["Caf\u00e9 \u4e2d\u6587 \U0001f984\n" * 300, "a", "", "<|endoftext|> " * 50]


@pytest.fixture(scope="module")
def revealing() -> Tokenizer:
    """Merges any two bytes of AWKWARD, so that a cut inside a word, or what have you, gives other ids."""
    found = sorted({bytes([b]) for text in AWKWARD for b in text.encode()})
    return Tokenizer(list(itertools.product(found, found)))


def corpus_of(*texts: str) -> Corpus:
    return Corpus("c", "o", None, None, tuple(Document(str(n), text) for n, text in enumerate(texts)))


def split(text: str, config) -> tuple[str, str, str]:
    middle, end = tokens.bounds(len(text), config)
    return text[:middle], text[middle:end], text[end:]


def in_memory(documents, tokenizer, bos: int, config) -> dict[str, tuple[list[int], tuple[int, ...], int]]:
    """Part -> (ids, starts, bytes), with nothing but lists."""
    parts = {name: ([], [], 0) for name in PARTS}
    for text in documents:
        if config.holdout < 1:
            cut = [(tokenizer.encode(part), len(part.encode())) for part in split(text, config)]
        else:
            ids = tokenizer.encode(text)
            end = max(0, len(ids) - int(config.holdout))
            middle = end - int(end * config.validation)
            cut = [
                (part, sum(len(tokenizer.token_bytes(i)) for i in part))
                for part in (ids[:middle], ids[middle:end], ids[end:])
            ]
        for name, (ids, n_bytes) in zip(PARTS, cut, strict=True):
            all_ids, starts, so_far = parts[name]
            if ids and (config.endoftext or name != "train"):
                starts.append(len(all_ids))
                all_ids.append(bos)
            all_ids += ids
            parts[name] = (all_ids, starts, so_far + n_bytes)
    return {name: (ids, tuple(starts), n_bytes) for name, (ids, starts, n_bytes) in parts.items()}


def found(data) -> dict[str, tuple[list[int], tuple[int, ...], int]]:
    return {name: (part.ids.tolist(), part.starts, part.bytes) for name in PARTS for part in [getattr(data, name)]}


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
    tokenizer = prepare(corpus_of("hello there, old friend. " * 300 + secret), config).tokenizer
    assert len(tokenizer.encode(secret)) == len(secret)


def test_without_endoftext_training_sees_text_only_and_a_newline_starts_one(corpus, config):
    data = prepare(corpus, replace(config, endoftext=False))
    assert data.tokenizer.endoftext not in data.train.ids.tolist()
    assert data.tokenizer.decode([data.bos]) == "\n"


@pytest.mark.parametrize("spec", ["bpe:300", "char"])
@pytest.mark.parametrize("endoftext", [True, False])
@pytest.mark.parametrize("holdout", [0.1, 0])
def test_parts_by_characters_are_what_is_computed_in_memory(corpus, config, monkeypatch, spec, endoftext, holdout):
    monkeypatch.setattr(tokens, "PIECE", 100)
    config = replace(config, tokenizer=spec, endoftext=endoftext, holdout=holdout, validation=0.1)
    texts = [document.text for document in corpus.documents] + ODD_TEXTS
    data = prepare(corpus_of(*texts), config)
    assert found(data) == in_memory(texts, data.tokenizer, data.bos, config)


@pytest.mark.parametrize("endoftext", [True, False])
@pytest.mark.parametrize("holdout", [1, 100, 1700])
def test_parts_by_tokens_are_what_is_computed_in_memory(
    corpus, config, monkeypatch, tiny_tokenizer, endoftext, holdout
):
    monkeypatch.setattr(tokens, "PIECE", 100)
    config = replace(config, tokenizer="gpt2", endoftext=endoftext, holdout=holdout, validation=0.1)
    texts = [document.text for document in corpus.documents] + ODD_TEXTS
    data = prepare(corpus_of(*texts), config, tokenizer=tiny_tokenizer)
    assert found(data) == in_memory(texts, data.tokenizer, data.bos, config)


@given(st.lists(st.sampled_from(AWKWARD), max_size=40).map("".join), st.integers(1, 12))
def test_a_text_in_pieces_gives_the_tokens_of_the_whole(revealing, text, size):
    pieces = list(tokens.pieces([text], size))
    assert "".join(pieces) == text
    cuts = itertools.accumulate(map(len, pieces[:-1]))
    assume(all(tokens.SAFE_CUT.match(text, cut) for cut in cuts))  # else there was no place for one
    assert [i for piece in pieces for i in revealing.encode(piece)] == revealing.encode(text)


@given(st.lists(st.sampled_from(AWKWARD), max_size=40).map("".join))
def test_every_safe_cut_is_safe(revealing, text):
    whole = revealing.encode(text)
    for cut in tokens.SAFE_CUT.finditer(text):
        assert revealing.encode(text[: cut.start()]) + revealing.encode(text[cut.start() :]) == whole


@given(st.lists(st.sampled_from(AWKWARD), max_size=30))
def test_pieces_do_not_depend_on_how_the_text_came_in(texts):
    assert list(tokens.pieces(texts, 5)) == list(tokens.pieces(["".join(texts)], 5))


def test_a_text_without_white_space_is_cut_all_the_same_and_nothing_is_lost(config, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 64)
    text = "\u4e2d\u6587abc" * 2000
    assert [len(piece) for piece in tokens.pieces([text[:300]], 64)] == [128, 128, 44]
    data = prepare(corpus_of(text), config)
    assert "".join(text_of(data, getattr(data, name)) for name in PARTS) == text


def test_an_array_of_ids_is_the_list_of_ids(tiny_tokenizer):
    text = "and the  <|endoftext|> \ud83e caf\u00e9 \U0001f984\n"
    assert tiny_tokenizer.encode_array(text).tolist() == tiny_tokenizer.encode(text)


@pytest.mark.parametrize(("spec", "holdout"), [("bpe:300", 0.1), ("gpt2", 500)])
@pytest.mark.parametrize("piece", [5, 2**19])
def test_rows_are_apart_by_a_token_that_is_no_text(config, monkeypatch, tiny_tokenizer, spec, holdout, piece):
    monkeypatch.setattr(tokens, "PIECE", piece)
    rows = [f"Row {n} has\n no dull  end. " for n in range(99)]
    config = replace(config, tokenizer=spec, holdout=holdout)
    data = prepare(corpus_of("\0".join(rows)), config, tokenizer=tiny_tokenizer if spec == "gpt2" else None)
    parts = [getattr(data, name) for name in PARTS]
    assert "".join(text_of(data, part) for part in parts) == "".join(rows)
    assert sum(part.bytes for part in parts) == len("".join(rows))
    for part in parts:
        assert [n for n, i in enumerate(part.ids.tolist()) if i == data.bos] == list(part.starts)
    whole = itertools.pairwise(data.train.starts)
    assert [data.tokenizer.decode(data.train.ids[a + 1 : b].tolist()) for a, b in whole] == rows[
        : len(data.train.starts) - 1
    ]


def test_the_texts_of_a_part_are_those_of_its_documents_and_rows(config, tmp_path):
    texts = ["The first.\n" * 100, "Caf\u00e9 " * 200]
    data = prepare(corpus_of(*texts), config)
    for number, name in enumerate(PARTS):
        assert list(getattr(data, name).texts(data.tokenizer)) == [split(text, config)[number] for text in texts]
    together = prepare(corpus_of(*texts), replace(config, endoftext=False))
    assert list(together.train.texts(together.tokenizer)) == ["".join(split(text, config)[0] for text in texts)]
    (tmp_path / "rows").write_text("\0".join(["one row"] * 300), encoding="utf-8")
    rows = prepare(Corpus("c", "o", None, None, (Document("rows", tmp_path / "rows", rows=True),)), config)
    assert set(list(rows.train.texts(rows.tokenizer))[:-1]) == {"one row"}


def test_rows_apart_need_no_endoftext(config):
    rows = [f"Row {n} ends here" for n in range(99)]
    data = prepare(corpus_of("\0".join(rows)), replace(config, endoftext=False))
    assert data.tokenizer.decode(data.train.ids.tolist()).startswith("Row 0 ends here\nRow 1 ends here\n")


def test_many_tokens_are_32_bits_and_mapped_and_can_be_trained_on(corpus, config, monkeypatch):
    few, huge = prepare(corpus, config), Tokenizer.vocab_size.fget
    monkeypatch.setattr(Tokenizer, "vocab_size", property(lambda self: 70_000))
    monkeypatch.setattr(dataset, "FORMAT", 0)
    many = prepare(corpus, config)
    assert (few.train.ids.dtype, many.train.ids.dtype) == (torch.uint16, torch.uint32)
    assert many.train.ids.long().equal(few.train.ids.long())
    monkeypatch.setattr(Tokenizer, "vocab_size", property(huge))
    for ids in (few.train.ids, many.train.ids):
        idx, targets = Batches(ids, 32, 4, 1, "shuffled", Augmentation(ids, input_noise=0.5)).at(3)
        assert idx.dtype == targets.dtype == torch.int64


def test_a_tokenizer_that_is_given_takes_the_place_of_the_one_configured(corpus, config, tiny_tokenizer):
    data = prepare(corpus, config, tokenizer=tiny_tokenizer)
    assert (data.tokenizer.sha256, data.bos) == (tiny_tokenizer.sha256, tiny_tokenizer.endoftext)
    assert found(data) == in_memory([d.text for d in corpus.documents], tiny_tokenizer, data.bos, config)
    assert data.key == prepare(corpus, replace(config, tokenizer="char"), tokenizer=tiny_tokenizer).key
    assert data.key != prepare(corpus, config).key


def test_the_second_time_the_tokens_are_read_and_equal(corpus, config, monkeypatch):
    first = prepare(corpus, config)
    monkeypatch.setattr(dataset, "_write", lambda *_: pytest.fail("tokenised again"))
    assert found(prepare(corpus, config)) == found(first)


@pytest.mark.parametrize("name", ["train.bin", "holdout.bin", "manifest.json", "vocab.json"])
@pytest.mark.parametrize("damage", [b"", b"\0" * 77], ids=["emptied", "zeros"])
def test_a_damaged_cache_is_made_anew(corpus, config, name, damage):
    expected = found(prepare(corpus, config))
    (file,) = cache_dir().rglob(name)
    file.unlink()
    file.write_bytes(damage)
    assert found(prepare(corpus, config)) == expected


def test_another_text_or_split_or_vocabulary_is_other_tokens(corpus, config):
    changed = Corpus("rhymes", "o", None, None, (Document("one", corpus.documents[0].text + "!"),))
    for other, settings in [
        (changed, config),
        (corpus, replace(config, holdout=0.2)),
        (corpus, replace(config, tokenizer="char")),
    ]:
        prepare(other, settings)
    prepare(corpus, config)
    assert len(list((cache_dir() / "tokens").iterdir())) == 4


def test_a_text_edited_in_place_is_tokenised_anew_whatever_its_date(tmp_path, corpus, config):
    path = tmp_path / "my.txt"
    path.write_text(corpus.documents[0].text, encoding="utf-8")
    first, date = prepare(open_corpus([path], None), config), path.stat()
    path.write_text(corpus.documents[0].text.replace("birds", "words"), encoding="utf-8")
    os.utime(path, ns=(date.st_atime_ns, date.st_mtime_ns))
    second = prepare(open_corpus([path], None), config)
    assert "words" in text_of(second, second.train)
    assert second.key != first.key


def test_a_text_that_changes_while_it_is_tokenised_leaves_no_tokens(tmp_path, corpus, config):
    path = tmp_path / "my.txt"
    path.write_text(corpus.documents[0].text, encoding="utf-8")
    opened = open_corpus([path], None)
    path.write_text(corpus.documents[0].text.replace("birds", "words"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"my\.txt changed while it was being read"):
        prepare(opened, config)
    assert list((cache_dir() / "tokens").iterdir()) == []


# A second process that prepares the same text. GO is what it does when its tokens are on the disk, before they are
# put in place: it writes PID.ready, and waits for the file "go".
OTHER = """
import os, sys, time
from pathlib import Path
from train import dataset
from train.config import TrainConfig
from train.corpus import open_corpus

folder, write = Path(sys.argv[1]), dataset._write

def slowly(*args):
    write(*args)
    (folder / f"{os.getpid()}.ready").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)

dataset._write = slowly
data = dataset.prepare(open_corpus([folder / "my.txt"], None), TrainConfig(tokenizer="bpe:300", block_size=32))
print(data.key, data.train.ids.long().sum().item(), len(data.holdout))
"""


@pytest.fixture
def others(tmp_path, corpus):
    """others(n) starts n processes that prepare the same text, and returns once all have written their tokens."""
    (tmp_path / "my.txt").write_text(corpus.documents[0].text, encoding="utf-8")
    started = []

    def start(n: int) -> list[subprocess.Popen]:
        root = Path(dataset.__file__).resolve().parents[1]
        started.extend(
            subprocess.Popen(
                [sys.executable, "-c", OTHER, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, encoding="utf-8"
            )
            for _ in range(n)
        )
        while len(list(tmp_path.glob("*.ready"))) < n:
            assert all(process.poll() is None for process in started)
            time.sleep(0.01)
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_two_processes_that_prepare_the_same_text_at_once_both_end_well(tmp_path, others):
    processes = others(2)
    assert len(list((cache_dir() / "tokens").glob(".*.tmp"))) == 2  # both are done, and neither is in place
    (tmp_path / "go").touch()
    first, second = (process.communicate()[0] for process in processes)
    assert first == second != ""
    (made,) = (cache_dir() / "tokens").iterdir()
    assert made.name == first.split()[0]


def test_tokens_that_another_put_in_place_are_not_swapped_from_under_it(corpus, config, monkeypatch):
    write, faster = dataset._write, []

    def overtaken(*args):
        write(*args)
        monkeypatch.setattr(dataset, "_write", write)
        faster.append(prepare(corpus, config))
        faster.append((cache_dir() / "tokens" / faster[0].key / "train.bin").stat().st_ino)

    monkeypatch.setattr(dataset, "_write", overtaken)
    assert found(prepare(corpus, config)) == found(faster[0])
    (made,) = (cache_dir() / "tokens").iterdir()
    assert (made / "train.bin").stat().st_ino == faster[1]


def test_a_process_that_dies_leaves_nothing_that_is_served(tmp_path, others):
    (process,) = others(1)
    process.kill()
    process.wait()
    (left,) = (cache_dir() / "tokens").iterdir()
    opened, config = (
        open_corpus([tmp_path / "my.txt"], None),
        replace(preset("mini"), tokenizer="bpe:300", block_size=32),
    )
    data = prepare(opened, config)
    assert text_of(data, data.train) == split(opened.documents[0].text, config)[0]
    assert left.exists()  # it might be another's work in progress
    for path in (left, *left.iterdir()):
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    prepare(opened, replace(config, tokenizer="char"))
    assert not left.exists()


def test_what_is_waited_for_is_said_and_nothing_where_nothing_is(corpus, config):
    said = []
    prepare(corpus, config, said.append)
    assert [sentence.split()[0] for sentence in said] == ["Learning", "Tokenising"]
    prepare(corpus, config, said.append)
    assert len(said) == 2


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


def test_noise_replaces_about_its_share_of_the_inputs_and_no_target():
    ids = torch.arange(10_000)
    clean, noisy = (Batches(ids, 64, 32, 1, "shuffled", Augmentation(ids, input_noise=p)) for p in (0.0, 0.3))
    idx, targets = clean.at(5)
    disturbed, same = noisy.at(5)
    assert same.equal(targets)
    assert 0.25 < float((disturbed != idx).float().mean()) < 0.35


def test_noise_is_drawn_from_the_text_as_often_as_it_holds_a_token():
    ids = torch.tensor([7] * 900 + [9] * 100).to(torch.uint16)
    idx, _ = Batches(ids, 100, 9, 1, "shuffled", Augmentation(ids, input_noise=0.999)).at(0)
    assert set(idx.flatten().tolist()) == {7, 9}
    assert 0.05 < float((idx == 9).float().mean()) < 0.15


def test_noise_depends_on_seed_and_step_and_row_and_nothing_else():
    def noisy(seed=1):
        ids = torch.arange(10_000)
        return Batches(ids, 64, 4, seed, "sequential", Augmentation(ids, input_noise=0.5))

    walked = noisy()
    for step in range(4):
        expected = walked.at(step)[0]
    assert noisy().at(3)[0].equal(expected)
    masks = {
        tuple((noisy(seed).at(step)[0][row] != torch.arange(64 * (4 * step + row), 64 * (4 * step + row + 1))).tolist())
        for seed in (1, 2)
        for step in (0, 1)
        for row in (0, 1)
    }
    assert len(masks) == 8


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


def test_a_share_of_the_tokens_is_taken_apart_and_still_says_the_same(corpus, config):
    data = prepare(corpus, config)
    text = data.tokenizer.decode(data.train.ids.tolist())
    shape, origins = (32, 8, 1, "shuffled"), data.tokenizer.origins
    some, all_of_it, none = (
        Batches(data.train.ids, *shape, Augmentation(data.train.ids, origins, bpe_dropout=p)) for p in (0.2, 0.999, 0.0)
    )
    whole, _ = none.at(3)
    for batches, low, high in ((some, 0.05, 0.4), (all_of_it, 0.95, 1.0)):
        idx, targets = batches.at(3)
        assert idx.shape == targets.shape == (8, 32)
        assert torch.equal(idx[:, 1:], targets[:, :-1]) and torch.equal(idx, batches.at(3)[0])
        for row, before in zip(idx.tolist(), whole.tolist(), strict=True):
            written, original = data.tokenizer.decode(row), data.tokenizer.decode(before)
            assert original.startswith(written) and written in text  # nothing but its end is missing
        was, is_now = (float((torch.tensor(origins)[rows, 0] >= 0).double().mean()) for rows in (whole, idx))
        assert low < 1 - is_now / was <= high


def test_in_a_share_of_the_windows_rare_tokens_trade_places_and_keep_them_to_the_end():
    ids = torch.multinomial(1 / torch.arange(1, 401), 20_000, True, generator=torch.Generator().manual_seed(1))
    counts, bos, shape = torch.bincount(ids, minlength=400), 250, (64, 40, 1, "shuffled")
    texts = [("XYZ" if number % 2 else " xyz")[: 2 + number % 3] for number in range(400)]  # " x" and " xy" look alike
    plain, some, every = (
        Batches(ids, *shape, Augmentation(ids, texts=texts, bos=bos, renaming=p)) for p in (0.0, 0.5, 0.999)
    )
    (before, _), (half, _), (idx, targets) = plain.at(2), some.at(2), every.at(2)
    assert torch.equal(idx[:, 1:], targets[:, :-1]) and torch.equal(idx, every.at(2)[0])
    assert 8 < int((half == before).all(1).sum()) < 32
    for row, was in zip(idx.tolist(), before.tolist(), strict=True):
        assert len(set(zip(row, was, strict=True))) == len(set(row)) == len(set(was)), "one name for each, all along"
        changed = {old for new, old in zip(row, was, strict=True) if new != old}
        assert all((new - old) % 2 == 0 for new, old in zip(row, was, strict=True)), "capitals with capitals"
        assert changed and bos not in changed and all(counts[old] * 256 < len(ids) for old in changed)


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("PETRUCHIO", "A"),
        (" Gre", " Aa"),
        ("'ll", "'a"),
        ("\n\n", "\n"),
        ("42", "0"),
        ("E", "A"),
        ("", ""),
        ("Éa", "Aa"),
    ],
)
def test_a_token_looks_like_others_with_the_same_capitals_and_signs(text, looks):
    assert shape(text) == looks


def test_in_a_share_of_the_windows_a_stretch_stands_a_second_time_and_its_seams_are_not_scored():
    ids, shape = torch.arange(20_000), (64, 40, 1, "shuffled")
    plain, some, every = (Batches(ids, *shape, Augmentation(ids, echo=p)) for p in (0.0, 0.5, 0.999))
    (before, _), (half, _), (idx, targets) = plain.at(2), some.at(2), every.at(2)
    assert torch.equal(idx, every.at(2)[0])
    assert 8 < int((half == before).all(1).sum()) < 32
    for row, seen, was in zip(idx.tolist(), targets.tolist(), before.tolist(), strict=True):
        first, second = (place + 1 for place, target in enumerate(seen) if target == IGNORE)
        echo, end = row[first:second], 64 - (second - first)
        start = was.index(echo[0])
        assert 4 <= len(echo) < 22 and row[start : start + len(echo)] == echo == was[start : start + len(echo)]
        assert start + len(echo) <= first and row[:first] + row[second:] == was[:end], "and nothing else is changed"
        assert all(target in (following, IGNORE) for following, target in zip(row[1:], seen[:-1], strict=True))


@pytest.mark.parametrize("block_size", [1, 2, 3, 8, 17])
def test_windows_too_short_for_an_echo_stay_as_they_are_and_longer_ones_keep_their_length(block_size):
    ids = torch.arange(500)
    plain, echoed = (Batches(ids, block_size, 16, 1, "shuffled", Augmentation(ids, echo=p)).at(0) for p in (0, 0.999))
    assert echoed[0].shape == echoed[1].shape == (16, block_size)
    assert torch.equal(plain[0], echoed[0]) == (block_size <= 3)


def test_renaming_leaves_parts_of_characters_where_they_are():
    ids = torch.arange(8).repeat_interleave(torch.tensor([2000, 2, 2, 2, 2, 2, 2, 2]))  # all are rare but the first
    texts = ["and", "A", "B", "C", "D", "\ufffd", "\ufffd", " \ufffd"]
    augmentation = Augmentation(ids, texts=texts, renaming=0.999)
    renamed = torch.stack([augmentation.window(torch.arange(8), 1, str(at))[0] for at in range(100)])
    assert len(renamed[:, 1:5].unique(dim=0)) > 5
    assert (renamed[:, 5:] == torch.tensor([5, 6, 7])).all()
