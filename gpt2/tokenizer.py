"""Text to token ids and back: byte-level BPE as GPT-2 does it, over tiktoken.

A vocabulary is its merges: 256 bytes in GPT-2's order, one id per merge, then <|endoftext|>. The files are
transformers' (vocab.json, merges.txt, tokenizer.json). Needs no network. Knows nothing of models or
checkpoints; how a vocabulary is learned from a text is train/vocabulary.py's business.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tiktoken

from gpt2.files import MAX_JSON

ENDOFTEXT = "<|endoftext|>"
GPT2_MERGES = Path(__file__).with_name("vocab.bpe")
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"  # as tiktoken publishes it

# GPT-2's splitting rule in the form tiktoken runs fastest: contractions, then words, numbers and punctuation with
# at most one leading space, then white space.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def byte_alphabet() -> dict[int, str]:
    """Byte -> the visible character that stands for it in vocab.json and merges.txt, in the order of GPT-2's ids.

    Bytes that print as one character stand for themselves; the other 68 take the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(0x100 + i) for i, b in enumerate(hidden)}


class Tokenizer:
    """A byte-level BPE vocabulary; any text survives encode and decode unchanged.

    Args:
        merges: pairs of byte strings in the order they were learned.
        ids, endoftext: id of every token and of <|endoftext|>, where a checkpoint numbers them in another order than
            bytes, merges, <|endoftext|>.

    Raises:
        ValueError: where a byte has no id, ids have gaps, or do not rise with the merges (tiktoken merges by id).
    """

    def __init__(
        self, merges: Sequence[tuple[bytes, bytes]], ids: dict[bytes, int] | None = None, endoftext: int | None = None
    ):
        self.merges = list(merges)
        if ids is None:
            ids = {bytes([b]): i for i, b in enumerate(byte_alphabet())}
            for left, right in self.merges:
                ids.setdefault(left + right, len(ids))
        endoftext = len(ids) if endoftext is None else endoftext
        if {*ids.values(), endoftext} != set(range(len(ids) + 1)):
            raise ValueError("the vocabulary's ids must run from 0 without gaps, <|endoftext|> included.")
        _check(self.merges, ids)
        self.endoftext = endoftext
        self._encoding = tiktoken.Encoding(
            "checkpoint", pat_str=PATTERN, mergeable_ranks=ids, special_tokens={ENDOFTEXT: endoftext}
        )
        self._ids = ids

    @classmethod
    def gpt2(cls) -> Tokenizer:
        """GPT-2's own 50,257 tokens, from the merges table beside this file (verified, no network)."""
        data = GPT2_MERGES.read_bytes()
        if hashlib.sha256(data).hexdigest() != GPT2_MERGES_SHA256:
            raise ValueError(f"{GPT2_MERGES} is damaged (its sha256 is not the published one); reinstall the project.")
        return cls(_parse_merges(data.decode("utf-8"), GPT2_MERGES))

    @classmethod
    def from_directory(cls, directory: Path | str) -> Tokenizer:
        """Read vocab.json and merges.txt of a checkpoint or, where transformers 5 wrote none, its tokenizer.json.

        Raises:
            FileNotFoundError: where they are missing.
            ValueError: where they are damaged or are not GPT-2's kind of byte-level BPE; names the file.
        """
        path = Path(directory) / "vocab.json"
        fast_path, merges_path = path.with_name("tokenizer.json"), path.with_name("merges.txt")
        if fast_path.exists() and not path.exists():
            path = fast_path
            vocab, merges = _from_fast(_read_json(path), path)
        else:
            vocab, merges = _read_json(path), _parse_merges(_read(merges_path), merges_path)
        if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
            raise ValueError(f"{path} must map tokens to whole numbers; download or save it again.")
        endoftext = vocab.pop(ENDOFTEXT, None)
        if endoftext is None:
            raise ValueError(f"{path} has no {ENDOFTEXT}, which every GPT-2 vocabulary has.")
        byte_of = {char: b for b, char in byte_alphabet().items()}
        try:
            return cls(merges, {_to_bytes(token, byte_of): i for token, i in vocab.items()}, endoftext)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, directory: Path | str) -> None:
        """Write the files that transformers' AutoTokenizer and our from_directory read."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        char_of = byte_alphabet()

        def visible(token: bytes) -> str:
            return "".join(char_of[b] for b in token)

        vocab = {visible(token): i for token, i in self._ids.items()} | {ENDOFTEXT: self.endoftext}
        vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
        merges = [f"{visible(left)} {visible(right)}" for left, right in self.merges]
        marker = {"content": ENDOFTEXT, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
        bpe = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
        bpe |= dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
        fast = {
            "version": "1.0",
            **dict.fromkeys(("truncation", "padding", "normalizer")),
            "added_tokens": [{"id": self.endoftext, **marker, "special": True}],
            "pre_tokenizer": byte_level,
            "post_processor": {**byte_level, "trim_offsets": False},
            "decoder": byte_level,
            "model": {"type": "BPE", **bpe, "vocab": vocab, "merges": [merge.split(" ") for merge in merges]},
        }
        settings = {
            "tokenizer_class": "GPT2Tokenizer",
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "bos_token": ENDOFTEXT,
            "eos_token": ENDOFTEXT,
            "unk_token": ENDOFTEXT,
            "added_tokens_decoder": {str(self.endoftext): {**marker, "special": True}},
        }
        for name, content in {
            "vocab.json": json.dumps(vocab, ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
            "tokenizer.json": json.dumps(fast, ensure_ascii=False),
            "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        }.items():
            (directory / name).write_text(content, encoding="utf-8", newline="\n")

    @property
    def origins(self) -> list[tuple[int, int]]:
        """Of every id, the two that it was merged from; (-1, -1) of those that were not."""
        parts = {self._ids[left + right]: (self._ids[left], self._ids[right]) for left, right in self.merges}
        return [parts.get(idx, (-1, -1)) for idx in range(self.vocab_size)]

    @property
    def vocab_size(self) -> int:
        """Number of ids, <|endoftext|> included."""
        return len(self._ids) + 1

    @cached_property
    def sha256(self) -> str:
        """Identity of the vocabulary: two tokenizers with the same one give the same ids."""
        lines = sorted((i, token.hex()) for token, i in self._ids.items())
        return hashlib.sha256(json.dumps([lines, self.endoftext]).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text. A literal <|endoftext|> in it is ordinary text: users can not forge the marker."""
        return self._encoding.encode_ordinary(well_formed(text))

    def encode_array(self, text: str) -> Any:
        """encode() as a numpy array, (n,) uint32, without a Python object per id; other threads run meanwhile."""
        return self._encoding.encode_to_numpy(well_formed(text), disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: where an id is not in the vocabulary.
        """
        ids = list(ids)
        for idx in (min(ids, default=0), max(ids, default=0)):
            self.token_bytes(idx)  # refuses what is none
        return self._encoding.decode_bytes(ids).decode("utf-8", "replace")  # a call for each takes far longer

    def token_bytes(self, idx: int) -> bytes:
        """The bytes that one id stands for; those of "<|endoftext|>" for the marker."""
        if not 0 <= idx < self.vocab_size:
            raise ValueError(f"token id {idx} is not in this vocabulary of {self.vocab_size:,}.")
        return self._encoding.decode_single_token_bytes(idx)


def well_formed(text: str) -> str:
    """text with U+FFFD in place of lone surrogates (half an emoji, from a broken escape), which UTF-8 can not hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class TextStream:
    """Turns ids that arrive one by one into text, holding back bytes until their character is complete: one emoji
    can be four tokens. The pieces, joined, are what decode() makes of all the ids."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, idx: int) -> str:
        """Add one id; return the text that became certain, often "" in the middle of a character."""
        return self._decoder.decode(self._tokenizer.token_bytes(idx))

    def end(self) -> str:
        """Return what is still held back; U+FFFD for half a character."""
        return self._decoder.decode(b"", final=True)


def _read(path: Path) -> str:
    if path.stat().st_size > MAX_JSON:  # GPT-2's largest has 2 MB
        raise ValueError(f"{path} is larger than {MAX_JSON / 2**20:.0f} MB; that is no tokenizer file.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid UTF-8 ({error}); download or save it again.") from error


def _read_json(path: Path) -> Any:
    text = _read(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download or save it again.") from error


def _from_fast(fast: Any, path: Path) -> tuple[Any, list[tuple[bytes, bytes]]]:
    """Vocabulary and merges of a tokenizer.json that splits as GPT-2 does."""
    try:
        model, split = fast["model"], fast["pre_tokenizer"]
        kind = model.get("type", "BPE"), split["type"], split.get("add_prefix_space"), split.get("use_regex", True)
        if kind != ("BPE", "ByteLevel", False, True) or fast.get("normalizer"):
            raise ValueError(f"{path} is not GPT-2's kind of tokenizer: a byte-level BPE without a prefix space.")
        lines = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        # Of the tokens added later (padding and the like) only this one has a use here; none is ever encoded.
        added = {token["content"]: token["id"] for token in fast["added_tokens"] if token["content"] == ENDOFTEXT}
        vocab = added | model["vocab"]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} lacks what a tokenizer needs ({error}); download or save it again.") from error
    return vocab, _parse_merges("\n".join(lines), path)


def _to_bytes(token: str, byte_of: dict[str, int]) -> bytes:
    try:
        return bytes(byte_of[char] for char in token)
    except KeyError as error:
        raise ValueError(f"token {token[:40]!r} is not written in GPT-2's byte alphabet.") from error


def _parse_merges(text: str, path: Path) -> list[tuple[bytes, bytes]]:
    byte_of = {char: b for b, char in byte_alphabet().items()}
    merges = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise ValueError(f"{path}, line {number}: expected two tokens and one space, found {line[:40]!r}.")
        try:
            merges.append((_to_bytes(pair[0], byte_of), _to_bytes(pair[1], byte_of)))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    return merges


def _check(merges: list[tuple[bytes, bytes]], ids: dict[bytes, int]) -> None:
    if b"" in ids:
        raise ValueError("a token is empty.")
    absent = [b for b in range(256) if bytes([b]) not in ids]
    if absent:
        raise ValueError(f"the vocabulary lacks {len(absent)} of the 256 bytes (the first is {absent[0]}).")
    last = -1
    for left, right in merges:
        merged = ids.get(left + right, -1)
        if left not in ids or right not in ids or merged <= last:
            raise ValueError(f"the ids do not rise with the merges (at {left!r} + {right!r}).")
        last = merged
    if len(merges) != len(ids) - 256:
        raise ValueError(f"{len(ids) - 256} merged tokens, but {len(merges)} merges.")
    _check_reach(merges)


def _check_reach(merges: list[tuple[bytes, bytes]]) -> None:
    """Refuse a vocabulary with a token that its merges, in their order, do not make from the token's own bytes.

    tiktoken merges any two neighbours whose bytes are a token, transformers and llama.cpp only the listed pair. Where
    every token is reached, both give the same ids for every text: what stands between a token's two ends was merged
    as if it stood alone, so the last pair there is the listed one. Every vocabulary learned by counting is such; one
    made by hand need not be.
    """
    order = {pair: i for i, pair in enumerate(merges)}
    made = {left + right: (i, left, right) for (left, right), i in order.items()}
    unmade = (-1, b"", b"")  # a single byte
    for pair in merges:
        # Undo the merges at the seam of the two parts, the youngest first. A pair across the seam that an earlier
        # merge would have taken means that the seam, and so the token, never comes to be.
        (left, right), before = pair, order[pair]
        while order.get((left, right), before) >= before:
            l_made, r_made = made.get(left, unmade), made.get(right, unmade)
            if l_made > r_made:
                before, _, left = l_made
            elif r_made > unmade:
                before, right = r_made[0] + 1, r_made[1]  # of two equal pairs the left one is merged first
            else:
                break
        else:
            raise ValueError(f"no text ever gets the token {b''.join(pair)!r}: earlier merges take its bytes apart.")
