"""What a model thinks of a text, token by token, and how the sampler chooses the next one.

Windows, filters and draw are the sampler's own, so what is shown is what happens. Everything it returns is numbers
and strings that dataclasses.asdict() turns into JSON. Knows nothing of files, of training or of the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.model import GPT
from gpt2.sampler import CHUNK, SamplingParams, checked, draw, filter_chain
from gpt2.tokenizer import Tokenizer


@dataclass(frozen=True)
class Candidate:
    """A token that could come next."""

    id: int
    text: str  # bytes that are no whole characters as "\xe2\x80"
    probability: float  # as the model has it
    filtered: float  # after the sampling filters; 0 where they removed it


@dataclass(frozen=True)
class TokenScore:
    """A token of a text, and how much the model expected it."""

    id: int
    text: str  # as a Candidate's
    bytes: int  # of UTF-8; 0 for <|endoftext|>, which is no text
    logprob: float  # nats
    rank: int  # 1 is the likeliest
    entropy: float  # nats; how open the model thought the choice to be
    alternatives: tuple[Candidate, ...]  # the likeliest, this token among them or not


@dataclass(frozen=True)
class Score:
    """A text, scored."""

    tokens: tuple[TokenScore, ...]
    nats: float  # the sum of -logprob
    bytes: int

    @property
    def bits_per_byte(self) -> float | None:
        """None for a text without bytes."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    @property
    def perplexity(self) -> float | None:
        """Per token, so only comparable between models with the same tokenizer; None for a text without tokens."""
        if not self.tokens:
            return None
        return math.exp(min(self.nats / len(self.tokens), 700.0))  # above e**709 there are no floats


@dataclass(frozen=True)
class Step:
    """One stage of the filters."""

    name: str  # "raw", then a name of sampler.filter_chain()
    survivors: int  # tokens that can still be chosen
    probabilities: tuple[float, ...]  # of the candidates, in their order


@dataclass(frozen=True)
class NextTokens:
    """What could come next, and how the sampler chooses."""

    candidates: tuple[Candidate, ...]  # the likeliest first, as the model has it; then others that were asked for
    entropy: float  # nats, of the model's own distribution
    steps: tuple[Step, ...]
    chosen: Candidate | None  # None where chance decides and no number was given
    interval: tuple[float, float] | None  # the slice of [0, 1) that chosen has, and the number fell into


@torch.inference_mode()
def score(
    model: GPT,
    tokenizer: Tokenizer,
    text: str | Sequence[int],
    *,
    prompt: str | Sequence[int] = "",
    params: SamplingParams | None = None,
    alternatives: int = 10,
) -> Score:
    """How likely the model finds each token of a text.

    What was generated from a prompt gets the probabilities that the sampler saw. A text of at most block_size tokens
    without a prompt gets the bits per byte of train/scoring.py. A longer one is read as the sampler would, in windows
    that overlap by half: every token beyond the first window has at least half a window before it, as in its
    half-overlap figure. (The windows begin a token later each time, so the two agree to some thousandths of a bit.)

    Args:
        text: a text, or the very ids that a generation drew.
        prompt: what stands before it, read but not scored; "" means the start of a text.
        params: how it was sampled, for Candidate.filtered; where not given, nothing is filtered.
        alternatives: how many candidates per token.

    Raises:
        ValueError: where the model's output is not finite.
    """
    before = _ids(tokenizer, prompt) or [model.config.bos_token_id]
    ids = [*before, *_ids(tokenizer, text)]
    tokens = []
    for start, first, end in _windows(len(before), len(ids), model.config.block_size):
        logits, _ = model(torch.tensor([ids[start : end - 1]], device=model.transformer.wte.weight.device))  # (1, T, V)
        for i in range(first, end):
            tokens.append(
                _token_score(tokenizer, checked(logits[0, i - 1 - start]), ids[: i + 1], params, alternatives)
            )
    return Score(tuple(tokens), -sum(token.logprob for token in tokens), sum(token.bytes for token in tokens))


