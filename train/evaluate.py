"""How well a model predicts text it was not trained on, in bits per byte.

Bits per byte do not depend on the tokenizer, so models with different vocabularies can be compared. One pass over
the whole part, every byte scored once. Knows nothing of training.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.model import GPT, IGNORE
from train.dataset import Part

EVAL_TOKENS = 4096  # tokens of a forward pass: enough to keep two cores or a GPU busy, seconds at most


@dataclass(frozen=True)
class Score:
    """The sum of -log p over a text."""

    nats: float
    tokens: int
    bytes: int

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def perplexity(self) -> float:
        """Per token, so only comparable between models with the same tokenizer."""
        return math.exp(self.nats / self.tokens)


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
) -> Score:
    """Score a part with the model as it is; the model's mode (training or not) is restored.

    Args:
        before_batch: called before every forward pass; may raise, to stop.
    """
    was_training = model.training
    model.eval()
    device = model.transformer.wte.weight.device
    rows = max(1, EVAL_TOKENS // model.config.block_size)
    nats, tokens, batch = torch.zeros((), dtype=torch.float64), 0, []

    def flush() -> None:
        nonlocal nats, tokens
        before_batch()
        idx, targets = (torch.stack(column).to(device) for column in zip(*batch, strict=True))
        n = int((targets != IGNORE).sum())
        with autocast or torch.autocast(device.type, enabled=False):
            _, loss = model(idx, targets)
        nats += loss.cpu().double() * n  # in this order: MPS has no float64
        tokens += n
        batch.clear()

    for window in windows(part, model.config.block_size, overlap):
        batch.append(window)
        if len(batch) == rows:
            flush()
    if batch:
        flush()
    model.train(was_training)
    return Score(float(nats), tokens, part.bytes)
