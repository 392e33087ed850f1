"""Turn logits into text, one token at a time: the filters, the draw, the loop.

Works on token ids; text only at the edges. The filters are transformers' logits processors, in its order.
Knows nothing of files, of who reads the text, or of the page.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gpt2.config import GPTConfig
from gpt2.model import GPT
from gpt2.tokenizer import TextStream, Tokenizer

StopReason = Literal["length", "end-of-text", "deadline", "cancelled"]
MAX_NEW_TOKENS = 100_000  # a bound on nonsense, not on use: any length up to it works
MAX_SEED = 2**63 - 1  # what torch.Generator accepts
BLOCK = 64  # scores whose largest is looked at first
CHUNK = 64  # ids read at once: enough to keep the cores busy, and 124M read them in a tenth of a second


@dataclass(frozen=True)
class SamplingParams:
    """How to choose each next token.

    Raises:
        ValueError: naming the value that is out of range.
    """

    max_new_tokens: int = 200
    temperature: float = 1.0  # below 1 sharpens the distribution, above 1 flattens it; 0 always takes the likeliest
    top_k: int = 50  # keep the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # keep the likeliest tokens that together have this probability; 1 keeps all
    min_p: float = 0.0  # keep tokens at least this fraction as likely as the likeliest; 0 keeps all
    repetition_penalty: float = 1.0  # above 1 makes tokens that are already in the text less likely
    seed: int | None = None  # the same seed gives the same text; None draws a fresh one
    deadline: float | None = None  # seconds after which to stop, however many tokens there are

    def __post_init__(self):
        _whole("max_new_tokens", self.max_new_tokens, 1, MAX_NEW_TOKENS)
        _number("temperature", self.temperature, 0, 100)
        _whole("top_k", self.top_k, 0, 10**9)
        _number("top_p", self.top_p, 0, 1)
        _number("min_p", self.min_p, 0, 1)
        _number("repetition_penalty", self.repetition_penalty, 0.01, 100)
        if self.top_p == 0:
            raise ValueError("top_p=0 would keep no token; use a small number, or temperature=0 for the likeliest.")
        if self.seed is not None:
            _whole("seed", self.seed, 0, MAX_SEED)
        if self.deadline is not None:
            _number("deadline", self.deadline, 0, 10**6)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken; so near to 0 a division by the temperature would overflow."""
        return self.temperature < 1e-5


@dataclass(frozen=True)
class Outcome:
    """What a generation did; the value that generate() returns when it ends."""

    stop_reason: StopReason
    new_ids: tuple[int, ...]
    seed: int  # the seed in effect: passing it again repeats the text
    dropped: int = 0  # tokens at the start of the prompt that did not fit into the model's window


def filter_chain(params: SamplingParams, seen: Sequence[int]) -> list[tuple[str, Callable[[Tensor], Tensor]]]:
    """The filters that params switch on, in order, each (name, logits (V,) -> logits (V,)). What a filter removes
    becomes -inf.

    Args:
        seen: ids of the text so far, for the repetition penalty (Keskar et al., 2019).
    """
    chain: list[tuple[str, Callable[[Tensor], Tensor]]] = []
    if params.repetition_penalty != 1:
        chain.append(("repetition_penalty", lambda x: _penalise(x, seen, params.repetition_penalty)))
    if params.greedy:
        return [*chain, ("greedy", lambda x: _keep(x, x == x.max()))]
    if params.temperature != 1:
        chain.append(("temperature", lambda x: x / params.temperature))
    if params.top_k:
        chain.append(("top_k", lambda x: _keep(x, _among_top(x, params.top_k))))
    if params.top_p < 1:
        chain.append(("top_p", lambda x: _nucleus(x, params.top_p)))
    if params.min_p:
        chain.append(("min_p", lambda x: _above_fraction(x, params.min_p)))
    return chain


