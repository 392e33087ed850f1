"""The products with the model's weights, where all the time goes: plain while training, packed while generating.

oneDNN multiplies by weights in a layout of its own. Measured on two cores against the plain product (MKL's): as fast
for one row, two to three times as fast for 4 to 16, and, what MKL does not give, the same to the last bit for a row
whatever rows are beside it. Knows nothing of attention or text.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.device import has_onednn


class Packed:
    """Multiplies by a weight as F.linear does. In inference mode, in float32 on a CPU, from a packed copy, which is
    made at first use and again when the weight has changed; it takes as much memory as the weight."""

    def __init__(self):
        self._copy, self._of = None, None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # A weight in training changes under its copy, unseen by _version where an optimizer or an average swaps .data.
        # The gradient is asked for first: torch.compile, in training, would cut the model in pieces at the mode.
        can_pack = not weight.requires_grad and torch.is_inference_mode_enabled() and has_onednn(x.device)
        if not can_pack or not x.dtype == weight.dtype == torch.float32:
            return F.linear(x, weight, bias)
        of = weight.data_ptr(), 0 if weight.is_inference() else weight._version
        if self._of != of:
            self._copy, self._of = torch.ops.mkldnn._reorder_linear_weight(weight.detach()), of
        return torch.ops.mkldnn._linear_pointwise(x, self._copy, bias, "none", [], "")

    def __reduce__(self):
        return Packed, ()  # copies of a model pack for themselves


class Linear(nn.Linear):
    """nn.Linear over Packed."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__(in_features, out_features)
        self.packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        return self.packed(x, self.weight, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding that begins as zeros: weights are drawn by init_weights or loaded. PyTorch's own draw, where a
    model is only outlined (the meta device), first imports its compiler, a second and more."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)


class TokenEmbedding(Embedding):
    """The embedding of tokens, which also scores the next one."""

    def __init__(self, num_embeddings: int, embedding_dim: int):
        super().__init__(num_embeddings, embedding_dim)
        self.packed = Packed()

    def scores(self, x: Tensor) -> Tensor:
        """x @ weight.T: (..., C) -> (..., rows)."""
        return self.packed(x, self.weight)
