"""Weights that begin with what every language model comes to find, and small ones on little text never do: attention
that copies. One head of the first layer looks at the token before; one of the second looks for where the present token
came before, and says what followed it there (induction heads: In-context Learning and Induction Heads, Olsson et al.,
2022). They are weights like any other from then on, and the network is a plain GPT-2.

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
    """Put the two heads, and the embeddings that they live on, in the place of fresh weights.

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

    here, before = torch.zeros(2, size, C)  # what reads the waves of a position, and those of the one before
    here[: 2 * half, waves] = torch.eye(2 * half)
    cos, sin = rates.cos().diag(), rates.sin().diag()
    before[: 2 * half, waves] = torch.cat([torch.cat([cos, -sin], 1), torch.cat([sin, cos], 1)])
    token, last, copied = (_subspace(size, tokens, C, draw) for _ in range(3))
    _set(h[0].attn, SHARPNESS * before, SHARPNESS * here, token, PREVIOUS * last)
    _set(h[1].attn, SHARPNESS * token, SHARPNESS * last, copied, COPY * copied)
    return model


def _subspace(size: int, channels: int, C: int, draw: torch.Generator) -> Tensor:
    """Orthonormal rows (size, C) over the first so many channels."""
    rows = torch.linalg.qr(torch.randn(channels, size, generator=draw))[0].T
    return torch.cat([rows, torch.zeros(size, C - channels)], 1)


def _set(attention: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
    """The weights of the first head, all (size, C)."""
    C, size = q.size(1), q.size(0)
    for number, rows in enumerate((q, k, v)):
        attention.c_attn.weight[number * C : number * C + size] = rows
    attention.c_proj.weight[:, :size] = out.T
