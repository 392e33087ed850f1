"""int8 products for the CPU: a token fetches a quarter of the bytes that float32 would.

Weights are int8, one scale for each output channel; activations become whole numbers from 0 to 255 as they come, a
lowest value and a scale for each row (W8A8). The products are sums of whole numbers, and what is done to them
afterwards is done number by number: no row of a result depends on the rows beside it. Knows nothing of checkpoints, or
of which CPU it runs on.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.device import int8_product
from gpt2.linear import Linear, TokenEmbedding

SMALLEST = 1e-12  # a scale; what is all zeros needs one too


class IntMM:
    """Products of whole numbers by torch._int_mm.

    Args:
        whole: (out, in), int8, at most LARGEST.
    """

    LARGEST = 127
    NAME = "int8"  # of what a model computes in

    def __init__(self, whole: Tensor):
        self._whole = whole  # as (out, in), though the product wants (in, out): at one row nearly three times as fast

    def __call__(self, q: Tensor) -> Tensor:
        """(rows, in) from 0 to 255, float32 -> (rows, out) float32."""
        return torch._int_mm(q.to(torch.uint8), self._whole.t()).float()

    def whole(self) -> Tensor:
        return self._whole


class Fbgemm:
    """The same by FBGEMM, for CPUs without VNNI. They add products in pairs, in 16 bits; two of 255 * 63 fit, so that
    weights have seven bits here."""

    LARGEST = 63
    NAME = "int8-w7"

    def __init__(self, whole: Tensor):
        with warnings.catch_warnings():  # that PyTorch will do without such tensors one day: why_not() will say so
            warnings.simplefilter("ignore")
            q = torch._make_per_tensor_quantized_tensor(whole, 1.0, 0)
        self._packed = torch.ops.quantized.linear_prepack(q, None)

    def __call__(self, q: Tensor) -> Tensor:
        # It rounds q to 256 steps between its ends: those are 0 and 255, or both 0, and q stays what it is.
        return torch.ops.quantized.linear_dynamic(q, self._packed)

    def whole(self) -> Tensor:
        return torch.ops.quantized.linear_unpack(self._packed)[0].int_repr()


Product = type[IntMM] | type[Fbgemm]


def suited() -> Product:
    """The product that is fastest on this CPU."""
    return Fbgemm if int8_product() == "fbgemm" else IntMM


class Int8(nn.Module):
    """y = x @ weight.T + bias, both factors rounded to eight bits.

    Args:
        weight: (out, in), float32; not kept.
        product: what multiplies.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, product: Product):
        super().__init__()
        scale = weight.abs().amax(1).clamp_(min=SMALLEST).div_(product.LARGEST)  # (out,)
        whole = weight.div(scale.unsqueeze(1)).round_().to(torch.int8)
        self.product = product(whole)
        self.register_buffer("scale", scale)
        self.register_buffer("sums", whole.sum(1).mul(scale))  # (out,): what an activation of 1 everywhere gives
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        q, low, step = _rounded(x.reshape(-1, x.size(-1)))
        y = self.product(q)  # (rows, out)
        # One operation after the other: a fused one rounds differently at the ends of what a thread was given.
        y = y.mul_(step).mul_(self.scale).add_(low * self.sums)
        y = y if self.bias is None else y.add_(self.bias)
        return y.view(*x.shape[:-1], -1)

    def emulate(self, x: Tensor) -> Tensor:
        """What forward() should give, from the same whole numbers in floating point."""
        q, low, step = _rounded(x.reshape(-1, x.size(-1)))
        weight = self.product.whole().double() * self.scale.unsqueeze(1)
        bias = None if self.bias is None else self.bias.double()
        return F.linear(q * step.double() + low, weight, bias).float().view(*x.shape[:-1], -1)


class Int8Embedding(TokenEmbedding):
    """Looks up as before, in float32, and scores in int8."""

    def __init__(self, weight: Tensor, product: Product):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.head = Int8(weight, None, product)

    def forward(self, idx: Tensor) -> Tensor:
        return F.embedding(idx, self.weight)

    def scores(self, x: Tensor) -> Tensor:
        return self.head(x)


def quantized(module: nn.Module, product: Product) -> nn.Module:
    """The int8 form of a module with a large weight; any other module as it is."""
    if isinstance(module, Linear):
        return Int8(module.weight.detach(), module.bias.detach(), product)
    if isinstance(module, TokenEmbedding):
        return Int8Embedding(module.weight.detach(), product)
    return module


def dtype_of(model: nn.Module) -> str:
    """The number format that a model computes in, by name: "int8-w7" is int8 with weights of seven bits."""
    wte = model.transformer.wte
    return wte.head.product.NAME if isinstance(wte, Int8Embedding) else str(wte.weight.dtype).removeprefix("torch.")


@cache
def why_not() -> str | None:
    """Why int8 can not be used with this PyTorch on this CPU, as the middle of a sentence; None where it can.

    Compares with the emulation. Among the numbers are the largest, which instructions that add pairs of products in 16
    bits (vpmaddubsw) could cut off.
    """
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(80, 96, generator=generator), torch.randn(17, 96, generator=generator)
    weight[:8], weight[8:16] = 1, -1
    x[:, 0], x[3:6, 1:] = -2, 3  # rows of 255 but for one 0
    bias = torch.randn(80, generator=generator)
    try:
        layer = Int8(weight, bias, suited())
        for rows in (x, x[3:4], x[:5]):
            wrong = (layer(rows) - layer.emulate(rows)).abs().max()
            if not wrong < 1e-3:
                return f"its int8 product is wrong by {wrong:.2g} on this CPU"
    except (RuntimeError, AttributeError, TypeError) as error:
        return f"it has no int8 product for this CPU ({str(error).splitlines()[0][:100]})"
    return None


def _rounded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x (rows, in) as whole numbers q from 0 to 255, float32, and the lowest value and the step of each row, both
    (rows, 1): x is low + step * q."""
    low, high = x.aminmax(dim=1, keepdim=True)
    step = F.threshold_(high - low, SMALLEST, 255).div_(255)  # so that q is 0, or there is a 255 in the row
    return (x - low).div_(step).round_(), low, step
