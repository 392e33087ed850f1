"""gpt2/tokenizer.py: GPT-2's ids, any text unchanged, streams that never split a character, damage in one sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, trainers
from transformers import AutoTokenizer

import gpt2
from gpt2 import tokenizer as tokenizer_module
from gpt2.files import MAX_JSON
from gpt2.tokenizer import ENDOFTEXT, byte_alphabet

# One passage with what goes wrong elsewhere: contractions, runs of space, tabs, CRLF, accents composed and combining,
# CJK, right-to-left, emoji with joiners, digits, a byte-order mark, NUL, no-break spaces.
TEXT = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\n\tSpeak, speak.   We'll hear; they'd've"
    " known't.\r\n'Tis 'Save, 'Remember! HE'S DON'T 1st x2y\nIn 1598 he paid 3,000 ducats -- \u2018tis true\u2026  \n\n"
    "\ufeffcaf\xe9 cafe\u0301 na\xefve \xa0\xa0x\u3000y \u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u4e2d\u6587"
    " \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \u0414\u0430!! "
    "\U0001f642\U0001f469\u200d\U0001f680\U0001f1eb\U0001f1f7 e=mc\xb2 \xbd \x00\x7f ~~~ ==== \n \n  end "
)
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=60)
PINS = {
    "": [],
    "hello world": [31373, 995],
    "Hello, I'm a language model,": [15496, 11, 314, 1101, 257, 3303, 2746, 11],
    "JULIET:\n": [41, 6239, 40, 2767, 25, 198],
}


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> gpt2.Tokenizer:
    return gpt2.Tokenizer.gpt2()


@pytest.fixture(scope="module")
def trained_bpe() -> gpt2.Tokenizer:
    """A byte-pair vocabulary that the tokenizers library learned from TEXT, ids in that library's order."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    byte_of = {char: b for b, char in byte_alphabet().items()}

    def to_bytes(token: str) -> bytes:
        return bytes(byte_of[char] for char in token)

    merges = [(to_bytes(a), to_bytes(b)) for a, b in json.loads(learner.to_str())["model"]["merges"]]
    return gpt2.Tokenizer(merges, {to_bytes(token): i for token, i in learner.get_vocab().items()})


@pytest.fixture(scope="module")
def characters() -> gpt2.Tokenizer:
    """A vocabulary whose merges only put together the multi-byte characters of TEXT."""
    merges: dict[bytes, tuple[bytes, bytes]] = {}
    for char in sorted(char.encode() for char in set(TEXT)):
        for end in range(2, len(char) + 1):
            merges.setdefault(char[:end], (char[: end - 1], char[end - 1 : end]))
    return gpt2.Tokenizer(list(merges.values()))