def draw(probabilities: Tensor, u: float) -> int:
    """The id whose slice of [0, 1), laid out in the order of ids, holds u."""
    cdf = probabilities.double().cumsum(0)  # float64: 50,257 float32 terms would lose the small ones
    return int(torch.searchsorted(cdf, u * cdf[-1], right=True).clamp(max=len(cdf) - 1))


def checked(logits: Tensor) -> Tensor:
    """Logits as the filters take them: on the CPU and in float32, for one random stream whatever the device, and
    because half precision would tie logits.

    Raises:
        ValueError: where they are not finite, so the checkpoint is broken.
    """
    logits = logits.float().cpu()
    if not logits.sum().isfinite():  # one pass; what is not finite stays so in a sum
        raise ValueError("the model's output is not finite (NaN or infinity): this checkpoint is damaged; use another.")
    return logits


def sample(logits: Tensor, params: SamplingParams, seen: Sequence[int], generator: torch.Generator) -> int:
    """Choose the next id.

    Args:
        logits: scores of all ids, (V,).
        seen: ids of the text so far.
        generator: this request's own source of randomness; one number is taken from it, none when greedy.

    Raises:
        ValueError: where the logits are not finite, so the checkpoint is broken.
    """
    logits, ids = checked(logits), None
    for name, apply in filter_chain(params, seen):
        if name == "top_k":  # what it keeps is all that the rest must look at: 50 numbers, say, and not 50,257
            ids = _top_ids(logits, params.top_k)
            logits = logits[ids]
        else:
            logits = apply(logits)
    if params.greedy:
        return int(logits.argmax())
    u = float(torch.rand((), generator=generator, dtype=torch.float64))
    chosen = draw(logits.softmax(0), u)
    return chosen if ids is None else int(ids[chosen])


