"""Keys and values that were already computed, so that a new token costs one position and not all of them.

Preallocated once: nothing is concatenated while decoding. Knows positions and shapes; knows nothing of
tokens, prompts or requests.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpt2.config import GPTConfig


class KVCache:
    """The keys and values of B sequences, each with its own position.

    Args:
        config: the model's sizes; a row holds at most block_size positions.
        batch_size: number of rows B.
        device, dtype: where and as what the keys and values are kept (those of the model's activations).
    """

    def __init__(self, config: GPTConfig, batch_size: int = 1, device: torch.device | str = "cpu", dtype=torch.float32):
        hs = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, config.block_size, hs)
        self.k = torch.zeros(shape, device=device, dtype=dtype)  # (n_layer, B, nh, block_size, hs)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.block_size = config.block_size
        self.pos = [0] * batch_size  # plain integers: asking for them never waits for a GPU

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next text."""
        self.pos = [0] * len(self.pos)

    def positions(self, T: int) -> Tensor:
        """Positions of the next T tokens of each row, (B, T), on the CPU.

        Raises:
            ValueError: where a row would run past block_size.
        """
        if max(self.pos) + T > self.block_size:
            raise ValueError(f"{T} more tokens after {max(self.pos)} do not fit into block_size={self.block_size}.")
        return torch.tensor(self.pos).unsqueeze(1) + torch.arange(T)  # (B, T)

    def mask(self, T: int) -> Tensor | None:
        """Which cached positions the next T tokens may see, (B, 1, T, S) on the CPU; None where a single token
        sees all of them, or where nothing is cached yet and plain causal attention says the same."""
        if max(self.pos) == 0 or (T == 1 and min(self.pos) == max(self.pos)):
            return None
        S = max(self.pos) + T
        return (torch.arange(S) <= self.positions(T).unsqueeze(-1)).unsqueeze(1)  # (B, 1, T, S)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer, both (B, nh, T, hs); return all there are, (B, nh, S, hs)."""
        T = k.size(2)
        # Slices and not index_copy_: the latter is wrong on Apple's MPS.
        if min(self.pos) == max(self.pos):
            rows = [(slice(None), self.pos[0])]
        else:
            rows = [(slice(b, b + 1), pos) for b, pos in enumerate(self.pos)]
        for row, pos in rows:
            self.k[layer, row, :, pos : pos + T] = k[row]
            self.v[layer, row, :, pos : pos + T] = v[row]
        S = max(self.pos) + T
        return self.k[layer, :, :, :S], self.v[layer, :, :, :S]

    def advance(self, T: int) -> None:
        """Count T new tokens in every row, once all layers have stored theirs."""
        self.pos = [pos + T for pos in self.pos]
