"""int8 products for CPUs with instructions for them: a token fetches a quarter of the bytes that float32 would.

Weights are int8, one scale for each output channel; activations become uint8 as they come, a lowest value and a scale
for each row (W8A8). The products are sums of whole numbers, and what is done to them afterwards is done number by
number: no row of a result depends on the rows beside it. Knows nothing of checkpoints, or of which CPU it runs on.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.linear import Linear, TokenEmbedding

SMALLEST = 1e-12  # a scale; what is all zeros needs one too


class Int8(nn.Module):
    """y = x @ weight.T + bias, both factors rounded to eight bits.

    Args:
        weight: (out, in), float32; not kept.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        super().__init__()
        scale = weight.abs().amax(1).clamp_(min=SMALLEST).div_(127)  # (out,)
        # Kept as (out, in), though the product wants (in, out): at one row that is nearly three times as fast.
        self.register_buffer("weight", weight.div(scale.unsqueeze(1)).round_().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("sums", self.weight.sum(1).mul(scale))  # (out,): what an activation of 1 everywhere gives
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        q, low, step = _rounded(x.reshape(-1, x.size(-1)))
        y = torch._int_mm(q, self.weight.t()).float()  # (rows, out)
        # One operation after the other: a fused one rounds differently at the ends of what a thread was given.
        y = y.mul_(step).mul_(self.scale).add_(low * self.sums)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)

    def emulate(self, x: Tensor) -> Tensor:
        """What forward() should give, from the same eight bits in floating point."""
        q, low, step = _rounded(x.reshape(-1, x.size(-1)))
        weight = self.weight.double() * self.scale.unsqueeze(1)
        bias = None if self.bias is None else self.bias.double()
        return F.linear(q * step.double() + low, weight, bias).float().view(*x.shape[:-1], -1)


class Int8Embedding(TokenEmbedding):
    """Looks up as before, in float32, and scores in int8."""

    def __init__(self, weight: Tensor):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.head = Int8(weight)

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, self.weight)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(x)


def quantized(module: nn.Module) -> nn.Module:
    """The int8 form of a module with a large weight; any other module as it is."""
    if isinstance(module, Linear):
        return Int8(module.weight.detach(), module.bias.detach())
    if isinstance(module, TokenEmbedding):
        return Int8Embedding(module.weight.detach())
    return module


def dtype_of(model: nn.Module) -> str:
    """The number format that a model computes in, by name."""
    wte = model.transformer.wte
    return "int8" if isinstance(wte, Int8Embedding) else str(wte.weight.dtype).removeprefix("torch.")


@cache
def why_not() -> str | None:
    """Why int8 can not be used with this PyTorch on this CPU, as the middle of a sentence; None where it can.

    Compares with the emulation. Among the numbers are the largest: instructions that add pairs of products in 16 bits
    (vpmaddubsw) cut them off.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(80, 96, generator=generator), torch.randn(17, 96, generator=generator)
    weight[:8], weight[8:16] = 1, -1
    x[:, 0], x[3:6, 1:] = -2, 3  # rows of 255 but for one 0
    layer = Int8(weight, torch.randn(80, generator=generator))
    try:
        for rows in (x, x[3:4], x[:5]):
            wrong = (layer(rows) - layer.emulate(rows)).abs().max()
            if not wrong < 1e-3:
                return f"its int8 product is wrong by {wrong:.2g} on this CPU"
    except (RuntimeError, AttributeError, TypeError) as error:
        return f"it has no int8 product for this CPU ({str(error).splitlines()[0][:100]})"
    return None


def _rounded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (rows, in) as uint8, and the lowest value and the step of each row, both (rows, 1): x is low + step * uint8."""
    low, high = x.aminmax(dim=1, keepdim=True)
    step = (high - low).clamp_(min=SMALLEST).div_(255)
    return (x - low).div_(step).round_().to(torch.uint8), low, step
