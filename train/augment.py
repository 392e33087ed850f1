"""What may be done to the windows of a text before a model learns from them, so that a short text teaches more.

Knows token ids; nothing of files, batches or models. What is drawn follows from the seeds that the caller names.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

RARE, RENAMED = 256, 0.25  # a token is rare that is not one in 256; so many of them trade places in a window
ECHOES = (16, 3)  # an echo is a 16th to a third of its window


class Augmentation:
    """Changes of windows, each with its share; nothing by default.

    Args:
        ids: the training tokens, (n,), for what is drawn from them.
        origins: of every id, the two that it was merged from, or -1.
        texts: of every id, what it stands for.
        bos: the id that documents begin with; it keeps its place.
        input_noise: share of the input tokens that are replaced by others of the text, drawn as often as they occur.
        bpe_dropout: share of the tokens that are taken apart, of what they become too (after BPE-Dropout, Provilkov et
            al., 2020, who forget merges while they make the tokens).
        renaming: share of the windows in which some rare tokens have traded places with others that look alike, all
            through the window.
        echo: share of the windows in which a stretch stands a second time, further on.
    """

    def __init__(
        self,
        ids: Tensor,
        origins: Sequence[tuple[int, int]] = (),
        texts: Sequence[str] = (),
        bos: int = 0,
        *,
        input_noise: float = 0.0,
        bpe_dropout: float = 0.0,
        renaming: float = 0.0,
        echo: float = 0.0,
    ):
        self.ids, self.input_noise, self.bpe_dropout = ids, input_noise, bpe_dropout
        self.renaming, self.echo = renaming, echo
        self.parts, self.names = torch.tensor(origins), torch.arange(len(texts))  # (V, 2), (V,)
        if renaming:
            shapes = [shape(text) for text in texts]
            numbers = {one: number for number, one in enumerate(dict.fromkeys(shapes))}
            self.kinds = torch.tensor([numbers[one] for one in shapes])  # (V,)
            counts = sum(np.bincount(some.numpy(), minlength=len(texts)) for some in ids.split(2**24))  # (V,)
            counts[bos] = 0
            counts[["\ufffd" in text for text in texts]] = 0  # parts of characters: any other would break it
            self.rare = self.names[(0 < counts) & (counts * RARE < len(ids))]

    def window(self, window: Tensor, seed: int, at: str) -> tuple[Tensor, list[int]]:
        """A window (n,) changed, as long as before, and which of its tokens nobody could foresee."""
        if self.bpe_dropout:
            window = self._taken_apart(window, generator(f"{seed}/bpe/{at}"))
        if self.renaming:
            window = self._renamed(window, generator(f"{seed}/names/{at}"))
        if self.echo:
            return self._echoed(window, generator(f"{seed}/echo/{at}"))
        return window, []

    def disturb(self, idx: Tensor, seed: str) -> None:
        """Replace some of a row of inputs, (T,), in place."""
        if not self.input_noise:
            return
        draw = generator(seed)
        replaced = torch.rand(idx.shape, generator=draw) < self.input_noise  # (T,)
        positions = torch.randint(self.ids.numel(), (int(replaced.sum()),), generator=draw)
        # NumPy's index: PyTorch before 2.12 has none for such numbers.
        idx[replaced] = torch.from_numpy(self.ids.numpy()[positions.numpy()].astype(np.int64))

    def _taken_apart(self, window: Tensor, draw: torch.Generator) -> Tensor:
        n = len(window)
        new = torch.ones(n, dtype=torch.bool)  # what may be taken apart yet
        while new.any():
            new &= (torch.rand(n, generator=draw) < self.bpe_dropout) & (self.parts[window, 0] >= 0)
            times = 1 + new.long()
            at = (times.cumsum(0) - times)[new]  # where the pieces go
            pieces, window = self.parts[window[new]], window.repeat_interleave(times)
            window[at], window[at + 1] = pieces.unbind(1)
            window, new = window[:n], new.repeat_interleave(times)[:n]
        return window

    def _renamed(self, window: Tensor, draw: torch.Generator) -> Tensor:
        if float(torch.rand((), generator=draw)) >= self.renaming:
            return window
        chosen = self.rare[torch.rand(len(self.rare), generator=draw) < RENAMED]
        shuffled = chosen[torch.randperm(len(chosen), generator=draw)]
        names = self.names.clone()
        names[self._by_kind(chosen)] = self._by_kind(shuffled)
        return names[window]

    def _by_kind(self, ids: Tensor) -> Tensor:
        """The ids, those that look alike together and else in their order."""
        return ids[self.kinds[ids].argsort(stable=True)]

    def _echoed(self, window: Tensor, draw: torch.Generator) -> tuple[Tensor, list[int]]:
        n = len(window)
        shortest, longest = (max(1, n // part) for part in ECHOES)
        if shortest == longest or float(torch.rand((), generator=draw)) >= self.echo:
            return window, []
        length = int(torch.randint(shortest, longest, (), generator=draw))
        start = int(torch.randint(n - 2 * length, (), generator=draw))
        at = int(torch.randint(start + length, n - length, (), generator=draw))
        window = torch.cat([window[:at], window[start : start + length], window[at:]])[:n]
        return window, [at, at + length]


def shape(text: str) -> str:
    """What a token looks like: capitals, small letters, digits, all else as it is; " Gre" is " Aa"."""
    kinds = "".join("A" if c.isupper() else "a" if c.islower() else "0" if c.isdigit() else c for c in text)
    return re.sub(r"(.)\1+", r"\1", kinds, flags=re.DOTALL)


def generator(seed: str) -> torch.Generator:
    """A source of numbers of its own for everything that is drawn."""
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
