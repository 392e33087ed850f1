"""int8 products for the CPU: a token fetches a quarter of the bytes that float32 would.

Weights are int8, one scale for each output channel; activations become whole numbers from 0 to 255 as they come, a
lowest value and a span for each row (W8A8). The products are sums of whole numbers, and what is done to them
afterwards is done number by number: no row of a result depends on the rows beside it. FBGEMM multiplies, through
PyTorch's dynamic quantization; or step.c, which gives the same to the last bit, where a compiler makes it. Knows
nothing of checkpoints, or of which CPU it runs on.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2 import native
from gpt2.linear import Linear, TokenEmbedding

SMALLEST = 1e-12  # a scale or a span: what is all zeros needs a scale too
LARGEST = 127  # of a whole weight, where the CPU adds products in 32 bits (VNNI)
LARGEST_IN_PAIRS = 63  # where it adds them in pairs, in 16 bits: two of 255 * 63 fit, and weights have seven bits


class Int8(nn.Module):
    """y = x @ weight.T + bias, both factors rounded to eight bits.

    Args:
        weight: (out, in), float32; not kept.
        largest: of the whole numbers that the weights become.
        compiled: whether step.c multiplies.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, largest: int, compiled: bool):
        super().__init__()
        self.largest, self.bias = largest, bias
        self.scale = weight.abs().amax(1).clamp_(min=SMALLEST).div_(largest)  # (out,)
        whole = weight.div(self.scale.unsqueeze(1)).round_().to(torch.int8).contiguous()
        self.ones = whole.sum(1).mul(self.scale)  # (out,): what an activation of 1 everywhere gives
        # One of the two keeps the weights.
        self.whole = whole if compiled else None
        self.compiled = native.Int8Linear(whole, self.scale * (1 / 255), self.ones, bias) if compiled else None
        self.packed = None if compiled else _pack(whole, self.scale)

    def forward(self, x: Tensor) -> Tensor:
        multiply = self.compiled or self._with_fbgemm
        return multiply(x.reshape(-1, x.size(-1))).view(*x.shape[:-1], -1)

    def _with_fbgemm(self, x: Tensor) -> Tensor:
        part, low, span = _parts(x)
        # It rounds part to 256 steps between the lowest and the highest that it sees, and those are 0 and 1.
        y = torch.ops.quantized.linear_dynamic(part, self.packed)  # (rows, out)
        # One operation after the other: a fused one rounds differently at the ends of what a thread was given.
        y = y.mul_(span).add_(low * self.ones)
        return y if self.bias is None else y.add_(self.bias)

    def emulate(self, x: Tensor) -> Tensor:
        """What forward() should give, from the same whole numbers in floating point."""
        part, low, span = _parts(x.reshape(-1, x.size(-1)))
        q = part.mul_(1 / torch.tensor(1 / 255)).round_().double()  # as FBGEMM: the step, then 1 / step, in float32
        whole = torch.ops.quantized.linear_unpack(self.packed)[0].int_repr() if self.whole is None else self.whole
        weight, bias = whole.double() * self.scale.unsqueeze(1), None if self.bias is None else self.bias.double()
        return F.linear(q * (span / 255) + low, weight, bias).float().view(*x.shape[:-1], -1)


class Int8Embedding(TokenEmbedding):
    """Looks up as before, in float32, and scores in int8."""

    def __init__(self, weight: Tensor, *how: int | bool):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.head = Int8(weight, None, *how)

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, self.weight)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(x)


def quantized(module: nn.Module, largest: int, compiled: bool) -> nn.Module:
    """The int8 form of a module with a large weight; any other module as it is."""
    if isinstance(module, Linear):
        return Int8(module.weight.detach(), module.bias.detach(), largest, compiled)
    if isinstance(module, TokenEmbedding):
        return Int8Embedding(module.weight.detach(), largest, compiled)
    return module


def dtype_of(model: nn.Module) -> str:
    """The number format that a model computes in, by name: "int8-w7" is int8 with weights of seven bits."""
    wte = model.transformer.wte
    if isinstance(wte, Int8Embedding):
        return "int8" if wte.head.largest == LARGEST else "int8-w7"
    return str(wte.weight.dtype).removeprefix("torch.")


@cache
def suited() -> tuple[int | None, str]:
    """The largest whole weight with which FBGEMM's products are exact on this CPU; (None, why not), as the middle of a
    sentence, where int8 can not be used.

    Compares with the emulation. Among the numbers are the largest, whose sums in 16 bits would be cut off.
    """
    why = ""
    for largest in (LARGEST, LARGEST_IN_PAIRS):
        try:
            layer, rows = _trial(largest, False)
            wrong = float((layer(rows) - layer.emulate(rows)).abs().max())
        except (RuntimeError, AttributeError, TypeError) as error:
            return None, f"it has no int8 product for this CPU ({str(error).splitlines()[0][:100]})"
        if wrong < 1e-3:
            return largest, ""
        why = f"its int8 product is wrong by {wrong:.2g} on this CPU"
    return None, why


@cache
def can_compile() -> bool:
    """Whether step.c can be compiled here, and gives what FBGEMM gives."""
    largest, _ = suited()
    if largest is None or native.library() is None:
        return False
    (layer, rows), (expected, _) = _trial(largest, True), _trial(largest, False)
    return all(torch.equal(layer(rows[n:]), expected(rows[n:])) for n in range(len(rows)))


def _trial(largest: int, compiled: bool) -> tuple[Int8, Tensor]:
    """A layer and rows to try it with."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(81, 96, generator=generator), torch.randn(17, 96, generator=generator)
    weight[:8], weight[8:16] = 1, -1
    x[:, 0], x[3:6, 1:] = -2, 3  # rows of 255 but for one 0
    return Int8(weight, torch.randn(81, generator=generator), largest, compiled), x


def _pack(whole: Tensor, scale: Tensor) -> torch.ScriptObject:
    """Weights in FBGEMM's own layout."""
    with warnings.catch_warnings():  # that PyTorch will do without such tensors one day: suited() will say so
        warnings.simplefilter("ignore")
        q = torch._make_per_channel_quantized_tensor(whole, scale.double(), torch.zeros_like(scale).long(), 0)
    return torch.ops.quantized.linear_prepack(q, None)


def _parts(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (rows, in) as parts from 0 to 1 of the span between the lowest and the highest number of each row; and the
    lowest and the span, both (rows, 1). A part of exactly 0 and one of exactly 1 are in each row, or, where its numbers
    are all the same, only parts of 0."""
    low = x.amin(1, keepdim=True)  # far faster than aminmax()
    span = F.threshold_(x.amax(1, keepdim=True).sub_(low), SMALLEST, 3e38)  # so large that all parts are 0
    return x.sub(low).div_(span).nan_to_num_(0.0), low, span  # FBGEMM would refuse all rows for one with a NaN
