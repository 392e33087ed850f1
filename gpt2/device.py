"""The only file that asks about hardware: which device there is, and which number format suits it.

Answers are plain values; nothing is decided at import. Knows nothing of models or text.
"""

from __future__ import annotations

import ctypes
import math
import os
import platform
import re
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Parameters from which the time of a token is that of fetching the weights. Those of smaller models stay in the caches,
# and rounding what goes into each product takes longer than fetching less would save.
INT8_FROM = 50_000_000

# Whole names of cards, so that a MIG slice, a laptop's or a "Ti" is none of them; dense TFLOP/s of half precision with
# float32 sums, and of float32, from Ampere on as TensorFloat-32. Datasheets often print the double, "with sparsity".
_PEAKS = (
    ("H100 80GB HBM3|H200", 989.5, 494.5),  # NVIDIA H100 and H200 datasheets, SXM: 1,979 and 989 with sparsity
    ("H[12]00 NVL", 835.5, 417.5),  # the same datasheets, NVL: 1,671 and 835 with sparsity
    ("H100 PCIe", 756.5, 378),  # NVIDIA H100 datasheet of 2022, PCIe: 1,513 and 756 with sparsity
    ("A100-(SXM4?|PCIE)-[48]0GB|A100 80GB PCIe", 312, 156),  # NVIDIA A100 datasheet
    ("L40S", 362, 183),  # NVIDIA L40S datasheet
    ("L4", 121, 60),  # NVIDIA L4 datasheet: 242 and 120 with sparsity
    ("A10", 125, 62.5),  # NVIDIA A10 datasheet
    ("A10G", 70, 35),  # NVIDIA A10G datasheet, published by AWS
    ("RTX 4090", 165.2, 82.6),  # NVIDIA Ada GPU architecture whitepaper, appendix A
    ("RTX 3090", 71, 35.6),  # NVIDIA GA102 GPU architecture whitepaper, appendix A
    ("V100-SXM2-(16|32)GB", 125, 15.7),  # NVIDIA V100 datasheet
    ("V100-PCIE-(16|32)GB", 112, 14),  # the same
    ("V100S-PCIE-32GB", 130, 16.4),  # the same
    ("T4", 65, 8.1),  # NVIDIA T4 datasheet
)


@dataclass(frozen=True)
class Precision:
    """How to compute, and why: the sentence is printed and recorded."""

    dtype: torch.dtype
    reason: str

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


