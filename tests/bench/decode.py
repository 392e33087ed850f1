"""Tokens per second on this CPU: ours in float32 and int8, alone and shared, beside other engines.

    python tests/bench/decode.py [--checkpoint DIR] [--runs 5] [--tokens 128] [--threads 2]

Everything takes its turn once in every run; the figures are medians. Without a checkpoint, GPT-2 124M with random
weights, on which speed does not depend. All peers read the same weights; those that are not installed are named. Each
has a process of its own, for their threads would be in each other's way. The limit is what the memory gives: all
weights but the positions' are read for every token of one stream. Writes tests/bench/results/decode.json. Needs nothing
else running.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from gpt2.checkpoint import read_config  # noqa: E402
from gpt2.device import has_int8  # noqa: E402
from gpt2.quantize import can_compile, suited  # noqa: E402
from tests.bench.record import installed, save  # noqa: E402
from train import gguf  # noqa: E402

PROMPT = 64  # tokens
POSITIONS = (50, 1000)  # where the cost of one token is compared
STREAMS = (1, 8, 16)
FORMATS = {"float32": 4, "int8": 1, "int8, no compiler": 1}  # bytes of a weight
spawn = get_context("spawn")
Measure = Callable[[], dict[str, float]]


def random_checkpoint(directory: Path) -> Path:
    """GPT-2 124M as it comes from the draw."""
    model = gpt2.GPT(gpt2.GPTConfig()).init_weights(torch.Generator().manual_seed(0))
    gpt2.save(directory, model, gpt2.Tokenizer.gpt2())
    return directory


def aside(measure: Callable[[], Any], threads: int) -> Any:
    """What measure() returns, from a thread of its own: OpenMP's end with it, and are in no engine's way."""
    found = []

    def run() -> None:
        torch.set_num_threads(threads)
        found.append(measure())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def memory(threads: int) -> Measure:
    numbers = torch.ones(2**28)

    def gigabytes_a_second() -> float:
        started = time.perf_counter()
        numbers.sum()
        return numbers.nbytes / 1e9 / (time.perf_counter() - started)

    return lambda: {"GB/s": max(aside(gigabytes_a_second, threads) for _ in range(5))}


def ours(checkpoint: Path, dtype: str, compiler: bool, tokens: int, threads: int) -> Measure:
    if not compiler:
        os.environ["CC"] = ""
    model, tokenizer = gpt2.load(checkpoint, "cpu", dtype)
    last = model.config.block_size - 1
    prompt = tokenizer.decode([7 + i % 5 for i in range(PROMPT)])

    def texts(streams: int, new: int) -> tuple[int, float]:
        """Tokens of all streams, and seconds; no prompt is remembered from an earlier turn."""
        with gpt2.Engine(model, tokenizer, max_batch=streams, prefix_bytes=0, threads=threads) as engine:
            started = time.perf_counter()
            params = [gpt2.SamplingParams(max_new_tokens=new, seed=seed) for seed in range(streams)]
            requests = [engine.submit(prompt, one) for one in params]
            for request in requests:
                list(request)
            return sum(len(request.outcome.new_ids) for request in requests), time.perf_counter() - started

    @torch.inference_mode()
    def token_at(position: int) -> float:
        cache, seconds = model.new_cache(), []
        for _ in range(20):
            cache.pos = [min(position, last)]
            started = time.perf_counter()
            model(torch.tensor([[7]]), cache=cache)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def measure() -> dict[str, float]:
        written = {n: texts(n, tokens) for n in STREAMS}
        first = texts(1, 1)[1]
        near, far = (aside(lambda p=position: token_at(p), threads) for position in POSITIONS)
        return {
            **{f"{n} streams, tok/s": count / seconds for n, (count, seconds) in written.items()},
            "first token, ms": 1000 * first,
            f"a token at {POSITIONS[1]} / at {POSITIONS[0]}": far / near,
        }

    return measure


def transformers_fp32(checkpoint: Path, tokens: int, threads: int) -> Measure:
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model, ids = AutoModelForCausalLM.from_pretrained(checkpoint).eval(), torch.full((1, PROMPT), 7)
    how = {"attention_mask": torch.ones_like(ids), "do_sample": True, "top_k": 50, "pad_token_id": 0}

    def measure() -> dict[str, float]:
        started = time.perf_counter()
        model.generate(ids, min_new_tokens=tokens, max_new_tokens=tokens, **how)
        return {"1 streams, tok/s": tokens / (time.perf_counter() - started)}

    return measure


def ctranslate2_int8(checkpoint: Path, tokens: int, threads: int) -> Measure:
    import ctranslate2
    from transformers import AutoTokenizer

    directory = tempfile.mkdtemp()
    ctranslate2.converters.TransformersConverter(str(checkpoint)).convert(directory, quantization="int8", force=True)
    generator = ctranslate2.Generator(directory, intra_threads=threads, compute_type="int8")
    start = AutoTokenizer.from_pretrained(checkpoint).convert_ids_to_tokens([7] * PROMPT)
    how = {"min_length": tokens, "max_length": tokens, "sampling_topk": 50, "include_prompt_in_result": False}

    def seconds(streams: int) -> float:
        started = time.perf_counter()
        generator.generate_batch([start] * streams, max_batch_size=streams, **how)
        return time.perf_counter() - started

    return lambda: {f"{n} streams, tok/s": n * tokens / seconds(n) for n in STREAMS}


def llama_files(checkpoint: Path, folder: Path) -> list[Path]:
    """The checkpoint as llama.cpp's own float32 and Q8_0."""
    import llama_cpp

    plain, small = folder / "F32.gguf", folder / "Q8_0.gguf"
    gguf.write(checkpoint, plain)
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    assert llama_cpp.llama_model_quantize(str(plain).encode(), str(small).encode(), how) == 0
    return [plain, small]