@pytest.fixture(scope="module", params=["gpt2_tokenizer", "trained_bpe", "characters", "tiny_tokenizer"])
def any_tokenizer(request) -> gpt2.Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def opened_by_transformers(any_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    any_tokenizer.save(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture
def saved(tiny_tokenizer, tmp_path) -> Path:
    tiny_tokenizer.save(tmp_path)
    return tmp_path


def read_vocab(directory: Path) -> dict[str, int]:
    return json.loads((directory / "vocab.json").read_text(encoding="utf-8"))


def write_vocab(directory: Path, vocab) -> None:
    (directory / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")


def write_merges(directory: Path, *lines: str) -> None:
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")


# GPT-2's own vocabulary


def test_gpt2_has_50257_tokens_the_last_of_which_ends_a_text(gpt2_tokenizer):
    assert gpt2_tokenizer.vocab_size == 50257
    assert gpt2_tokenizer.endoftext == 50256


@pytest.mark.parametrize("text", PINS)
def test_gpt2_ids_are_the_known_ones(gpt2_tokenizer, text):
    assert gpt2_tokenizer.encode(text) == PINS[text]


def test_gpt2_works_where_no_socket_can_be_opened(run_python):
    code = """
import socket
def refuse(*args, **kwargs): raise SystemExit("a socket was opened")
socket.socket.__init__ = socket.create_connection = socket.getaddrinfo = refuse
import gpt2
print(gpt2.Tokenizer.gpt2().encode("hello world"))
"""
    done = run_python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[31373, 995]\n", "")


def test_a_damaged_merges_table_is_refused(monkeypatch, tmp_path):
    data = bytearray(tokenizer_module.GPT2_MERGES.read_bytes())
    data[1000] ^= 1
    copy = tmp_path / "vocab.bpe"
    copy.write_bytes(data)
    monkeypatch.setattr(tokenizer_module, "GPT2_MERGES", copy)
    with pytest.raises(ValueError, match="vocab.bpe is damaged .*; reinstall the project.$"):
        gpt2.Tokenizer.gpt2()


# Any vocabulary


def test_the_real_text_gets_the_ids_that_transformers_gives_it(any_tokenizer, opened_by_transformers):
    assert any_tokenizer.encode(TEXT) == opened_by_transformers.encode(TEXT)


@given(text=ANY_TEXT)
def test_any_text_gets_the_ids_that_transformers_gives_it(any_tokenizer, opened_by_transformers, text):
    if ENDOFTEXT not in text:
        assert any_tokenizer.encode(text) == opened_by_transformers.encode(text)


def test_transformers_decodes_to_the_same_text(any_tokenizer, opened_by_transformers):
    assert opened_by_transformers.decode(any_tokenizer.encode(TEXT)) == TEXT


def test_transformers_agrees_on_size_and_on_what_ends_a_text(any_tokenizer, opened_by_transformers):
    assert len(opened_by_transformers) == any_tokenizer.vocab_size
    assert opened_by_transformers.eos_token_id == opened_by_transformers.bos_token_id == any_tokenizer.endoftext
    assert opened_by_transformers.encode(ENDOFTEXT) == [any_tokenizer.endoftext]


def test_a_learned_vocabulary_shortens_its_text(trained_bpe):
    assert len(trained_bpe.encode(TEXT)) < 0.8 * len(TEXT.encode())


def test_character_merges_give_one_token_per_character(characters):
    assert len(characters.encode(TEXT)) == len(TEXT)


@given(text=ANY_TEXT)
@example(TEXT)
@example("\x00\r\n\r\ufeff\u2028")
@example("e\u0301\u0302\u0303 \U0001f468\u200d\U0001f469\u200d\U0001f467")
@example("\ufffd")
def test_any_text_survives_encode_and_decode(any_tokenizer, text):
    assert any_tokenizer.decode(any_tokenizer.encode(text)) == text


@given(text=st.text(st.characters(), max_size=30))
@example("a\ud83dz")
@example("\udc80")
@example("\ude42\ud83d")
def test_a_lone_surrogate_becomes_the_replacement_character(tiny_tokenizer, text):
    read = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    assert tiny_tokenizer.decode(tiny_tokenizer.encode(text)) == read


@pytest.mark.parametrize("text", [ENDOFTEXT, f"a{ENDOFTEXT}b", f"\n{ENDOFTEXT}\n"])
def test_a_literal_endoftext_in_a_text_is_never_the_marker(any_tokenizer, text):
    ids = any_tokenizer.encode(text)
    assert any_tokenizer.endoftext not in ids
    assert any_tokenizer.decode(ids) == text


def test_the_marker_decodes_to_its_name(any_tokenizer):
    assert any_tokenizer.decode([any_tokenizer.endoftext]) == ENDOFTEXT


def test_every_id_has_bytes_and_every_single_byte_an_id(any_tokenizer):
    tokens = [any_tokenizer.token_bytes(i) for i in range(any_tokenizer.vocab_size)]
    assert len(set(tokens)) == any_tokenizer.vocab_size
    assert {bytes([b]) for b in range(256)} <= set(tokens)


@pytest.mark.parametrize("idx", [-1, 263, 10**12])
def test_an_id_outside_the_vocabulary_is_refused(tiny_tokenizer, idx):
    stream = gpt2.TextStream(tiny_tokenizer)
    for use in (tiny_tokenizer.token_bytes, lambda i: tiny_tokenizer.decode([0, i]), stream.push):
        with pytest.raises(ValueError, match=f"id {idx} is not in this vocabulary of 263"):
            use(idx)


def test_bytes_that_are_no_text_decode_to_the_replacement_character():
    plain = gpt2.Tokenizer([])
    ids = {plain.token_bytes(i): i for i in range(256)}
    assert plain.decode([ids[b"a"], ids[b"\xff"], ids[b"b"]]) == "a\ufffdb"


# TextStream


@given(data=st.data())
def test_the_pieces_of_a_stream_joined_are_what_decode_makes(any_tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, any_tokenizer.vocab_size - 1), max_size=40))  # most are no valid text
    stream = gpt2.TextStream(any_tokenizer)
    assert "".join([*map(stream.push, ids), stream.end()]) == any_tokenizer.decode(ids)


@given(text=ANY_TEXT)
@example(TEXT)
def test_a_stream_never_shows_half_a_character(any_tokenizer, text):
    stream = gpt2.TextStream(any_tokenizer)
    shown = ""
    for idx in any_tokenizer.encode(text):
        shown += stream.push(idx)
        assert text.startswith(shown)
    assert shown == text
    assert stream.end() == ""


def test_a_stream_that_ends_in_half_a_character_says_so(tiny_tokenizer):
    stream = gpt2.TextStream(tiny_tokenizer)
    assert [stream.push(idx) for idx in tiny_tokenizer.encode("\U0001f642")[:3]] == ["", "", ""]
    assert stream.end() == "\ufffd"


# Files


def test_what_was_saved_is_what_is_read(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    read = gpt2.Tokenizer.from_directory(tmp_path)
    assert read.sha256 == any_tokenizer.sha256
    assert (read.vocab_size, read.endoftext) == (any_tokenizer.vocab_size, any_tokenizer.endoftext)
    assert read.merges == any_tokenizer.merges
    assert read.encode(TEXT) == any_tokenizer.encode(TEXT)


def test_saving_again_writes_the_same_bytes(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path / "a")
    gpt2.Tokenizer.from_directory(tmp_path / "a").save(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_what_transformers_saves_is_what_we_read(any_tokenizer, opened_by_transformers, tmp_path):
    opened_by_transformers.save_pretrained(tmp_path)
    assert gpt2.Tokenizer.from_directory(tmp_path).sha256 == any_tokenizer.sha256


def test_different_vocabularies_have_different_identities(gpt2_tokenizer, trained_bpe, characters, tiny_tokenizer):
    assert len({t.sha256 for t in (gpt2_tokenizer, trained_bpe, characters, tiny_tokenizer)}) == 4


def test_tokens_are_written_in_the_order_of_their_ids(any_tokenizer, tmp_path):
    any_tokenizer.save(tmp_path)
    assert list(read_vocab(tmp_path).values()) == list(range(any_tokenizer.vocab_size))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(saved, name):
    (saved / "tokenizer.json").unlink()
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        gpt2.Tokenizer.from_directory(saved)


def lack_a_byte(directory: Path) -> None:
    vocab = read_vocab(directory)
    last = vocab.pop(ENDOFTEXT)
    vocab["A" * 7] = vocab.pop("A")
    write_vocab(directory, {**vocab, ENDOFTEXT: last})


def swap_two_ids(directory: Path) -> None:
    vocab = read_vocab(directory)
    write_vocab(directory, {**vocab, "th": vocab["the"], "the": vocab["th"]})


def swap_two_merges(directory: Path) -> None:
    write_merges(directory, "t h", "th e", "an d", "a n", "o u", "i n")


def leave_a_gap(directory: Path) -> None:
    write_vocab(directory, {**read_vocab(directory), "in": 300})


def give_an_id_twice(directory: Path) -> None:
    write_vocab(directory, {**read_vocab(directory), "in": 0})


def give_the_marker_a_byte_id(directory: Path) -> None:
    write_vocab(directory, {**read_vocab(directory), ENDOFTEXT: 0})


def give_the_marker_a_far_id(directory: Path) -> None:
    write_vocab(directory, {**read_vocab(directory), ENDOFTEXT: 999})


def drop_the_marker(directory: Path) -> None:
    vocab = read_vocab(directory)
    del vocab[ENDOFTEXT]
    write_vocab(directory, vocab)


def leave_the_byte_alphabet(directory: Path) -> None:
    vocab = read_vocab(directory)
    write_vocab(directory, {**vocab, "\u65e5": vocab.pop("in")})


def leave_the_byte_alphabet_in_a_merge(directory: Path) -> None:
    write_merges(directory, "\u65e5 \u672c")


def add_a_token_that_no_merge_makes(directory: Path) -> None:
    write_vocab(directory, {**read_vocab(directory), "zz": 263})


def merge_what_is_no_token(directory: Path) -> None:
    write_merges(directory, "t h", "th e", "a n", "an d", "o u", "in g")


def merge_what_was_merged_before(directory: Path) -> None:
    """ "ab" comes first, so "bc" never meets the "a": transformers gives "abc" two ids, tiktoken one."""
    gpt2.Tokenizer([(b"a", b"b"), (b"b", b"c")]).save(directory)
    vocab = read_vocab(directory)
    write_vocab(directory, {**vocab, "abc": 258, ENDOFTEXT: 259})
    write_merges(directory, "a b", "b c", "a bc")


def add_an_empty_token(directory: Path) -> None:
    """Undoing the merge of nothing and "a" would give "a" for ever."""
    gpt2.Tokenizer([(b"a", b"b")]).save(directory)
    vocab = read_vocab(directory)
    del vocab["ab"], vocab[ENDOFTEXT]
    write_vocab(directory, {**vocab, "": 256, "ab": 257, ENDOFTEXT: 258})
    write_merges(directory, " a", "a b")


def merge_three(directory: Path) -> None:
    write_merges(directory, "t h e")


def write_fractions(directory: Path) -> None:
    write_vocab(directory, {**read_vocab(directory), "in": 1.5})


def write_truth(directory: Path) -> None:
    vocab = read_vocab(directory)
    write_vocab(directory, {token: True if i == 1 else i for token, i in vocab.items()})


def write_a_list(directory: Path) -> None:
    write_vocab(directory, list(read_vocab(directory)))


def write_garbage(directory: Path) -> None:
    (directory / "vocab.json").write_text('{"a": 1, "b', encoding="utf-8")


def write_what_is_not_utf8(directory: Path) -> None:
    (directory / "merges.txt").write_bytes(b"#version: 0.2\n\xff\xfe \xff\n")


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lack_a_byte, "lacks 1 of the 256 bytes"),
        (swap_two_ids, "do not rise"),
        (swap_two_merges, "do not rise"),
        (leave_a_gap, "without gaps"),
        (give_an_id_twice, "without gaps"),
        (give_the_marker_a_byte_id, "without gaps"),
        (give_the_marker_a_far_id, "without gaps"),
        (drop_the_marker, "no <|endoftext|>"),
        (leave_the_byte_alphabet, "byte alphabet"),
        (leave_the_byte_alphabet_in_a_merge, "byte alphabet"),
        (add_a_token_that_no_merge_makes, "7 merged tokens, but 6 merges"),
        (merge_what_is_no_token, "do not rise"),
        (merge_what_was_merged_before, "no text ever gets the token b'abc'"),
        (add_an_empty_token, "a token is empty"),
        (merge_three, "merges.txt, line 2"),
        (write_fractions, "whole numbers"),
        (write_truth, "whole numbers"),
        (write_a_list, "must map tokens"),
        (write_garbage, "vocab.json"),
        (write_what_is_not_utf8, "merges.txt"),
    ],
)
def test_a_damaged_vocabulary_is_refused_in_one_sentence(saved, damage, word):
    damage(saved)
    with pytest.raises(ValueError) as error:
        gpt2.Tokenizer.from_directory(saved)
    assert word in str(error.value)
    assert str(saved) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_huge_file_is_refused_before_it_is_read(saved, name, monkeypatch):
    with (saved / name).open("r+b") as file:
        file.truncate(MAX_JSON + 1)
    real = Path.read_text

    def read_text(self, **kwargs):
        assert self.name != name
        return real(self, **kwargs)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(ValueError, match=f"{name} is larger than 16 MB"):
        gpt2.Tokenizer.from_directory(saved)