def prompt_ids(model: GPT, tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Ids of a prompt; an empty one starts from the model's bos_token_id."""
    return tokenizer.encode(prompt) or [model.config.bos_token_id]


class Draft:
    """One text while it is written: what the model must read next, and what became of it. generate() and the Engine
    both step it, so that they write the same.

    When the model's window is full, its last half is read again and the text goes on from there: learned
    positions can not slide, and reading a full window again for every token would be block_size times slower.

    Args:
        ids: the prompt; only its last block_size ids are read.
    """

    def __init__(self, config: GPTConfig, ids: Sequence[int], params: SamplingParams):
        self.config, self.params = config, params
        self.seed = secrets.randbelow(2**31) if params.seed is None else params.seed
        self.text = list(ids)  # the prompt and what followed
        self.dropped = max(0, len(ids) - config.block_size)
        self.unread = self.text[self.dropped :]
        self.n_prompt = len(ids)
        self.stop_reason: StopReason | None = None
        self._generator = torch.Generator().manual_seed(self.seed)
        self.started = time.monotonic()  # what the deadline counts from

    @property
    def outcome(self) -> Outcome:
        return Outcome(self.stop_reason, tuple(self.text[self.n_prompt :]), self.seed, self.dropped)

    def overflows(self, pos: int) -> bool:
        """Whether what is unread does not fit after pos positions. Then the last half window is unread, and the
        cache must start again."""
        if pos + len(self.unread) <= self.config.block_size:
            return False
        self.unread = self.text[-(self.config.block_size // 2 or 1) :]
        return True

    def is_late(self) -> bool:
        """Whether the deadline has passed; if so, the text ends here."""
        if self.params.deadline is None or time.monotonic() - self.started < self.params.deadline:
            return False
        self.stop_reason = "deadline"
        return True

    def next_chunk(self) -> list[int]:
        """Take what the model must read next: at most CHUNK ids. Text is always cut at the same places, because the
        last bits of what a model computes depend on how much it reads at once."""
        chunk, self.unread = self.unread[:CHUNK], self.unread[CHUNK:]
        return chunk

    def write(self, logits: Tensor) -> int | None:
        """Choose the next id by the scores (V,) that follow what was read; None where the text ends before it.

        Raises:
            ValueError: as for sample().
        """
        idx = sample(logits, self.params, self.text, self._generator)
        if idx == self.config.eos_token_id:
            self.stop_reason = "end-of-text"
            return None
        self.text.append(idx)
        self.unread = [idx]
        if len(self.text) - self.n_prompt == self.params.max_new_tokens:
            self.stop_reason = "length"
        return idx


def stream_ids(model: GPT, draft: Draft) -> Iterator[int]:
    """Yield the new ids of a draft. Runs under the caller's inference mode."""
    cache = model.new_cache()
    while draft.stop_reason is None and not draft.is_late():
        if draft.overflows(cache.pos[0]):
            cache.reset()
        while draft.unread:
            logits, _ = model(torch.tensor([draft.next_chunk()], device=cache.k.device), cache=cache)  # (1, 1, V)
        idx = draft.write(logits[0, -1])
        if idx is not None:
            yield idx


@torch.inference_mode()
def generate(
    model: GPT, tokenizer: Tokenizer, prompt: str, params: SamplingParams | None = None
) -> Generator[str, None, Outcome]:
    """Yield the continuation of prompt in pieces of text, as it is written; return an Outcome at the end.

    A plain generator: take as much as you like, close() it at any time. Inference mode is a decorator and not a
    `with` around the yield, because it is a property of the thread, and each piece may be asked for by another.

    Args:
        prompt: where to go on from; "" starts a new text. Only its last block_size tokens are read.
        params: SamplingParams() where not given.
    """
    draft = Draft(model.config, prompt_ids(model, tokenizer, prompt), params or SamplingParams())
    text = TextStream(tokenizer)
    for idx in stream_ids(model, draft):
        if piece := text.push(idx):
            yield piece
    if piece := text.end():
        yield piece
    return draft.outcome


def _keep(logits: Tensor, kept: Tensor) -> Tensor:
    return logits.masked_fill(~kept, -math.inf)


def _among_top(logits: Tensor, k: int) -> Tensor:
    return logits >= logits.topk(min(k, logits.numel())).values[-1]


def _top_ids(logits: Tensor, k: int) -> Tensor:
    """Ids of what _among_top() keeps, ascending: (k,), more where scores tie."""
    n = len(logits) // BLOCK * BLOCK
    if k >= n // BLOCK:
        return _among_top(logits, k).nonzero().squeeze(1)
    # Twice as fast for 50,257: k blocks have a largest score of at least this much, so the k-th of all has, too.
    least = logits[:n].view(-1, BLOCK).amax(1).topk(k).values[-1]
    ids = (logits >= least).nonzero().squeeze(1)
    return ids[_among_top(logits[ids], k)]


def _penalise(logits: Tensor, seen: Sequence[int], penalty: float) -> Tensor:
    ids = torch.tensor(sorted(set(seen)), dtype=torch.long)
    picked = logits[ids]
    return logits.index_put((ids,), torch.where(picked < 0, picked * penalty, picked / penalty))


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Top-p: the smallest set of likeliest tokens with this much probability (Holtzman et al., 2020)."""
    ascending, order = logits.sort()
    removed = ascending.softmax(0).cumsum(0) <= 1 - top_p
    removed[-1] = False  # the likeliest always stays
    return logits.masked_fill(torch.zeros_like(removed).scatter(0, order, removed), -math.inf)


def _above_fraction(logits: Tensor, min_p: float) -> Tensor:
    """Min-p: a threshold that scales with the likeliest token (Nguyen et al., 2024)."""
    p = logits.softmax(0)
    return _keep(logits, (p >= min_p * p.max()) | (p == p.max()))


def _whole(name: str, value, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a whole number from {low} to {high:,}.")


def _number(name: str, value, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}={value!r} must be a number from {low:g} to {high:g}.")
