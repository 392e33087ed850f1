"""How a vocabulary is learned from a text.

The tokenizers library finds the merges; gpt2/tokenizer.py turns them into a Tokenizer. Knows nothing of parts,
files or models: it is given the training text and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator

from gpt2.tokenizer import Tokenizer, byte_alphabet

BPE_CHARACTERS = 100_000_000  # what merges are learned from at most: more text changes few, and costs memory


def build(
    spec: str, texts: Iterable[str], characters: int, say: Callable[[str], None] = lambda sentence: None
) -> Tokenizer:
    """The tokenizer called spec ("gpt2", "bpe:N" or "char"), learned from texts where it must be.

    Args:
        texts: short ones (a larger text in pieces cut where a token starts anyway); read once, if at all.
        characters: how many the texts have together.
        say: told in a sentence what is being waited for.
    """
    if spec == "gpt2":
        return Tokenizer.gpt2()
    millions = f"{characters / 1e6:,.1f} million characters"
    if spec == "char":
        say(f"Collecting the characters that occur in {millions} ...")
        return Tokenizer(character_merges(texts))
    vocab_size, few = int(spec.removeprefix("bpe:")), characters > BPE_CHARACTERS
    part = f"{BPE_CHARACTERS / 1e6:,.0f} million characters, spread evenly over {millions}" if few else millions
    say(f"Learning a vocabulary of {vocab_size:,} tokens from {part} ...")
    return Tokenizer(bpe_merges(spread(texts, characters, BPE_CHARACTERS), vocab_size))


def spread(texts: Iterable[str], characters: int, most: int) -> Iterator[str]:
    """As many of the texts as fit into `most` characters of all there are, spread evenly over them."""
    seen = taken = 0
    for text in texts:
        seen += len(text)
        if characters <= most or (taken + len(text)) * characters <= seen * most:
            taken += len(text)
            yield text


def bpe_merges(texts: Iterable[str], vocab_size: int) -> list[tuple[bytes, bytes]]:
    """Byte-pair merges by frequency (Sennrich et al., 2016), at most vocab_size less 256 bytes and <|endoftext|>."""
    from tokenizers import Tokenizer as Learner
    from tokenizers import models, pre_tokenizers, trainers

    learner = Learner(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    byte_of = {char: b for b, char in byte_alphabet().items()}
    merges: dict[bytes, tuple[bytes, bytes]] = {}
    for pair in json.loads(learner.to_str())["model"]["merges"]:
        left, right = (bytes(byte_of[char] for char in token) for token in pair)
        merges.setdefault(left + right, (left, right))  # two ways to one token: the first, more frequent, is it
    return list(merges.values())


def character_merges(texts: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Merges that do no more than put together the multi-byte characters that occur, byte by byte from the left."""
    characters = sorted({char.encode("utf-8") for text in texts for char in set(text) if ord(char) > 0x7F})
    merges: dict[bytes, tuple[bytes, bytes]] = {}
    for char in characters:
        for end in range(2, len(char) + 1):
            merges.setdefault(char[:end], (char[: end - 1], char[end - 1 : end]))
    return list(merges.values())
