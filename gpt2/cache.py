"""Keys and values that were already computed, so that a new token costs one position and not all of them.

Preallocated once: nothing is concatenated while decoding. Knows positions and shapes; knows nothing of
tokens, prompts or requests.
"""

from __future__ import annotations

import mmap
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.config import GPTConfig

# Positions are read in whole pieces of this many, masked beyond a row's own: a CPU adds numbers in an order that
# depends on how many there are, so a row must not feel how long the rows beside it are. 64 is a multiple of every
# vector's length, and keeps products above the 400 multiplications below which torch computes them in yet another way.
PIECE = 64


class KVCache:
    """The keys and values of B sequences, each with its own position. Rows may join and leave.

    Args:
        config: the model's sizes; a row holds at most block_size positions.
        batch_size: number of rows B, and the most there can be.
        device, dtype: where and as what the keys and values are kept; model.new_cache() knows.
    """

    def __init__(self, config: GPTConfig, batch_size: int = 1, device: torch.device | str = "cpu", dtype=torch.float32):
        hs = config.n_embd // config.n_head
        shape = (config.n_layer, batch_size, config.n_head, -(-config.block_size // PIECE) * PIECE, hs)
        self.k = _zeros(shape, device, dtype)  # (n_layer, B, nh, block_size in whole pieces, hs)
        self.v = _zeros(shape, device, dtype)
        self.block_size = config.block_size
        self.pos = [0] * batch_size  # plain integers: asking for them never waits for a GPU

    def reset(self) -> None:
        """Forget everything; the memory is kept for the next text."""
        self.pos = [0] * len(self.pos)

    def join(self, other: KVCache) -> None:
        """Append the first row of other, a copy, as the last row."""
        self.pos.append(0)
        self.extend(len(self.pos) - 1, *other.since(0, 0))

    def since(self, row: int, pos: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a row from position pos on, both (n_layer, nh, T, hs); not copied."""
        return self.k[:, row, :, pos : self.pos[row]], self.v[:, row, :, pos : self.pos[row]]

    def extend(self, row: int, k: Tensor, v: Tensor) -> None:
        """Let a row go on with what since() gave for another of the same text."""
        end = self.pos[row] + k.size(2)
        self.k[:, row, :, self.pos[row] : end] = k
        self.v[:, row, :, self.pos[row] : end] = v
        self.pos[row] = end

    def leave(self, row: int) -> None:
        """Remove a row; the last one takes its place."""
        last = len(self.pos) - 1
        self._clear(row)
        if row < last:
            self.pos[row] = 0
            self.extend(row, *self.since(last, 0))
            self._clear(last)
        self.pos.pop()

    def _clear(self, row: int) -> None:
        """Forget a row's values, also of a step that failed: even a weight of 0 makes a NaN of a NaN, for whoever comes
        to that row next. (A key that is masked does not count.)"""
        self.v[:, row, :, : self.pos[row] + 1] = 0

    def positions(self, T: int) -> Tensor:
        """Positions of the next T tokens of each row, (B, T), on the CPU.

        Raises:
            ValueError: where a row would run past block_size.
        """
        if max(self.pos) + T > self.block_size:
            raise ValueError(f"{T} more tokens after {max(self.pos)} do not fit into block_size={self.block_size}.")
        return torch.tensor(self.pos).unsqueeze(1) + torch.arange(T)  # (B, T)

    def mask(self, T: int) -> Tensor:
        """Which cached positions the next T tokens may see, (B, 1, T, S) on the CPU."""
        return (torch.arange(self._size(T)) <= self.positions(T).unsqueeze(-1)).unsqueeze(1)  # (B, 1, T, S)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of one layer, both (B, nh, T, hs); return all there are, (B, nh, S, hs), in the
        format of these."""
        T, B, S = k.size(2), len(self.pos), self._size(k.size(2))
        if min(self.pos) == max(self.pos):
            here = (layer, slice(0, B), slice(None), slice(self.pos[0], self.pos[0] + T))
            self.k[here], self.v[here] = k, v
        else:  # one operation for all rows: a slice for each took three times as long
            rows, at = torch.arange(B).unsqueeze(1), self.positions(T)  # (B, 1), (B, T)
            self.k[layer][rows, :, at] = k.transpose(1, 2).to(self.k.dtype)  # (B, T, nh, hs)
            self.v[layer][rows, :, at] = v.transpose(1, 2).to(self.v.dtype)
        return tuple(of[layer, :B, :, :S].to(k.dtype) for of in (self.k, self.v))

    def advance(self, T: int) -> None:
        """Count T new tokens in every row, once all layers have stored theirs."""
        self.pos = [pos + T for pos in self.pos]

    def _size(self, T: int) -> int:
        """S, the positions that a step of T tokens looks at: whole pieces."""
        return -(-(max(self.pos) + T) // PIECE) * PIECE


def weighted_sum(p: Tensor, v: Tensor) -> Tensor:
    """p @ v, p (B, nh, T, S), v (B, nh, S, hs) as the cache gives it: (B, nh, T, hs).

    For single tokens on a CPU by what sums rows of an embedding table: twice as fast as products of so few numbers.
    """
    B, nh, S, hs = v.shape
    apart = v.stride(1) // hs  # positions from one head to the next
    plain = v.device.type == "cpu" and p.dtype == v.dtype == torch.float32 and not torch.is_grad_enabled()
    if p.size(2) > 1 or not plain or v.stride() != (nh * apart * hs, apart * hs, hs, 1):
        return p @ v
    rows, starts = _rows(B * nh, S, apart)
    table = v.as_strided(((B * nh - 1) * apart + S, hs), (hs, 1))
    return F.embedding_bag(rows, table, starts, mode="sum", per_sample_weights=p.flatten()).view(B, nh, 1, hs)


@lru_cache(maxsize=8)
def _rows(n: int, S: int, apart: int) -> tuple[Tensor, Tensor]:
    """Which rows of a table are the S first of each of n heads, (n * S,), and where the rows of each begin, (n,)."""
    starts = torch.arange(n, dtype=torch.int32)
    return (starts.unsqueeze(1) * apart + torch.arange(S, dtype=torch.int32)).flatten(), starts * S


def _zeros(shape: tuple[int, ...], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """torch.zeros; on a CPU in memory that Linux hands out only where it is written: most rows stay short."""
    if torch.device(device).type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.frombuffer(mmap.mmap(-1, torch.Size(shape).numel() * dtype.itemsize), dtype=dtype).view(shape)
