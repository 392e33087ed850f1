"""Text to token ids: documents cut into parts, parts into pieces, pieces encoded on all cores.

Knows the split and how a cut changes no token. Knows nothing of files: ids come out as a stream.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, chain, groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from gpt2.device import usable_cores
from gpt2.tokenizer import Tokenizer
from train.config import TrainConfig
from train.document import Document, progress

PIECE = 2**19  # characters encoded at once: some milliseconds of work, little memory
LEARNED_PIECE = 2**16  # characters a vocabulary is learned from at once: the tokenizers library keeps 256 pieces
# Where a token starts whatever stands around it: at white space after something else. GPT-2's rule lets white space
# only begin a token. U+001C to U+001F are white space to Python and not to tiktoken.
SAFE_CUT = re.compile(r"(?<=\S)[^\S\x1c-\x1f]")


def bounds(characters: int, config: TrainConfig) -> tuple[int, int]:
    """Where the training and the validation part of a document end; the rest is held out. By characters."""
    end = characters - int(characters * config.holdout) if config.holdout < 1 else characters
    return end - int(characters * config.validation), end


def parts_of(document: Document, config: TrainConfig) -> Iterator[tuple[int, str]]:
    """(number of the part, some of its text), in order."""
    edges, position = (0, *bounds(document.characters, config), document.characters), 0
    for piece in document.pieces():
        for number, (low, high) in enumerate(pairwise(edges)):
            if inside := piece[max(0, low - position) : max(0, high - position)]:
                yield number, inside
        position += len(piece)


def pieces(texts: Iterable[str], size: int) -> Iterator[str]:
    """The texts, joined, in pieces of at least `size` characters that give, one by one, the tokens of the whole.

    Where no token surely starts within another `size`, the cut is made there all the same.
    """
    rest = ""
    for text in texts:
        rest, start = rest + text, 0
        while len(rest) - start >= 2 * size:  # so the cuts depend on the text alone, and not on how it came in
            cut = SAFE_CUT.search(rest, start + size, start + 2 * size)
            end = cut.start() if cut else start + 2 * size
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest


def training_texts(documents: Iterable[Document], config: TrainConfig) -> Iterator[str]:
    """The training parts, in pieces, for a vocabulary."""
    for document in documents:
        training = (text for number, text in parts_of(document, config) if number == 0)
        for piece in pieces(training, LEARNED_PIECE):
            yield from piece.split("\0")


class Encoded(NamedTuple):
    ids: np.ndarray  # (n,) uint32
    starts: Sequence[int]  # where in ids separators stand
    bytes: int  # of the text, separators not counted


def encoded(
    documents: Sequence[Document], config: TrainConfig, tokenizer: Tokenizer, bos: int
) -> Iterator[tuple[int, Encoded]]:
    """(number of the part, some of its ids) of all documents, in order.

    Args:
        bos: the id that stands before documents and between rows.
    """
    size = sum(document.bytes for document in documents)
    if config.holdout < 1:
        return _in_order(_by_characters(documents, config), size, tokenizer, bos)
    whole = ((n, piece) for n, document in enumerate(documents) for piece in pieces(document.pieces(), PIECE))
    return _by_tokens(_in_order(whole, size, tokenizer, bos), config, tokenizer, bos)


def _encode(text: str, tokenizer: Tokenizer, bos: int) -> Encoded:
    """Ids of a piece, with bos in place of "\0"."""
    first, *rows = re.split("\0+", text)
    ids, starts = [tokenizer.encode_array(first)], []
    separator, n = np.array([bos], dtype=np.uint32), len(ids[0])
    for row in rows:
        starts.append(n)
        ids += [separator, tokenizer.encode_array(row)]
        n += 1 + len(ids[-1])
    return Encoded(np.concatenate(ids), starts, len(text.encode("utf-8")) - text.count("\0"))


def _in_order(jobs: Iterable[tuple[int, str]], total: int, *how) -> Iterator[tuple[int, Encoded]]:
    """The jobs' texts, of `total` bytes, encoded on all cores; no more of them in memory than keep those busy."""
    waiting: deque[tuple[int, Future[Encoded]]] = deque()

    def results(left: int) -> Iterator[tuple[int, Encoded]]:
        while len(waiting) > left:
            number, future = waiting.popleft()
            bar.update(future.result().bytes)
            yield number, future.result()

    cores = usable_cores()
    with progress(total, "Tokenising") as bar, ThreadPoolExecutor(cores) as pool:
        for number, text in jobs:
            waiting.append((number, pool.submit(_encode, text, *how)))
            yield from results(2 * cores)
        yield from results(0)


def _by_characters(documents: Iterable[Document], config: TrainConfig) -> Iterator[tuple[int, str]]:
    """(number of the part, piece of it) of all documents."""
    for document in documents:
        for number, group in groupby(parts_of(document, config), key=itemgetter(0)):
            # Training without <|endoftext|> has nothing between documents; the scored parts always need a first token
            # to predict from.
            lead = ["\0"] if config.endoftext or number else []
            for piece in pieces(chain(lead, map(itemgetter(1), group)), PIECE):
                yield number, piece


def _by_tokens(
    encoded: Iterable[tuple[int, Encoded]], config: TrainConfig, tokenizer: Tokenizer, bos: int
) -> Iterator[tuple[int, Encoded]]:
    """(number of the part, its ids), the held-out part counted in tokens, from (number of the document, some ids)."""
    lengths = np.array([len(tokenizer.token_bytes(idx)) for idx in range(tokenizer.vocab_size)])
    for _, group in groupby(encoded, key=itemgetter(0)):
        found = [piece for _, piece in group]
        befores = accumulate((len(piece.ids) for piece in found), initial=0)
        starts = np.array([before + s for before, piece in zip(befores, found, strict=False) for s in piece.starts])
        ids = np.concatenate([piece.ids for piece in found])
        end = max(0, len(ids) - int(config.holdout))
        for number, (low, high) in enumerate(pairwise((0, end - int(end * config.validation), end, len(ids)))):
            if low == high:
                continue
            if config.endoftext or number:
                yield number, Encoded(np.array([bos]), [0], 0)
            inside = [int(start) - low for start in starts if low <= start < high]
            size = int(lengths[ids[low:high]].sum()) - len(inside) * int(lengths[bos])
            yield number, Encoded(ids[low:high], inside, size)