def pick_device(name: str = "auto") -> torch.device:
    """The device called name ("auto", "cpu", "cuda", "cuda:1", "mps"); auto takes CUDA, then MPS, then the CPU.

    Raises:
        ValueError: where this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; choose auto, cpu, cuda or mps.") from None
    there = {
        "cpu": lambda: True,
        "cuda": lambda: torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available,
    }
    if device.type not in there:
        raise ValueError(f"unknown device {name!r}; choose auto, cpu, cuda or mps.")
    if not there[device.type]():
        raise ValueError(f"this machine (or this build of PyTorch) has no device {name!r}; use auto or cpu.")
    return device


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run on hardware. torch.cuda.is_bf16_supported() says yes on a T4, which emulates
    them several times slower, and so does a CPU without AMX or avx512_bf16 (measured: four times slower)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        flags = _cpu_flags()
        return "amx_bf16" in flags or "avx512_bf16" in flags
    return False


@cache
def has_onednn(device: torch.device) -> bool:
    """Whether float32 products can run on oneDNN with weights in its own layout: on x86, where PyTorch also has MKL."""
    ops = torch.ops.mkldnn
    there = hasattr(ops, "_linear_pointwise") and hasattr(ops, "_reorder_linear_weight")
    return device.type == "cpu" and torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and there


def training_precision(device: torch.device, name: str = "auto") -> Precision:
    """What autocast should use while training.

    Raises:
        ValueError: for an unknown name, or float16 where there is no GradScaler for it.
    """
    if name != "auto":
        if name not in DTYPES:
            raise ValueError(f"unknown dtype {name!r}; choose auto, {', '.join(DTYPES)}.")
        if name == "float16" and device.type != "cuda":
            raise ValueError("float16 training needs a CUDA device; use --dtype float32 here.")
        return Precision(DTYPES[name], "as asked")
    if has_native_bfloat16(device):
        return Precision(torch.bfloat16, f"native on {describe(device)}")
    if device.type == "cuda":
        return Precision(torch.float16, f"{describe(device)} has no native bfloat16; gradients are scaled")
    return Precision(torch.float32, f"{describe(device)} has no fast half precision for training")


def has_int8() -> bool:
    """Whether PyTorch can multiply eight bits on this CPU, by FBGEMM, which needs AVX2."""
    there = hasattr(torch.ops.quantized, "linear_dynamic") and "fbgemm" in torch.backends.quantized.supported_engines
    return there and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def inference_dtype(device: torch.device, name: str = "auto", n_parameters: int = 0) -> torch.dtype:
    """What to load weights as for generating. auto: half precision on a GPU; on the CPU int8 for models that do not
    fit into its caches, where the hardware has it; else float32.

    Raises:
        ValueError: for an unknown name, or int8 on a GPU.
    """
    if name == "auto":
        if device.type == "cpu" and n_parameters >= INT8_FROM and has_int8():
            return torch.int8
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if has_native_bfloat16(device) else torch.float16
    if name == "int8":
        if device.type != "cpu":
            raise ValueError(f"int8 runs on the CPU only, not on {device}; use --device cpu, or another --dtype.")
        return torch.int8
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; choose auto, {', '.join(DTYPES)} or, on the CPU, int8.")
    return DTYPES[name]


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that the datasheet promises for dense matrix products of a format; None where that is not known."""
    if device.type != "cuda" or (dtype == torch.bfloat16 and not has_native_bfloat16(device)):
        return None
    name = re.sub("^((NVIDIA|Tesla|GeForce) )+", "", describe(device))
    for pattern, half, single in _PEAKS:
        if re.fullmatch(pattern, name):
            return (single if dtype == torch.float32 else half) * 1e12
    return None


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile pays by default: on CUDA GPUs new enough for Triton. On two CPU cores it gained nothing."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def threads(processes: int = 1) -> int:
    """How many to compute with on the CPU: one for each usable core (in a container, PyTorch counts the machine's), or
    what OMP_NUM_THREADS says; but for one of several processes, torchrun sets that by itself, and it is no wish."""
    if processes == 1 and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, usable_cores() // processes)


def prepare(device: torch.device, processes: int = 1) -> None:
    """Process-wide settings for heavy work; an entry point calls it once.

    The CPU gets its threads(), and float32 matrix products on a GPU may use TensorFloat-32, as in every GPT-2 training
    since 2020.

    Args:
        processes: how many share the machine.
    """
    torch.set_num_threads(threads(processes))
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def keep_memory() -> None:
    """Let the process keep what it frees, for a training that soon wants as much again: on two cores, asking Linux
    for fresh pages cost a sixth of every step. Only with glibc; elsewhere nothing happens."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no piece of memory is mapped for itself, and given back when freed
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: free space at the end stays too


def describe(device: torch.device) -> str:
    """The hardware's name in a few words, for records and sentences."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (MPS)"
    return f"{_cpu_name()}, {usable_cores()} cores"


def usable_cores() -> int:
    """CPU cores this process may run on, which in a container is often fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")  # "200000 100000": microseconds of CPU in a period; "max 100000": no limit
    if quota.exists() and (share := quota.read_text(encoding="utf-8").split())[0] != "max":
        cores = min(cores, math.ceil(int(share[0]) / int(share[1])))
    return cores


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == field:
                return value.strip()
    return ""


def _cpu_flags() -> set[str]:
    return set(_cpuinfo("flags").split())


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()
