"""Dropout that draws fast on a CPU: PyTorch draws a number of its generator, one after the other, for every activation,
a quarter of a training step; an eighth of one is enough. On other devices it is PyTorch's own. Knows nothing of layers.

Dropout: A Simple Way to Prevent Neural Networks from Overfitting, Srivastava et al., 2014.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def dropout(x: Tensor, p: float) -> Tensor:
    """x with a share p of it set to zero, on a CPU to the nearest 256th, one at least, and the rest scaled so that the
    mean stays."""
    if not x.is_cpu or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped = min(max(1, round(256 * p)), 255)  # values of a byte
    numbers = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)  # all 64 bits
    kept = numbers.view(torch.uint8)[: x.numel()].view(x.shape).ge_(dropped)  # bytes: bool converts far slower
    return x * kept.to(x.dtype) * (256 / (256 - dropped))


class Dropout(nn.Module):
    """dropout() while training."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x
