"""int8 products for the CPU: a token fetches a quarter of the bytes that float32 would.

Weights are int8, one scale for each output channel; activations become whole numbers from 0 to 255 as they come, a
lowest value and a span for each row (W8A8). The products are sums of whole numbers, and what is done to them
afterwards is done number by number: no row of a result depends on the rows beside it. FBGEMM multiplies, through
PyTorch's dynamic quantization. Knows nothing of checkpoints, or of which CPU it runs on.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.linear import Linear, TokenEmbedding

SMALLEST = 1e-12  # a scale or a span: what is all zeros needs a scale too
LARGEST = 127  # of a whole weight, where the CPU adds products in 32 bits (VNNI)
LARGEST_IN_PAIRS = 63  # where it adds them in pairs, in 16 bits: two of 255 * 63 fit, and weights have seven bits


class Int8(nn.Module):
    """y = x @ weight.T + bias, both factors rounded to eight bits.

    Args:
        weight: (out, in), float32; not kept.
        largest: of the whole numbers that the weights become.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, largest: int):
        super().__init__()
        self.largest = largest
        scale = weight.abs().amax(1).clamp_(min=SMALLEST).div_(largest)  # (out,)
        whole = weight.div(scale.unsqueeze(1)).round_().to(torch.int8)
        with warnings.catch_warnings():  # that PyTorch will do without such tensors one day: why_not() will say so
            warnings.simplefilter("ignore")
            q = torch._make_per_channel_quantized_tensor(whole, scale.double(), torch.zeros_like(scale).long(), 0)
        self._packed = torch.ops.quantized.linear_prepack(q, None)
        self.sums = whole.sum(1).mul(scale)  # (out,): what an activation of 1 everywhere gives
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        part, low, span = _parts(x)
        # It rounds part to 256 steps between the lowest and the highest that it sees, and those are 0 and 1.
        y = torch.ops.quantized.linear_dynamic(part, self._packed)  # (rows, out)
        # One operation after the other: a fused one rounds differently at the ends of what a thread was given.
        y = y.mul_(span).add_(low * self.sums)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)

    def emulate(self, x: Tensor) -> Tensor:
        """What forward() should give, from the same whole numbers in floating point."""
        part, low, span = _parts(x)
        q = part.mul_(1 / torch.tensor(1 / 255)).round_().double()  # as FBGEMM: the step, then 1 / step, in float32
        weight = torch.ops.quantized.linear_unpack(self._packed)[0].dequantize().double()
        bias = None if self.bias is None else self.bias.double()
        return F.linear(q * (span / 255) + low, weight, bias).float().view(*x.shape[:-1], -1)


class Int8Embedding(TokenEmbedding):
    """Looks up as before, in float32, and scores in int8."""

    def __init__(self, weight: Tensor, largest: int):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.head = Int8(weight, None, largest)

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, self.weight)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(x)


def quantized(module: nn.Module, largest: int) -> nn.Module:
    """The int8 form of a module with a large weight; any other module as it is."""
    if isinstance(module, Linear):
        return Int8(module.weight.detach(), module.bias.detach(), largest)
    if isinstance(module, TokenEmbedding):
        return Int8Embedding(module.weight.detach(), largest)
    return module


def dtype_of(model: nn.Module) -> str:
    """The number format that a model computes in, by name: "int8-w7" is int8 with weights of seven bits."""
    wte = model.transformer.wte
    if isinstance(wte, Int8Embedding):
        return "int8" if wte.head.largest == LARGEST else "int8-w7"
    return str(wte.weight.dtype).removeprefix("torch.")


@cache
def suited() -> tuple[int | None, str]:
    """The largest whole weight with which products are exact on this CPU, and why not a larger one, as the middle of a
    sentence; (None, why) where int8 can not be used.

    Compares with the emulation. Among the numbers are the largest, whose sums in 16 bits would be cut off.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(80, 96, generator=generator), torch.randn(17, 96, generator=generator)
    weight[:8], weight[8:16] = 1, -1
    x[:, 0], x[3:6, 1:] = -2, 3  # rows of 255 but for one 0
    bias, why = torch.randn(80, generator=generator), ""
    for largest in (LARGEST, LARGEST_IN_PAIRS):
        try:
            layer = Int8(weight, bias, largest)
            wrong = max(float((layer(rows) - layer.emulate(rows)).abs().max()) for rows in (x, x[3:4], x[:5]))
        except (RuntimeError, AttributeError, TypeError) as error:
            return None, f"it has no int8 product for this CPU ({str(error).splitlines()[0][:100]})"
        if wrong < 1e-3:
            return largest, why
        why = f"its int8 product is wrong by {wrong:.2g} on this CPU"
    return None, why


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (..., in) as parts from 0 to 1 (rows, in) of the span between the lowest and the highest number of each row;
    and the lowest and the span, both (rows, 1). A part of exactly 0 and one of exactly 1 are in each row, or, where its
    numbers are all the same, only parts of 0."""
    x = x.reshape(-1, x.size(-1))
    low = x.amin(1, keepdim=True)  # far faster than aminmax()
    span = F.threshold_(x.amax(1, keepdim=True).sub_(low), SMALLEST, 3e38)  # so large that all parts are 0
    return x.sub(low).div_(span).nan_to_num_(0.0), low, span  # FBGEMM would refuse all rows for one with a NaN
