"""How well a model predicts a text, token by token: bits per byte, accuracy, calibration.

Bits per byte do not depend on the tokenizer, so models with different vocabularies can be compared. One pass over
the whole part, every byte scored once. Knows nothing of training, nor of which text may be scored.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from gpt2.model import GPT, IGNORE
from train.dataset import Part

EVAL_TOKENS = 4096  # tokens of a forward pass: enough to keep two cores or a GPU busy, seconds at most
MAX_LOGITS = 2**26  # of a forward pass, where one window has no more: 256 MB, and twice that again for their softmax
BINS = 15  # of the confidence, as Guo et al. have them


@dataclass(frozen=True, eq=False)
class Score:
    """What a model made of every token of a text, in order."""

    each: Tensor  # (n,) -log p of the token, in nats
    top: Tensor  # (n,) the probability of the token that it found likeliest
    hit: Tensor  # (n,) bool: that one was right
    bytes: int

    @property
    def nats(self) -> float:
        return float(self.each.double().sum())

    @property
    def tokens(self) -> int:
        return len(self.each)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token, so only comparable between models with the same tokenizer."""
        return math.exp(min(self.nats / self.tokens, 700.0))  # above e**709 there are no floats

    @property
    def accuracy(self) -> float:
        """How often the likeliest token was right."""
        return float(self.hit.double().mean())

    def calibration(self) -> list[dict[str, float]]:
        """How sure the model was of its likeliest token, and how often it was right; a row for every bin of equal
        width that has tokens in it (On Calibration of Modern Neural Networks, Guo et al., 2017)."""
        number = (self.top * BINS).ceil().clamp(1, BINS).long()  # (n,) a bin has its upper edge
        rows = []
        for n in number.unique().tolist():
            top, hit = self.top[number == n].double(), self.hit[number == n].double()
            means = {"confidence": float(top.mean()), "accuracy": float(hit.mean())}
            rows.append({"above": (n - 1) / BINS, "up_to": n / BINS, "tokens": len(top), **means})
        return rows

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: the mean distance between the two, over tokens."""
        gaps = (row["tokens"] * abs(row["confidence"] - row["accuracy"]) for row in self.calibration())
        return sum(gaps) / self.tokens


@dataclass
class Stopper:
    """Remembers the best validation figure, and when to give up waiting for a better one."""

    patience: int
    best: float = math.inf
    best_step: int = 0
    waited: int = 0

    def see(self, value: float, step: int) -> bool:
        """Take in one evaluation; True if it is the best so far. NaN never is."""
        if value < self.best:
            self.best, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def done(self) -> bool:
        return 0 < self.patience <= self.waited


def windows(part: Part, block_size: int, overlap: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """(idx, targets) of shape (T,), in order; every token but the separators is a target exactly once.

    Args:
        overlap: windows advance by half a block_size and only their second half is scored (the first window
            wholly), so that every target has at least half a window of context.
    """
    stride = max(1, block_size // 2) if overlap else block_size
    scored = 0  # targets before this one are done; a token's target is its successor
    while scored < len(part) - 1:
        start = max(0, scored + stride - block_size)
        window = part.ids[start : start + block_size + 1].long()  # (T + 1,), or what is left; all that is ever copied
        idx, targets = torch.zeros(block_size, dtype=torch.long), torch.full((block_size,), IGNORE)  # (T,), (T,)
        idx[: len(window)] = window[:block_size]
        targets[: len(window) - 1] = window[1:]
        first, last = bisect_right(part.starts, start), bisect_right(part.starts, start + block_size)
        targets[[separator - start - 1 for separator in part.starts[first:last]]] = IGNORE
        targets[: scored - start] = IGNORE
        yield idx, targets
        scored = start + block_size


@torch.no_grad()
def score(
    model: GPT,
    part: Part,
    overlap: bool = False,
    autocast: torch.autocast | None = None,
    before_batch: Callable[[], None] = lambda: None,
    done: Callable[[int], object] = lambda n: None,
) -> Score:
    """Score a part with the model as it is; the model's mode (training or not) is restored.

    Args:
        before_batch: called before every forward pass; may raise, to stop.
        done: told, after every one, how many tokens it scored.
    """
    was_training, sizes = model.training, model.config
    model.eval()
    device = model.transformer.wte.weight.device
    rows = max(1, min(EVAL_TOKENS, MAX_LOGITS // sizes.vocab_size) // sizes.block_size)
    cuts, found = windows(part, sizes.block_size, overlap), []
    while batch := list(islice(cuts, rows)):
        before_batch()
        idx, targets = (torch.stack(column).to(device) for column in zip(*batch, strict=True))  # (B, T), (B, T)
        with autocast or torch.autocast(device.type, enabled=False):
            logits, _ = model(idx)  # (B, T, V)
        scored = targets != IGNORE
        log_p, y = logits[scored].log_softmax(-1, dtype=torch.float32), targets[scored]  # (n, V), (n,)
        top, likeliest = log_p.max(-1)  # (n,), (n,)
        each = -log_p.gather(1, y.unsqueeze(1)).squeeze(1)  # (n,)
        found.append([values.cpu() for values in (each, top.exp(), likeliest == y)])
        done(len(y))
    model.train(was_training)
    return Score(*(torch.cat(values) for values in zip(*found, strict=True)), bytes=part.bytes)