@given(data=st.data())
def test_a_vocabulary_is_refused_exactly_where_its_merges_do_not_make_a_token_from_its_bytes(data):
    """And one that is not gives every text the ids that the listed merges give, as transformers applies them."""
    tokens, merges = [b"a", b"b", b"c"], []
    for _ in range(data.draw(st.integers(1, 7))):
        pair = data.draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if pair[0] + pair[1] not in tokens:
            merges.append(pair)
            tokens.append(pair[0] + pair[1])
    pairs = [(left.decode(), right.decode()) for left, right in merges]
    theirs = tokenizers.Tokenizer(models.BPE({token.decode(): i for i, token in enumerate(tokens)}, pairs))
    if not all(theirs.encode(token.decode()).tokens == [token.decode()] for token in tokens):
        with pytest.raises(ValueError, match="no text ever gets the token"):
            gpt2.Tokenizer(merges)
        return
    ours = gpt2.Tokenizer(merges)
    text = data.draw(st.text("abc", max_size=40))
    assert [ours.token_bytes(i).decode() for i in ours.encode(text)] == theirs.encode(text).tokens


def test_a_vocabulary_without_the_version_line_and_with_crlf_is_read(saved, tiny_tokenizer):
    merges = (saved / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    (saved / "merges.txt").write_text("\r\n".join([*merges, ""]), encoding="utf-8", newline="")
    assert gpt2.Tokenizer.from_directory(saved).sha256 == tiny_tokenizer.sha256


def test_the_marker_may_stand_anywhere_in_the_vocabulary(saved, tiny_tokenizer):
    write_vocab(saved, {token: (i + 1) % 263 for token, i in read_vocab(saved).items()})
    moved = gpt2.Tokenizer.from_directory(saved)
    assert moved.endoftext == 0
    assert moved.encode("the land") == [i + 1 for i in tiny_tokenizer.encode("the land")]
    assert AutoTokenizer.from_pretrained(saved).encode("the land") != moved.encode("the land")  # tokenizer.json is old
    shutil.rmtree(saved)
    moved.save(saved)
    assert AutoTokenizer.from_pretrained(saved).encode("the land" + ENDOFTEXT) == [*moved.encode("the land"), 0]


def only_fast(directory: Path, **changes) -> None:
    """Leave nothing but tokenizer.json, with changes to its parts."""
    fast = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    for name, change in changes.items():
        fast[name] = (fast[name] or {}) | change if isinstance(change, dict) else change
    (directory / "tokenizer.json").write_text(json.dumps(fast), encoding="utf-8")
    (directory / "vocab.json").unlink()
    (directory / "merges.txt").unlink()


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"model": {"type": "Unigram"}},
    ],
)
def test_a_tokenizer_json_that_splits_in_another_way_is_refused(saved, changes):
    fast = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    only_fast(saved, **{"normalizer": fast.get("normalizer"), **changes})
    with pytest.raises(ValueError, match="not GPT-2's kind of tokenizer"):
        gpt2.Tokenizer.from_directory(saved)


def test_a_padding_token_that_was_added_later_is_left_out(saved, tiny_tokenizer):
    fast = json.loads((saved / "tokenizer.json").read_text(encoding="utf-8"))
    padding = {**fast["added_tokens"][0], "id": tiny_tokenizer.vocab_size, "content": "[PAD]"}
    only_fast(saved, added_tokens=[*fast["added_tokens"], padding])
    assert gpt2.Tokenizer.from_directory(saved).sha256 == tiny_tokenizer.sha256