@torch.inference_mode()
def next_tokens(
    model: GPT,
    tokenizer: Tokenizer,
    text: str | Sequence[int],
    k: int = 10,
    params: SamplingParams | None = None,
    u: float | None = None,
    *,
    drawn: Sequence[int] = (),
    also: Sequence[int] = (),
) -> NextTokens:
    """The k likeliest tokens after a text, before and after each of the sampling filters, and which one is chosen.
    The chosen one is among the candidates even where it is not among the k.

    Args:
        text: a prompt, or its ids; "" means the start of a text.
        params: SamplingParams() where not given.
        u: the random number, at least 0 and below 1; uniform() tells which one a seed draws.
        drawn: ids that a generation has already written after text: they decide where its window began.
        also: ids that are to be among the candidates however unlikely they are.

    Raises:
        ValueError: where the model's output is not finite.
    """
    params = params or SamplingParams()
    before = _ids(tokenizer, text) or [model.config.bos_token_id]
    ids = [*before, *drawn]
    *_, (start, _, _) = _windows(len(before), len(ids) + 1, model.config.block_size)
    cache = model.new_cache()  # with one, only the last position gets logits
    for chunk in torch.tensor([ids[start:]], device=cache.k.device).split(CHUNK, dim=1):
        last = model(chunk, cache=cache)[0]  # (1, 1, V)
    raw = checked(last[0, -1])  # (V,)
    stages = [("raw", raw)]
    for name, apply in filter_chain(params, ids):
        stages.append((name, apply(stages[-1][1])))
    logits, chosen, interval = stages[-1][1], None, None
    filtered = logits.softmax(0)
    if params.greedy:
        chosen = int(logits.argmax())
    elif u is not None:
        chosen = draw(filtered, u)
        cdf = filtered.double().cumsum(0) / filtered.double().sum()
        interval = (float(cdf[chosen - 1]) if chosen else 0.0, float(cdf[chosen]))
    top = raw.topk(min(k, raw.numel())).indices.tolist()
    shown = list(dict.fromkeys([*top, *([] if chosen is None else [chosen]), *also]))
    candidates = _candidates(tokenizer, raw, filtered, shown)
    steps = tuple(Step(name, int(x.isfinite().sum()), tuple(x.softmax(0)[shown].tolist())) for name, x in stages)
    of_chosen = None if chosen is None else candidates[shown.index(chosen)]
    return NextTokens(candidates, _entropy(raw.log_softmax(0)), steps, of_chosen, interval)


def uniform(seed: int, step: int) -> float:
    """The random number with which a generation of that seed chooses its token number `step`, counted from 0."""
    return float(torch.rand(step + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)[-1])


def visible(token: bytes) -> str:
    """A token's text; bytes that are no whole characters in the form \\xe2."""
    return token.decode("utf-8", "backslashreplace")


def _ids(tokenizer: Tokenizer, text: str | Sequence[int]) -> list[int]:
    return tokenizer.encode(text) if isinstance(text, str) else list(text)


def _windows(n: int, total: int, block_size: int) -> Iterator[tuple[int, int, int]]:
    """(start, first, end): the sampler reads from start on when it predicts the tokens first to end - 1, where n
    tokens were given and all together are `total`. See sampler.Draft."""
    start, first = max(0, n - block_size), n
    while first < total:
        end = min(start + block_size + 1, total)
        yield start, first, end
        start, first = end - (block_size // 2 or 1), end


def _token_score(
    tokenizer: Tokenizer, logits: Tensor, ids: list[int], params: SamplingParams | None, alternatives: int
) -> TokenScore:
    """The last of ids, from the logits (V,) after those before it."""
    filtered, idx = logits, ids[-1]
    for _, apply in filter_chain(params, ids[:-1]) if params else ():
        filtered = apply(filtered)
    logprobs, token = logits.log_softmax(0), tokenizer.token_bytes(idx)
    top = logits.topk(min(alternatives, logits.numel())).indices.tolist()
    return TokenScore(
        id=idx,
        text=visible(token),
        bytes=0 if idx == tokenizer.endoftext else len(token),
        logprob=float(logprobs[idx]),
        rank=1 + int((logits > logits[idx]).sum()),
        entropy=_entropy(logprobs),
        alternatives=_candidates(tokenizer, logits, filtered.softmax(0), top),
    )


def _candidates(tokenizer: Tokenizer, logits: Tensor, filtered: Tensor, ids: list[int]) -> tuple[Candidate, ...]:
    numbers = zip(ids, logits.softmax(0)[ids].tolist(), filtered[ids].tolist(), strict=True)
    return tuple(Candidate(idx, visible(tokenizer.token_bytes(idx)), p, q) for idx, p, q in numbers)


def _entropy(logprobs: Tensor) -> float:
    return -float((logprobs.exp() * logprobs).sum())
