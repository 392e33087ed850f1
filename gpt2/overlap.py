"""Which words of an output stand verbatim in the training text.

overlap.safetensors holds hashes of all runs of 8 words of the training text, 6 bytes each, and which tokens of the
vocabulary occur there; no text. A word is a stretch without white space, less the punctuation around it, in one case:
so a copied line is found however it is wrapped, quoted or capitalised.

A run that the text lacks is taken for one that it has with probability n / 2**48, n the number of runs: below 4e-8 for
any file that is accepted, 3e-9 for the bundled one. The hashes tell nobody what the text says, but whoever has eight
words of it can find the ninth by trying: leave the file out for a private text.

Knows nothing of models, nor of how a text is split for training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.files import CheckpointError, check_file

FILE = "overlap.safetensors"
WORDS = 8  # of a run: shorter ones are the language's, not the author's
RUNS, SEEN = f"runs_of_{WORDS}_words", "seen"  # the tensors: (n, 6) uint8, big-endian and rising; (V,) bool
MAX_FILE = 64 * 2**20  # bytes; 20 MB of prose have four million runs, which take 24 MB
_WORD = re.compile(r"[^\W_](?:[^\s\0]*[^\W_])?")
_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2**64


@dataclass(frozen=True)
class Overlap:
    """What a training text had, to compare others with."""

    runs: np.ndarray  # (n,) uint64, rising: the upper 48 bits of the hashes
    seen: np.ndarray  # (V,) bool: the ids that occur in the training text

    @classmethod
    def from_directory(cls, directory: Path | str) -> Overlap | None:
        """Read a checkpoint's overlap.safetensors; None where it has none.

        Raises:
            CheckpointError: where the file is damaged, too large or elsewhere.
        """
        path = Path(directory) / FILE
        if not path.is_file():
            return None
        check_file(path, MAX_FILE)
        try:
            with safe_open(path, framework="pt") as file:
                return cls.from_tensors({name: file.get_tensor(name) for name in (RUNS, SEEN)})
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged, or no {FILE} ({error}); download or save it again.") from error

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Overlap:
        """Take what build() made.

        Raises:
            ValueError: where it can not have made it.
        """
        runs, seen = tensors[RUNS], tensors[SEEN]
        if runs.dtype != torch.uint8 or runs.shape[1:] != (6,) or seen.dtype != torch.bool or seen.dim() != 1:
            raise ValueError("its tensors have other shapes than they should")
        wide = np.zeros((len(runs), 8), dtype=np.uint8)
        wide[:, 2:] = runs.numpy()
        hashes = wide.view(">u8").reshape(-1).astype(np.uint64)
        if (hashes[1:] <= hashes[:-1]).any():
            raise ValueError("its hashes do not rise")
        return cls(hashes, seen.numpy())

    def spans(self, text: str) -> list[tuple[int, int]]:
        """(start, end) in characters of what stands in the training text, in runs of at least 8 words."""
        spans, copied = self._copied(text)
        edges = np.flatnonzero(np.diff(copied, prepend=False, append=False)).tolist()
        return [(spans[first][0], spans[end - 1][1]) for first, end in zip(edges[::2], edges[1::2], strict=True)]

    def share(self, text: str) -> float:
        """The share of a text's words that lie inside its spans."""
        copied = self._copied(text)[1]
        return float(copied.mean()) if len(copied) else 0.0

    def saw(self, idx: int) -> bool:
        """Whether a token occurs in the training text; where it does not, the model could not learn what it means."""
        return idx < len(self.seen) and bool(self.seen[idx])

    def _copied(self, text: str) -> tuple[list[tuple[int, int]], np.ndarray]:
        """The words of a text, and which of them are part of a known run, (n,) bool."""
        spans, hashes = words(text)
        known = contains(self.runs, ngrams(hashes, WORDS) >> 16)
        copied = np.zeros(len(spans), dtype=bool)
        for offset in range(WORDS):
            copied[offset : offset + len(known)] |= known
        return spans, copied


def build(texts: Iterable[str], seen: Tensor) -> dict[str, Tensor]:
    """The tensors of overlap.safetensors.

    Args:
        texts: the training part of every document; no run leads from one into the next.
        seen: which ids occur in them, (V,) bool.
    """
    runs = [ngrams(words(text)[1], WORDS) >> 16 for text in texts]
    runs = np.sort(np.concatenate([np.empty(0, np.uint64), *runs]))  # (n,)
    runs = runs[np.diff(runs, prepend=np.uint64(2**64 - 1)) != 0]  # not np.unique, which takes 3 s for a million
    as_bytes = runs.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 2:]  # (n, 6)
    return {RUNS: torch.from_numpy(as_bytes.copy()), SEEN: seen}


def words(text: str) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Where the words of a text stand, (start, end) in characters, and their hashes, (n,) uint64."""
    spans = [match.span() for match in _WORD.finditer(text)]
    folded = [text[start:end].casefold() for start, end in spans]
    hash_of = {
        word: int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
        for word in set(folded)
    }
    return spans, np.array([hash_of[word] for word in folded], dtype=np.uint64)


def ngrams(hashes: np.ndarray, n: int) -> np.ndarray:
    """One hash, (N - n + 1,) uint64, for every n words in a row: the sum of hash k times base**k, modulo 2**64."""
    if len(hashes) < n:
        return np.empty(0, np.uint64)
    powers, inverses = (_powers(base, len(hashes)) for base in (_BASE, pow(_BASE, -1, 2**64)))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes * powers)])
    return (sums[n:] - sums[:-n]) * inverses[: len(hashes) - n + 1]


def contains(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Which of values, (n,), stand in a sorted array, (n,) bool."""
    at = np.searchsorted(known, values)
    found = np.zeros(len(values), dtype=bool)
    inside = at < len(known)
    found[inside] = known[at[inside]] == values[inside]
    return found


def _powers(base: int, n: int) -> np.ndarray:
    """base**0 to base**(n - 1), modulo 2**64."""
    factors = np.full(n, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
