"""gpt2/device.py: which device, which number format, and why; all hardware here is faked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gpt2 import device as device_module
from gpt2.device import (
    can_compile,
    describe,
    has_int8,
    has_native_bfloat16,
    inference_dtype,
    peak_flops,
    pick_device,
    prepare,
    training_precision,
    usable_cores,
)

CPU, CUDA, MPS = torch.device("cpu"), torch.device("cuda"), torch.device("mps")


@pytest.fixture
def machine(monkeypatch):
    """machine(capability=(7, 5), mps=False, flags="avx2") is the computer that the test runs on."""

    def build(
        capability: tuple[int, int] | None = None, mps: bool = False, flags: str = "", gpus: int = 1, name: str = ""
    ) -> None:
        there = capability is not None
        for question, answer in {
            "is_available": there,
            "device_count": gpus if there else 0,
            "get_device_capability": capability,
            "get_device_name": name or f"Fake GPU {capability}",
            "is_bf16_supported": True,  # what torch says of every GPU since it emulates the format
        }.items():
            monkeypatch.setattr(torch.cuda, question, lambda *args, answer=answer, **kwargs: answer)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(device_module, "_cpu_flags", lambda: set(flags.split()))

    return build


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        ({"capability": (7, 5)}, "cuda"),
        ({"capability": (7, 5), "mps": True}, "cuda"),
        ({"mps": True}, "mps"),
        ({}, "cpu"),
    ],
)
def test_auto_takes_cuda_then_mps_then_the_cpu(machine, hardware, expected):
    machine(**hardware)
    assert pick_device() == pick_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["tpu", "gpu", "CUDA", "", "cuda:x", "cpu cuda", "meta", "xpu", "cuda:-2"])
def test_an_unknown_device_is_answered_with_the_known_ones(machine, name):
    machine((8, 0), mps=True)
    with pytest.raises(ValueError, match="choose auto, cpu, cuda or mps") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_answered_with_what_is(machine, name):
    machine()
    with pytest.raises(ValueError, match=f"no device '{name}'; use auto or cpu"):
        pick_device(name)


def test_a_second_gpu_is_there_only_where_there_are_two(machine):
    machine((8, 0), gpus=2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    machine((8, 0), gpus=1)
    with pytest.raises(ValueError, match="no device 'cuda:1'"):
        pick_device("cuda:1")


def test_the_cpu_is_always_there(machine):
    machine()
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize(
    ("device", "hardware", "training", "inference"),
    [
        (CUDA, {"capability": (6, 0)}, "float16", "float16"),  # P100
        (CUDA, {"capability": (7, 0)}, "float16", "float16"),  # V100
        (CUDA, {"capability": (7, 5)}, "float16", "float16"),  # T4: says it has bfloat16, and emulates it
        (CUDA, {"capability": (8, 0)}, "bfloat16", "bfloat16"),  # A100
        (CUDA, {"capability": (8, 6)}, "bfloat16", "bfloat16"),
        (CUDA, {"capability": (8, 9)}, "bfloat16", "bfloat16"),  # L4
        (CUDA, {"capability": (9, 0)}, "bfloat16", "bfloat16"),  # H100
        (CUDA, {"capability": (12, 0)}, "bfloat16", "bfloat16"),
        (MPS, {"mps": True}, "float32", "float32"),
        (CPU, {"flags": "fpu sse2 avx2 avx512f"}, "float32", "float32"),
        (CPU, {"flags": "avx512f avx512_bf16"}, "bfloat16", "float32"),
        (CPU, {"flags": "amx_tile amx_bf16"}, "bfloat16", "float32"),
        (CPU, {"flags": ""}, "float32", "float32"),
    ],
)
def test_the_number_format_is_the_one_the_hardware_has(machine, device, hardware, training, inference):
    machine(**hardware)
    assert training_precision(device).name == training
    assert inference_dtype(device) == getattr(torch, inference)
    assert has_native_bfloat16(device) is (training == "bfloat16")


@pytest.mark.parametrize(
    ("device", "hardware", "name", "reason"),
    [
        (
            CUDA,
            {"capability": (7, 5), "name": "Tesla T4"},
            "auto",
            "Tesla T4 has no native bfloat16; gradients are scaled",
        ),
        (CUDA, {"capability": (7, 0), "name": "V100"}, "auto", "V100 has no native bfloat16; gradients are scaled"),
        (CUDA, {"capability": (8, 0), "name": "A100"}, "auto", "native on A100"),
        (CUDA, {"capability": (8, 0), "name": "A100"}, "float32", "as asked"),
        (MPS, {"mps": True}, "auto", "Apple GPU (MPS) has no fast half precision for training"),
        (CPU, {"flags": "avx2"}, "auto", "Some CPU has no fast half precision for training"),
        (CPU, {"flags": "avx512_bf16"}, "auto", "native on Some CPU"),
    ],
)
def test_the_choice_comes_with_its_reason(machine, monkeypatch, device, hardware, name, reason):
    machine(**hardware)
    monkeypatch.setattr(device_module, "_cpu_name", lambda: "Some CPU")
    assert training_precision(device, name).reason.replace(f", {usable_cores()} cores", "") == reason


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_format_that_is_asked_for_is_used(machine, name):
    machine((7, 5))
    assert training_precision(CUDA, name).dtype == inference_dtype(CUDA, name) == getattr(torch, name)


@pytest.mark.parametrize(
    ("device", "capability", "engines", "n_parameters", "there", "chosen"),
    [
        (CPU, "AVX512", ["fbgemm"], 124_000_000, True, "int8"),
        (CPU, "AVX512", ["fbgemm"], 8_000_000, True, "float32"),  # stays in the caches
        (CPU, "AVX2", ["fbgemm"], 124_000_000, True, "int8"),
        (CPU, "AVX2", ["qnnpack"], 124_000_000, False, "float32"),
        (CPU, "DEFAULT", ["fbgemm"], 124_000_000, False, "float32"),
        (MPS, "AVX2", ["fbgemm"], 124_000_000, True, "float32"),
    ],
)
def test_int8_is_chosen_by_what_there_is_and_by_no_clock(
    machine, monkeypatch, device, capability, engines, n_parameters, there, chosen
):
    machine(flags="")
    monkeypatch.setattr(type(torch.backends.quantized), "supported_engines", engines)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert has_int8() == there
    assert inference_dtype(device, "auto", n_parameters) == getattr(torch, chosen)


def test_int8_is_for_the_cpu_whatever_cpu_it_is(machine):
    machine(flags="")
    assert inference_dtype(CPU, "int8") == torch.int8
    with pytest.raises(ValueError, match="int8 runs on the CPU only"):
        inference_dtype(CUDA, "int8")


@pytest.mark.parametrize("name", ["int3", "fp16", "", "double", "float64"])
def test_an_unknown_format_is_answered_with_the_known_ones(name):
    for choose in (training_precision, inference_dtype):
        with pytest.raises(ValueError, match=f"unknown dtype '{name}'; choose auto, float32, bfloat16, float16"):
            choose(CPU, name)


@pytest.mark.parametrize("device", [CPU, MPS])
def test_float16_training_needs_cuda(device):
    with pytest.raises(ValueError, match="use --dtype float32"):
        training_precision(device, "float16")


@pytest.mark.parametrize(("device", "precision"), [(CPU, []), (MPS, []), (CUDA, ["high"])])
def test_preparing_uses_the_usable_cores_and_tensor_cores_only_where_there_is_cuda(monkeypatch, device, precision):
    threads, precisions = [], []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    monkeypatch.setattr(device_module, "usable_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS")
    prepare(device)
    assert (threads, precisions) == ([3], precision)


def test_whoever_asks_for_a_number_of_threads_gets_it_but_torchrun_that_asks_for_everybody(monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(device_module, "usable_cores", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    prepare(CPU)
    assert threads == [1]
    prepare(CPU, processes=2)
    assert threads == [1, 4]


@pytest.mark.parametrize(("capability", "expected"), [((6, 0), False), ((6, 1), False), ((7, 0), True), ((9, 0), True)])
def test_compiling_pays_on_gpus_that_triton_knows(machine, capability, expected):
    machine(capability)
    assert can_compile(CUDA) is expected
    assert can_compile(CPU) is can_compile(MPS) is False


@pytest.mark.parametrize(
    ("name", "capability", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), 989.5, 494.5),
        ("NVIDIA H100 PCIe", (9, 0), 756.5, 378),
        ("NVIDIA H100 NVL", (9, 0), 835.5, 417.5),
        ("NVIDIA H200", (9, 0), 989.5, 494.5),
        ("NVIDIA A100-SXM4-40GB", (8, 0), 312, 156),
        ("NVIDIA A100-SXM4-80GB", (8, 0), 312, 156),
        ("NVIDIA A100-PCIE-40GB", (8, 0), 312, 156),
        ("NVIDIA A100 80GB PCIe", (8, 0), 312, 156),
        ("NVIDIA L4", (8, 9), 121, 60),
        ("NVIDIA L40S", (8, 9), 362, 183),
        ("NVIDIA A10", (8, 6), 125, 62.5),
        ("NVIDIA A10G", (8, 6), 70, 35),
        ("NVIDIA GeForce RTX 4090", (8, 9), 165.2, 82.6),
        ("NVIDIA GeForce RTX 3090", (8, 6), 71, 35.6),
        ("GeForce RTX 3090", (8, 6), 71, 35.6),
        ("Tesla V100-SXM2-16GB", (7, 0), 125, 15.7),
        ("Tesla V100-PCIE-32GB", (7, 0), 112, 14),
        ("Tesla V100S-PCIE-32GB", (7, 0), 130, 16.4),
        ("Tesla T4", (7, 5), 65, 8.1),
    ],
)
def test_the_peak_of_a_card_is_its_datasheets_without_sparsity(machine, name, capability, half, single):
    machine(capability, name=name)
    assert peak_flops(CUDA, torch.float16) == half * 1e12
    assert peak_flops(CUDA, torch.float32) == single * 1e12
    assert peak_flops(CUDA, torch.bfloat16) == (half * 1e12 if capability >= (8, 0) else None)  # emulated: no promise


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 2080 with Max-Q Design",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA A10-24Q",
        "NVIDIA T400",
        "NVIDIA L40",
        "NVIDIA GH200 480GB",
        "AMD Instinct MI300X",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_peak_of_another_card_is_not_guessed(machine, name, dtype):
    machine((9, 0), name=name)
    assert peak_flops(CUDA, dtype) is None


@pytest.mark.parametrize("device", [CPU, MPS])
def test_only_the_peaks_of_cards_are_known(machine, device):
    machine(mps=True, flags="amx_bf16")
    assert peak_flops(device, torch.bfloat16) is peak_flops(device, torch.float32) is None


@pytest.mark.parametrize(
    ("text", "flags", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Xeon: 8480\nflags\t\t: fpu amx_bf16\n\nflags\t: other\n",
            {"fpu", "amx_bf16"},
            "Xeon: 8480",
        ),
        ("processor\t: 0\nFeatures\t: asimd bf16\n", set(), ""),
        ("", set(), ""),
        (None, set(), ""),
    ],
)
def test_the_cpu_is_read_from_what_linux_says_of_it(monkeypatch, tmp_path, text, flags, name):
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text, encoding="utf-8")
    monkeypatch.setattr(device_module, "Path", lambda path: cpuinfo if path == "/proc/cpuinfo" else Path(path))
    assert device_module._cpu_flags() == flags
    assert describe(CPU).startswith(name)


def test_every_device_can_be_described(machine):
    machine((7, 5), mps=True)
    assert describe(CUDA) == "Fake GPU (7, 5)"
    assert describe(MPS) == "Apple GPU (MPS)"
    assert describe(CPU).endswith(f"{usable_cores()} cores")
    assert usable_cores() >= 1


def test_keeping_memory_is_safe_to_ask_for_anywhere(run_python):
    code = "import torch; from gpt2.device import keep_memory; keep_memory(); keep_memory(); print(torch.ones(9).sum())"
    assert run_python("-c", code).stdout == "tensor(9.)\n"
