"""Beginnings of texts that were read and may come again: their keys and values are not computed twice.

Knows how much memory they take and which go first. Knows nothing of models, requests or whose texts they are.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor


class Prefixes:
    """Keys, values and last scores of chunks that were read, found by all the ids up to their end. Those that nobody
    asked for the longest go when it takes more than max_bytes."""

    def __init__(self, max_bytes: int):
        self.free = max_bytes
        self.known: OrderedDict[tuple[int, ...], tuple[Tensor, ...]] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> tuple[Tensor, ...] | None:
        if ids in self.known:
            self.known.move_to_end(ids)
        return self.known.get(ids)

    def put(self, ids: tuple[int, ...], *tensors: Tensor) -> None:
        self.known[ids] = tensors
        self.free -= _bytes(tensors)
        while self.free < 0:
            self.free += _bytes(self.known.popitem(last=False)[1])


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
