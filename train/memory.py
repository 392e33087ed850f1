"""What a model learned by heart: how much of what it writes was copied, and whether it can be made to recite.

People repeat each other too, so every figure stands beside the same one of the held-out text, which somebody wrote and
the model never read. Knows nothing of training.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2.cache import KVCache
from gpt2.model import GPT
from gpt2.overlap import WORDS, Overlap, contains, ngrams, words
from gpt2.sampler import SamplingParams, sample
from gpt2.tokenizer import Tokenizer
from train.dataset import Dataset, Part
from train.document import progress

MAX_TEXT = 20_000_000  # bytes of training text whose words are compared: some seconds, some hundred megabytes
SAMPLES, SAMPLE_TOKENS = 64, 200  # texts from nothing, as long as the window allows at most
PARAMS = SamplingParams(temperature=1.0, top_k=50)  # as transformers samples from the checkpoint by default
PROMPTS, RECITED = 200, 50  # of each part; tokens given, and as many again asked for
LONGEST_NGRAM = 16  # words
ROWS = 32  # texts written at once

Choose = Callable[[Tensor], Tensor]  # logits (B, V) -> ids (B,)


@torch.inference_mode()
def report(
    model: GPT, data: Dataset, names: Sequence[str], check_stop: Callable[[], None] = lambda: None, window: int = 1
) -> dict:
    """The figures, as training.json holds them under "memorisation".

    Extraction: at how many places of a part the model, given 50 tokens and always taking the likeliest, goes on with
    exactly the next 50 (Carlini et al., 2023). For texts up to MAX_TEXT also, in words as gpt2/overlap.py has
    them: novelty, the share of n-grams that the training text lacks, n from 1 to 16; copied, the share of words in
    runs of at least 8 that it has; longest_copy, and where the training text has it.

    Args:
        names: of the documents, in order.
        check_stop: called before every forward pass; may raise, to stop.
        window: tokens from one place of the training part that may be tried to the next. A model that read the same
            windows in every epoch knows them by heart from where they begin, and by their positions: put in the place
            of a window's beginning, what follows in its middle is nothing that it has ever seen.
    """
    length, n_new = min(RECITED, model.config.block_size // 2), min(SAMPLE_TOKENS, model.config.block_size - 1)
    places = {"train": _places(data.train, 2 * length, window), "held_out": _places(data.holdout, 2 * length)}
    total = SAMPLES * n_new + length * sum(map(len, places.values()))
    with progress(total, "Looking for copies", unit="tok") as bar:

        def write(idx: Tensor, n: int, choose: Choose) -> Tensor:
            """What the model writes after idx (B, T), (B, n)."""
            weight = model.transformer.wte.weight
            sizes = replace(model.config, block_size=idx.size(1) + n)
            cache, written = KVCache(sizes, len(idx), weight.device, weight.dtype), torch.empty(len(idx), n).long()
            for i in range(n):
                check_stop()
                logits, _ = model(idx.to(weight.device), cache=cache)  # (B, 1, V)
                written[:, i] = choose(logits[:, -1])
                idx = written[:, i : i + 1]  # (B, 1)
                bar.update(len(idx))
            return written

        extraction = {"prompt_tokens": length, "recited_tokens": length, "from_window_starts": window > 1}
        for name, part in (("train", data.train), ("held_out", data.holdout)):
            recited = _recited(part, places[name], length, write)
            extraction[name] = {"prompts": len(recited), "recited": sum(recited)}
        if data.train.bytes > MAX_TEXT:
            return {"extraction": extraction}
        texts = _samples(model, data.tokenizer, n_new, write)
    sampling = {"samples": len(texts), "tokens": n_new, "temperature": PARAMS.temperature, "top_k": PARAMS.top_k}
    held_out = {"held_out": list(data.holdout.texts(data.tokenizer))} if len(data.holdout) > 1 else {}
    return {"extraction": extraction, "sampling": sampling} | copies(data, {"generated": texts} | held_out, names)


def copies(data: Dataset, texts: dict[str, list[str]], names: Sequence[str]) -> dict[str, Any]:
    """Novelty, copied and longest_copy of each of texts, held against the training part."""
    train = Words.of(data.train.texts(data.tokenizer))
    others = {name: Words.of(some) for name, some in texts.items()}
    found: dict[str, Any] = {"novelty": {"unit": "words"} | {name: [] for name in texts}}
    for n in range(1, LONGEST_NGRAM + 1):
        known = np.sort(train.runs(n))
        for name, other in others.items():
            runs = other.runs(n)
            if len(runs):
                found["novelty"][name].append(round(1 - float(contains(known, runs).mean()), 4))
    overlap = Overlap(np.sort(train.runs(WORDS) >> 16), np.empty(0, dtype=bool))
    found["copied"] = {name: round(overlap.share("\0".join(some)), 5) for name, some in texts.items()}
    found["longest_copy"] = {name: _longest(train, other, data, names) for name, other in others.items()}
    return found


@dataclass(frozen=True)
class Words:
    """The words of several texts, one after the other."""

    hashes: np.ndarray  # (n,) uint64
    text: np.ndarray  # (n,) the number of the text that each belongs to

    @classmethod
    def of(cls, texts: Iterable[str]) -> Words:
        hashes = [words(text)[1] for text in texts]
        lengths = [len(some) for some in hashes]
        return cls(np.concatenate([np.empty(0, np.uint64), *hashes]), np.repeat(np.arange(len(hashes)), lengths))

    def inside(self, n: int) -> np.ndarray:
        """Which runs of n words lie inside one text, (N - n + 1,) bool."""
        return self.text[n - 1 :] == self.text[: max(0, len(self.text) - n + 1)]

    def runs(self, n: int) -> np.ndarray:
        """The hashes of all runs of n words inside a text."""
        return ngrams(self.hashes, n)[self.inside(n)]


def _longest(train: Words, other: Words, data: Dataset, names: Sequence[str]) -> dict[str, Any]:
    """How many words in a row the two have in common at most, and where the training text has them."""

    def common(n: int) -> np.ndarray:
        runs = other.runs(n)
        return runs[contains(np.sort(train.runs(n)), runs)]

    low, high = 0, int(np.bincount(other.text).max(initial=0))  # of what is common, the longest is among these
    while low < high:
        n = (low + high + 1) // 2
        low, high = (n, high) if len(common(n)) else (low, n - 1)
    if not low:
        return {"words": 0}
    at = int(np.flatnonzero((ngrams(train.hashes, low) == common(low)[0]) & train.inside(low))[0])
    number = int(train.text[at])
    text = next(islice(data.train.texts(data.tokenizer), number, None))
    first = words(text)[0][at - int(np.searchsorted(train.text, number))][0]
    # A data set has more texts, its rows, than documents; without separators all documents are one text.
    where = {"document": names[number]} if train.text[-1] + 1 == len(names) else {"text": number}
    return {"words": low, **where, "line": text.count("\n", 0, first) + 1}


def _places(part: Part, length: int, window: int = 1) -> list[int]:
    """Where PROMPTS stretches of that many tokens begin, evenly spread over a part's windows; less those with a
    separator."""
    n = len(part) // window * window
    spread = np.linspace(0, n - length, PROMPTS).astype(int) if 0 < length <= n else np.empty(0, int)
    spread = spread // window * window
    starts = part.starts
    return [i for i in sorted(set(map(int, spread))) if bisect_left(starts, i) == bisect_left(starts, i + length)]


def _recited(part: Part, places: list[int], length: int, write: Callable[..., Tensor]) -> list[bool]:
    """Whether the model goes on word for word, from each of the places."""
    recited = []
    for first in range(0, len(places), ROWS):
        rows = torch.stack([part.ids[i : i + 2 * length].long() for i in places[first : first + ROWS]])  # (B, 2L)
        written = write(rows[:, :length], length, lambda logits: logits.argmax(-1).cpu())  # (B, L)
        recited += (written == rows[:, length:]).all(1).tolist()
    return recited


def _samples(model: GPT, tokenizer: Tokenizer, n_new: int, write: Callable[..., Tensor]) -> list[str]:
    """Texts that the model began itself; sample number i has the seed i. What may be half a word at the end is cut."""
    texts = []
    for first in range(0, SAMPLES, ROWS):
        generators = [torch.Generator().manual_seed(seed) for seed in range(first, min(first + ROWS, SAMPLES))]

        def choose(logits: Tensor, generators=generators) -> Tensor:
            rows = zip(logits.float().cpu(), generators, strict=True)
            return torch.tensor([sample(row, PARAMS, (), generator) for row, generator in rows])

        start = torch.full((len(generators), 1), model.config.bos_token_id)
        for ids in write(start, n_new, choose).tolist():
            ended = model.config.eos_token_id in ids
            text = tokenizer.decode(ids[: ids.index(model.config.eos_token_id)] if ended else ids)
            spans = words(text)[0]
            texts.append(text if ended or not spans else text[: spans[-1][0]])
    return texts
