"""int8.c, compiled for this machine where it has a C compiler.

A quarter of a second once a process, into a folder that is gone afterwards: nothing compiled is ever found and trusted.
Knows how to compile and to call; what is computed, and whether that is right, is quantize.py's business.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

# No multiplication is merged with an addition, which would round once where PyTorch rounds twice. PyTorch has a library
# of OpenMP in the process already, which is used: so none is linked.
FLAGS = "-O3 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -fopenmp -fPIC -c int8.c -o int8.o"
SECONDS = 30  # that the compiler may take; it takes a quarter of one


class _Layer(ctypes.Structure):
    _fields_ = [
        ("n_in", ctypes.c_long),
        ("n_out", ctypes.c_long),
        ("weight", ctypes.c_void_p),
        ("step", ctypes.c_void_p),
        ("ones", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class Linear:
    """A layer as int8.c takes it.

    Args:
        weight: (out, in) int8.
        step, ones, bias: (out,) float32, see int8.c.

    Raises:
        RuntimeError: where it could not be compiled.
    """

    def __init__(self, weight: Tensor, step: Tensor, ones: Tensor, bias: Tensor | None):
        if (library := _library()) is None:
            raise RuntimeError("there is no C compiler")
        self._function, self._out = library.int8_linear, weight.size(0)
        self._kept = [None if t is None else t.contiguous() for t in (weight, step, ones, bias)]
        addresses = (None if t is None else t.data_ptr() for t in self._kept)
        self._layer = _Layer(weight.size(1), weight.size(0), *addresses)
        self._by_reference = ctypes.byref(self._layer)

    def __call__(self, x: Tensor) -> Tensor:
        """(rows, in) float32 -> (rows, out) float32."""
        x, y = x.contiguous(), torch.empty(x.size(0), self._out)
        if self._function(x.data_ptr(), x.size(0), self._by_reference, y.data_ptr()):
            raise MemoryError("there is no memory left for an int8 product.")
        return y


@cache
def _library() -> ctypes.CDLL | None:
    """None where there is no compiler (CC= says so too), or what it made does not load."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if not compiler or not shutil.which(compiler[0]):
        return None
    with tempfile.TemporaryDirectory(prefix="gpt2-") as name:
        folder = Path(name)
        shutil.copyfile(Path(__file__).with_name("int8.c"), folder / "int8.c")
        try:
            for words in (FLAGS, "-shared int8.o -o int8.so"):
                how = {"cwd": folder, "check": True, "timeout": SECONDS, "stdin": subprocess.DEVNULL}
                subprocess.run([*compiler, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **how)
            library = ctypes.CDLL(str(folder / "int8.so"))
        except (OSError, subprocess.SubprocessError) as error:
            logging.getLogger(__name__).info("int8.c is not used: %s", error)
            return None
    function = library.int8_linear
    function.argtypes = [ctypes.c_void_p, ctypes.c_long, ctypes.POINTER(_Layer), ctypes.c_void_p]
    function.restype = ctypes.c_int
    return library
