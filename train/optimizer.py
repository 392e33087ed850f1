"""AdamW and Muon over GPT-2's parameter groups, and the learning rate of every step.

Knows parameters and steps; knows nothing of batches or losses.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from train.config import TrainConfig

MOMENTUM = 0.95  # of Muon: what all its published runs use


def build(
    model: nn.Module, config: TrainConfig, muon_dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """The optimizers of a run: matrices and embeddings decay, biases and layer norms do not.

    adamw is AdamW (Loshchilov and Hutter, 2019) for everything; muon leaves it only what is no hidden matrix.

    Args:
        muon_dtype: the arithmetic of Muon's orthogonalisation; bfloat16 only where it is native.
    """
    named = dict(model.named_parameters())
    hidden = {name: p for name, p in named.items() if ".h." in name and p.dim() == 2 and config.optimizer == "muon"}
    rest = [p for name, p in named.items() if name not in hidden]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = rest[0].device.type in ("cpu", "cuda")
    betas = (config.beta1, config.beta2)
    adamw = AdamW(groups, lr=config.learning_rate, betas=betas, eps=1e-8, fused=fused)
    if not hidden:
        return [adamw]
    groups = [
        {"params": [p for name, p in hidden.items() if "c_attn" in name], "blocks": 3},  # q, k and v
        {"params": [p for name, p in hidden.items() if "c_attn" not in name], "blocks": 1},
    ]
    return [Muon(groups, config.learning_rate, config.weight_decay, muon_dtype), adamw]


class Muon(Optimizer):
    """Momentum whose every singular value is set to about one (Jordan et al., 2024), so that no direction of a
    matrix is left behind.

    The update is scaled to the size that AdamW's has (0.2 sqrt(max(rows, columns)); Liu et al., 2025), so both take
    the same learning rate and weight decay.

    Args:
        params: groups of matrices; a group's "blocks" is how many square ones each is a stack of.
        dtype: the arithmetic of the orthogonalisation.
    """

    def __init__(self, params: Iterable[dict], lr: float, weight_decay: float, dtype: torch.dtype = torch.float32):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "blocks": 1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                same_shape[p.shape].append(p)
            for parameters in same_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict) -> None:
        """One step for matrices of one shape, all at once."""
        blocks = group["blocks"]
        moves = []
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
            memory = self.state[p]["momentum"]
            memory.lerp_(p.grad, 1 - MOMENTUM)
            moves.append(p.grad.lerp(memory, MOMENTUM).view(blocks, -1, p.size(1)))  # looks ahead, as Nesterov
        directions = orthogonalise(torch.cat(moves), self.dtype)  # (n * blocks, rows, columns)
        scale = 0.2 * math.sqrt(max(directions.shape[1:]))
        for p, direction in zip(parameters, directions.split(blocks), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(direction.reshape(p.shape).to(p.dtype), alpha=-group["lr"] * scale)


def orthogonalise(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """U V^T, nearly, for every U S V^T of matrices (n, rows, columns): five Newton-Schulz steps, whose polynomial
    lifts every singular value to between 0.7 and 1.2."""
    tall = matrices.size(1) > matrices.size(2)
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT  # (n, shorter side, shorter side)
        change = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, change, x, beta=3.4445)  # 3.4445 x + (2.0315 gram^2 - 4.7750 gram) x
    return x.mT if tall else x


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear rise over warmup_steps, then down until max_steps: cosine to min_learning_rate, wsd to zero."""
    top, warmup = config.learning_rate, min(config.warmup_steps, config.max_steps // 2)
    low = min(config.min_learning_rate, top)
    if step < warmup:
        return top * (step + 1) / warmup
    if config.schedule == "wsd":
        left = (config.max_steps - step) / max(1, config.cooldown * config.max_steps)
        return top * min(1.0, max(0.0, left))
    done = (step - warmup) / max(1, config.max_steps - warmup)
    return low + 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * (top - low)


def set_learning_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
