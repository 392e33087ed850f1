"""Training GPT-2 124M in float32 on the CPU: this project against transformers, tokens per second and peak memory.

    python tests/bench/train_speed.py [--batch 1 2 4] [--steps 7]

Both train fresh weights on the same random tokens with the same AdamW; transformers as it comes, in eager mode.
Each lives in a process of its own and they take turns, so that neither meets a colder machine. A step is forward,
backward, clipping and optimizer. Prints medians and writes tests/bench/results/train_speed.json. Needs nothing else
running on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from gpt2.device import keep_memory, prepare  # noqa: E402
from tests.bench.record import here  # noqa: E402

CPU = torch.device("cpu")
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
CONTENDERS = ("ours", "transformers")


def ours(config: gpt2.GPTConfig) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """A model and its loss on ids (B, T + 1), as train/ sets them up."""
    model = gpt2.GPT(config, pad_vocab_to=128).init_weights()
    return model, lambda ids: model(ids[:, :-1], ids[:, 1:])[1]


def transformers(config: gpt2.GPTConfig) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The same from transformers, which shifts the labels itself."""
    from transformers import GPT2Config, GPT2LMHeadModel

    fields = {**config.to_json(), "dtype": None}
    model = GPT2LMHeadModel(GPT2Config(**fields))
    return model, lambda ids: model(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss


def contend(build: Callable, config: gpt2.GPTConfig, batch: int) -> None:
    """Take one training step for every line of standard input, and answer each with a line of JSON."""
    prepare(CPU)
    if build is ours:
        keep_memory()  # as our trainer does; nobody does it for transformers
    torch.manual_seed(0)
    model, loss_of = build(config)
    model.train()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    generator = torch.Generator().manual_seed(0)
    for _ in sys.stdin:
        ids = torch.randint(config.vocab_size, (batch, config.block_size + 1), generator=generator)
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "loss": loss.item(), "peak": peak_memory()}), flush=True)


def peak_memory() -> float:
    """The most memory this process has held so far, in MB. (resource's ru_maxrss counts the parent's too.)"""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def take_turns(batch: int, steps: int, sizes: list[str]) -> dict[str, list[dict[str, float]]]:
    """Answers of both contenders, step by step; the first, which finds cold caches, is left out."""
    command = [sys.executable, __file__, "--batch", str(batch), *sizes, "--contender"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8", "env": ENV}
    processes = {name: subprocess.Popen([*command, name], **pipes) for name in CONTENDERS}
    answers = {name: [] for name in CONTENDERS}
    try:
        for _ in range(steps + 1):
            for name, process in processes.items():
                print("step", file=process.stdin, flush=True)
                answers[name].append(json.loads(process.stdout.readline()))
    finally:
        for process in processes.values():
            process.communicate(timeout=60)  # the end of its input ends it
    return {name: found[1:] for name, found in answers.items()}


def matrix_peak(runs: int = 10) -> float:
    """The fastest float32 matrix product this machine was seen to do, in FLOP per second."""
    n = 2048
    a, b = torch.randn(n, n), torch.randn(n, n)
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / min(seconds)


def flop_per_token(config: gpt2.GPTConfig) -> int:
    """Forward and backward: two FLOP a weight forward and four backward (positions are only looked up), and the
    attention's products of every query with every key and value, counted as if nothing were masked."""
    weights = config.n_parameters - config.block_size * config.n_embd
    return 6 * weights + 12 * config.n_layer * config.n_embd * config.block_size


def summary(answers: list[dict[str, float]], batch: int, config: gpt2.GPTConfig, peak: float) -> dict[str, float]:
    seconds = statistics.median(answer["seconds"] for answer in answers)
    speed = batch * config.block_size / seconds
    return {
        "s/step": round(seconds, 3),
        "tok/s": round(speed, 1),
        "of matrix peak": round(speed * flop_per_token(config) / peak, 3),
        "peak MB": round(answers[-1]["peak"]),
        "loss": round(answers[-1]["loss"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="sequences in a step, one after the other")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--block", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_speed.json")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = gpt2.GPTConfig(
        block_size=args.block, n_layer=args.layers, n_head=max(1, args.width // 64), n_embd=args.width
    )
    if args.contender:
        return contend(globals()[args.contender], config, args.batch[0])

    prepare(CPU)
    sizes = [f"--layers={args.layers}", f"--width={args.width}", f"--block={args.block}"]
    results, peak = [], matrix_peak()
    print(f"{config.n_parameters / 1e6:.1f} million parameters, {args.block} tokens, {torch.get_num_threads()} threads")
    for batch in args.batch:
        answers = take_turns(batch, args.steps, sizes)
        peak = max(peak, matrix_peak())
        found = {name: summary(answers[name], batch, config, peak) for name in CONTENDERS}
        faster, smaller = (found["ours"][key] / found["transformers"][key] for key in ("tok/s", "peak MB"))
        print(f"{f'batch {batch}':14}" + "".join(f"{key:>16}" for key in found["ours"]))
        for name, row in found.items():
            print(f"{name:14}" + "".join(f"{value:16,}" for value in row.values()))
        print(f"{'ratio':14}{'':16}{faster:16.2f}{'':16}{smaller:16.2f}")
        results.append({"batch": batch, **found, "faster": round(faster, 3), "memory": round(smaller, 3)})
        results[-1]["seconds"] = {name: [round(a["seconds"], 3) for a in answers[name]] for name in CONTENDERS}
    result = {
        "median": results,
        "model": {"n_layer": args.layers, "n_embd": args.width, "block_size": args.block},
        "matrix peak, GFLOP/s": round(peak / 1e9, 1),
        "threads": torch.get_num_threads(),
        **here("torch", "transformers"),
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
