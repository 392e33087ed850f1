"""AdamW with GPT-2's parameter groups, and the learning rate of every step.

Knows parameters and steps; knows nothing of batches or losses.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from train.config import TrainConfig


def build(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, 2019): matrices and embeddings decay, biases and layer norms do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=1e-8, fused=fused)


def learning_rate(step: int, config: TrainConfig) -> float:
    """Linear rise over warmup_steps, then half a cosine down to min_learning_rate at max_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    swing = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.min_learning_rate + swing * (config.learning_rate - config.min_learning_rate)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
