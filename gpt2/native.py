"""step.c, compiled for this machine where it has a C compiler: single tokens and int8 products, faster.

Compiling takes half a second, once a process, into a folder that is gone afterwards: nothing compiled is ever found and
trusted. Knows how to compile, and how step.c's structures look; whether its results are right is for others to see.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from ctypes import POINTER, Structure, byref, c_int, c_long, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from gpt2.cache import PIECE, KVCache

# A product may be merged with a sum: it rounds otherwise than PyTorch, but in the same way for all rows. PyTorch has a
# library of OpenMP in the process already, which is used: so none is linked.
FLAGS = "-O3 -march=native -ffp-contract=fast -fno-math-errno -fno-trapping-math -fopenmp -fPIC -c step.c -o step.o"
SECONDS = 30  # that the compiler may take; it takes half of one


class _Linear(Structure):
    _fields_ = [("n_in", c_long), ("n_out", c_long)]
    _fields_ += [(name, c_void_p) for name in ("weight", "whole", "step", "ones", "bias")]


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p)]


class _Block(Structure):
    _fields_ = [("ln_1", _Norm), ("c_attn", _Linear), ("attn_proj", _Linear)]
    _fields_ += [("ln_2", _Norm), ("c_fc", _Linear), ("mlp_proj", _Linear)]


class _Model(Structure):
    _fields_ = [("n_layer", c_long), ("n_head", c_long), ("n_embd", c_long)]
    _fields_ += [("blocks", POINTER(_Block)), ("ln_f", _Norm), ("head", _Linear)]


class _Cache(Structure):
    _fields_ = [("rows", c_long), ("positions", c_long), ("half", c_long), ("k", c_void_p), ("v", c_void_p)]


class Int8Linear:
    """An int8 layer as a function of step.c.

    Args:
        whole: (out, in) int8.
        step, ones, bias: (out,) float32, see step.c.
    """

    def __init__(self, whole: Tensor, step: Tensor, ones: Tensor, bias: Tensor | None):
        self._kept = (whole, step, ones, bias)
        self.layer = _linear(whole.shape, whole=whole, step=step, ones=ones, bias=bias)

    def __reduce__(self):
        return Int8Linear, self._kept

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) float32 -> (rows, out) float32."""
        if x.dtype != torch.float32 or x.size(1) != self.layer.n_in:
            raise ValueError(f"{x.size(1)} numbers of {x.dtype}; a row here has {self.layer.n_in} of torch.float32.")
        x, y = x.contiguous(), torch.empty(x.size(0), self.layer.n_out)
        _checked(library().int8_linear(byref(self.layer), x.data_ptr(), x.size(0), y.data_ptr()))
        return y


class Step:
    """What a model computes for one new token of each row, as a function of step.c.

    Args:
        model: a GPT, on the CPU, in float32 or in int8 that was compiled. Its weights must stay where they are.
    """

    def __init__(self, model: nn.Module):
        part = model.transformer
        blocks = [
            _Block(
                *(_norm(block.ln_1), _product(block.attn.c_attn), _product(block.attn.c_proj)),
                *(_norm(block.ln_2), _product(block.mlp.c_fc), _product(block.mlp.c_proj)),
            )
            for block in part.h
        ]
        config = model.config
        self._blocks = (_Block * len(blocks))(*blocks)
        ends = _norm(part.ln_f), _product(part.wte)
        self._model = _Model(config.n_layer, config.n_head, config.n_embd, self._blocks, *ends)
        self._model.head.n_out = config.vocab_size
        # What C reads stays in memory, whatever becomes of the model.
        self._kept = [p.detach() for p in model.parameters()] + [getattr(m, "compiled", None) for m in model.modules()]
        self._wte = part.wte.weight.data_ptr()

    def __reduce__(self):
        return type(None), ()  # a copy of the model has its weights elsewhere

    def fits(self, model: nn.Module, idx: Tensor, cache: KVCache) -> bool:
        """Whether it computes what the model would: with the weights where they were, for a cache of its sizes."""
        of, wte = self._model, model.transformer.wte.weight
        layers, rows, heads, _, hs = cache.k.shape
        return (
            (wte.data_ptr(), wte.dtype) == (self._wte, torch.float32)
            and cache.k.dtype == cache.v.dtype in (torch.float32, torch.float16)
            and cache.k.size(3) % PIECE == 0  # where fewer positions are, the last are read, too
            and (layers, heads, heads * hs) == (of.n_layer, of.n_head, of.n_embd)
            and (idx.size(1), idx.size(0)) == (1, len(cache.pos))
            and len(cache.pos) <= rows
            and cache.k.is_contiguous()
            and not (model.training or torch.is_grad_enabled())
        )

    def __call__(self, x: Tensor, cache: KVCache) -> Tensor:
        """x (B, 1, C), the embedded tokens, which are overwritten -> logits (B, 1, V). The cache gets their keys and
        values."""
        B, logits = x.size(0), torch.empty(x.size(0), 1, self._model.head.n_out)
        half = cache.k.dtype == torch.float16
        past = _Cache(cache.k.size(1), cache.k.size(3), half, cache.k.data_ptr(), cache.v.data_ptr())
        pos = (c_long * B)(*cache.pos)
        _checked(library().step(byref(self._model), x.data_ptr(), B, pos, byref(past), logits.data_ptr()))
        cache.advance(1)
        return logits


@cache
def library() -> ctypes.CDLL | None:
    """step.c; None where there is no compiler (CC= says so too), or what it made does not load."""
    try:
        compiler = shlex.split(os.environ.get("CC", "cc"))
        if not compiler or not shutil.which(compiler[0]):
            return None
        with tempfile.TemporaryDirectory(prefix="gpt2-") as name:
            folder = Path(name)
            shutil.copyfile(Path(__file__).with_name("step.c"), folder / "step.c")
            for words in (FLAGS, "-shared step.o -o step.so"):
                how = {"cwd": folder, "check": True, "timeout": SECONDS, "stdin": subprocess.DEVNULL}
                subprocess.run([*compiler, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)
            found = ctypes.CDLL(str(folder / "step.so"))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        logging.getLogger(__name__).info("step.c is not used: %s", error)
        return None
    found.int8_linear.argtypes = [POINTER(_Linear), c_void_p, c_long, c_void_p]
    found.step.argtypes = [POINTER(_Model), c_void_p, c_long, POINTER(c_long), POINTER(_Cache), c_void_p]
    found.int8_linear.restype = found.step.restype = c_int
    return found


def _linear(shape: torch.Size, **tensors: Tensor | None) -> _Linear:
    addresses = {name: None if t is None else t.data_ptr() for name, t in tensors.items()}
    return _Linear(n_in=shape[1], n_out=shape[0], **addresses)


def _product(module: nn.Module) -> _Linear:
    """A layer, or the token embedding as the head."""
    module = getattr(module, "head", module)
    if hasattr(module, "compiled"):
        return module.compiled.layer
    assert module.weight.is_contiguous() and module.weight.dtype == torch.float32
    return _linear(module.weight.shape, weight=module.weight, bias=getattr(module, "bias", None))


def _norm(module: nn.LayerNorm) -> _Norm:
    return _Norm(module.weight.data_ptr(), module.bias.data_ptr())


def _checked(lacks_memory: int) -> None:
    if lacks_memory:
        raise MemoryError("there is no memory left for another token.")
