"""Weights that begin with what every language model comes to find, and small ones on little text never do: attention
that copies. Two heads of the first layer look at the token before and the one before that; two of the second look for
where the present token, or the last two, came before, and say what followed there (induction heads: In-context Learning
and Induction Heads, Olsson et al., 2022). They are weights like any other from then on, in a plain GPT-2.

Knows the network; nothing of text or training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpt2.model import GPT

# Found by trying, at 4 layers of 256 channels. What the heads read and write is as large as what an optimizer moves in
# a hundred steps; smaller, it is gone before it is of use. The last norm makes good for the larger embeddings.
EMBEDDING, WAVES, LAST_NORM = 0.3, 1.4, 1.6  # the norm over the square root of the width
SHARPNESS, PREVIOUS, COPY = 3.0, 0.5, 2.0
FASTEST = 2.0  # radians per token


@torch.no_grad()
def give(model: GPT, draw: torch.Generator) -> GPT:
    """Put the four heads, and the embeddings that they live on, in the place of fresh weights.

    Positions are waves in the last channels, as many as a head has, so that a shift is a rotation (after Attention Is
    All You Need, Vaswani et al., 2017); the heads carry tokens through a subspace of the other channels.

    Args:
        model: of two layers and two heads at least.
    """
    config, h = model.config, model.transformer.h
    C, size = config.n_embd, config.n_embd // config.n_head
    half, tokens = size // 2, C - size
    model.transformer.wte.weight.mul_(EMBEDDING / 0.02)
    model.transformer.ln_f.weight.fill_(LAST_NORM / math.sqrt(C))

    rates = FASTEST * (config.block_size / 2) ** -(torch.arange(half) / half)  # (half,)
    angles = torch.arange(config.block_size)[:, None] * rates  # (T, half)
    waves = slice(tokens, tokens + 2 * half)
    model.transformer.wpe.weight[:, waves] = WAVES * torch.cat([angles.sin(), angles.cos()], 1)

    def before(n: int) -> Tensor:  # reads the waves of the position n tokens ago
        cos, sin = (n * rates).cos().diag(), (n * rates).sin().diag()
        reads = torch.zeros(size, C)
        reads[: 2 * half, waves] = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
        return reads

    token, last, last_but_one, first_copy, second_copy = (_subspace(size, tokens, C, draw) for _ in range(5))
    turn = torch.linalg.qr(torch.randn(size, size, generator=draw))[0]  # keeps two sums apart
    now, then = token + turn @ last, last + turn @ last_but_one
    _set(h[0].attn, 0, SHARPNESS * before(1), SHARPNESS * before(0), token, PREVIOUS * last)
    _set(h[0].attn, 1, SHARPNESS * before(2), SHARPNESS * before(0), token, PREVIOUS * last_but_one)
    _set(h[1].attn, 0, SHARPNESS * token, SHARPNESS * last, first_copy, COPY * first_copy)
    _set(h[1].attn, 1, SHARPNESS * now, SHARPNESS * then, second_copy, COPY * second_copy)
    return model


def _subspace(size: int, channels: int, C: int, draw: torch.Generator) -> Tensor:
    """Orthonormal rows (size, C) over the first so many channels."""
    rows = torch.linalg.qr(torch.randn(channels, size, generator=draw))[0].T
    return torch.cat([rows, torch.zeros(size, C - channels)], 1)


def _set(attention: torch.nn.Module, head: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """The weights of a head, all (size, C)."""
    C, size = q.size(1), q.size(0)
    for number, rows in enumerate((q, k, v)):
        start = number * C + head * size
        attention.c_attn.weight[start : start + size] = rows
    attention.c_proj.weight[:, head * size : (head + 1) * size] = out.T