def llama_cpp(file: Path, tokens: int, threads: int) -> Measure:
    """One stream as its own bindings write it, and 8 in one batch through its C functions, each taking the likeliest
    token, which costs less than a draw."""
    import llama_cpp as llama

    model = llama.Llama(str(file), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    n_seq, n_vocab = 8, model.n_vocab()
    how = llama.llama_context_default_params()
    how.n_ctx, how.n_seq_max, how.n_threads, how.n_threads_batch = n_seq * 1024, n_seq, threads, threads
    context = llama.llama_init_from_model(model.model, how)
    batch = llama.llama_batch_init(n_seq * PROMPT, 0, 1)

    def decode(ids: list[list[int]], pos: int) -> list[int]:
        """Feed so many ids to each sequence; the likeliest next one of each."""
        flat = [(s, pos + t, i, t == len(of) - 1) for s, of in enumerate(ids) for t, i in enumerate(of)]
        batch.n_tokens = len(flat)
        for j, (s, at, i, wanted) in enumerate(flat):
            batch.token[j], batch.pos[j], batch.logits[j] = i, at, wanted
            batch.n_seq_id[j], batch.seq_id[j][0] = 1, s
        assert llama.llama_decode(context, batch) == 0
        rows = [llama.llama_get_logits_ith(context, j) for j, (*_, wanted) in enumerate(flat) if wanted]
        return [int(np.ctypeslib.as_array(row, (n_vocab,)).argmax()) for row in rows]

    def one() -> float:
        model.reset()
        started, n = time.perf_counter(), 0
        for _ in model.generate([7] * PROMPT, top_k=50, reset=True):
            n += 1
            if n == tokens:
                return tokens / (time.perf_counter() - started)

    def eight() -> float:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        started = time.perf_counter()
        new = decode([[7] * PROMPT] * n_seq, 0)
        for step in range(tokens - 1):
            new = decode([[i] for i in new], PROMPT + step)
        return n_seq * tokens / (time.perf_counter() - started)

    return lambda: {"1 streams, tok/s": one(), f"{n_seq} streams, tok/s": eight()}


class Peer:
    """A process that measures when it is asked to."""

    def __init__(self, make: Callable[..., Measure], *args: Any):
        self.pipe, theirs = spawn.Pipe()
        spawn.Process(target=answer, args=(theirs, make, args), daemon=True).start()

    def __call__(self) -> dict[str, float]:
        self.pipe.send("go")
        return self.pipe.recv()


def answer(pipe: Connection, make: Callable[..., Measure], args: tuple) -> None:
    torch.set_num_threads(1)
    measure = make(*args)
    with suppress(EOFError):  # whoever asked has gone
        while pipe.recv():
            pipe.send(measure())


def peers(checkpoint: Path, folder: Path, tokens: int, threads: int) -> tuple[dict[str, Peer], list[str]]:
    """Who is measured, by name, and who is missing."""
    found, missing = {"memory": Peer(memory, threads)}, []
    found["ours float32"] = Peer(ours, checkpoint, "float32", True, tokens, threads)
    if has_int8():
        found["ours int8, no compiler"] = Peer(ours, checkpoint, "int8", False, tokens, threads)
        if can_compile():
            found["ours int8"] = Peer(ours, checkpoint, "int8", True, tokens, threads)
        else:
            missing.append("ours int8, compiled: there is no C compiler")
    else:
        missing.append("ours int8: PyTorch can not multiply eight bits on this CPU")
    others = {
        "transformers float32": ("transformers", transformers_fp32),
        "CTranslate2 int8": ("ctranslate2", ctranslate2_int8),
    }
    for name, (package, make) in others.items():
        if installed(package):
            found[name] = Peer(make, checkpoint, tokens, threads)
        else:
            missing.append(f"{package} is not installed")
    if installed("llama-cpp-python") and installed("gguf"):
        for file in llama_files(checkpoint, folder):
            found[f"llama.cpp {file.stem}"] = Peer(llama_cpp, file, tokens, threads)
    else:
        missing.append("llama-cpp-python or gguf is not installed")
    return found, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = args.checkpoint or random_checkpoint(Path(directory) / "random")
        config = read_config(checkpoint)
        found, missing = peers(checkpoint, Path(directory), args.tokens, args.threads)
        for peer in found.values():
            peer()  # warm
        rounds = [{name: peer() for name, peer in found.items()} for _ in range(args.runs)]
        runs = {name: [figures[name] for figures in rounds] for name in found}
    medians = {
        name: {key: round(statistics.median(run[key] for run in of), 2) for key in of[0]} for name, of in runs.items()
    }
    for name, figures in medians.items():
        print(name, *(f"{key} {value:,.2f}" for key, value in figures.items()), sep="\n    ")
    print(*missing, sep="\n")
    read = config.n_parameters - config.block_size * config.n_embd
    roof = {}
    for dtype, size in FORMATS.items():
        if f"ours {dtype}" not in medians:
            continue
        limit, reached = medians["memory"]["GB/s"] * 1e9 / (read * size), medians[f"ours {dtype}"]["1 streams, tok/s"]
        roof[dtype] = {"MB a token": read * size / 1e6, "limit, tok/s": limit, "reached": reached / limit}
        print(f"{dtype}: {read * size / 1e6:,.0f} MB a token, limit {limit:,.1f} tok/s, reached {reached / limit:.0%}")
    result = {
        "median": medians,
        "runs": runs,
        "missing": missing,
        "roofline": roof,
        "tokens": args.tokens,
        "threads": args.threads,
        "largest int8 weight": suited()[0] if has_int8() else None,
    }
    save("decode", result, "torch", "transformers", "ctranslate2", "llama-cpp-python")


if __name__ == "__main__":
    main()
