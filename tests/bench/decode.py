"""Tokens per second on this CPU: ours in float32 and int8, alone and shared, beside other engines.

    python tests/bench/decode.py [--checkpoint DIR] [--runs 5] [--tokens 128] [--threads 2] [--gguf Q8_0.gguf F32.gguf]

Everything takes its turn once in every run; the figures are medians. Without a checkpoint, GPT-2 124M with random
weights, on which speed does not depend. Peers that are not installed are named. llama.cpp reads files that its own
convert_hf_to_gguf.py makes of the checkpoint. Writes tests/bench/results/decode.json. Needs nothing else running.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from gpt2.device import describe, has_fast_int8  # noqa: E402

PROMPT = 64  # tokens
POSITIONS = (50, 1000)  # where the cost of one token is compared
STREAMS = (1, 8, 16)
Measure = Callable[[], dict[str, float]]


def random_checkpoint(directory: Path) -> Path:
    """GPT-2 124M as it comes from the draw."""
    model = gpt2.GPT(gpt2.GPTConfig()).init_weights(torch.Generator().manual_seed(0))
    gpt2.save(directory, model, gpt2.Tokenizer.gpt2())
    return directory


def ours(checkpoint: Path, dtype: str, tokens: int) -> Measure:
    model, tokenizer = gpt2.load(checkpoint, "cpu", dtype)
    last = model.config.block_size - 1
    prompt = tokenizer.decode([7 + i % 5 for i in range(PROMPT)])

    def texts(streams: int, new: int) -> tuple[int, float]:
        """Tokens of all streams, and seconds; no prompt is remembered from an earlier turn."""
        with gpt2.Engine(model, tokenizer, max_batch=streams, prefix_bytes=0) as engine:
            started = time.perf_counter()
            params = [gpt2.SamplingParams(max_new_tokens=new, seed=seed) for seed in range(streams)]
            requests = [engine.submit(prompt, one) for one in params]
            for request in requests:
                list(request)
            return sum(len(request.outcome.new_ids) for request in requests), time.perf_counter() - started

    @torch.inference_mode()
    def token_at(position: int) -> float:
        cache, seconds = gpt2.KVCache(model.config), []
        for _ in range(20):
            cache.pos = [min(position, last)]
            started = time.perf_counter()
            model(torch.tensor([[7]]), cache=cache)
            seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def measure() -> dict[str, float]:
        near, far = (token_at(position) for position in POSITIONS)
        written = {n: texts(n, tokens) for n in STREAMS}
        return {
            **{f"{n} streams, tok/s": count / seconds for n, (count, seconds) in written.items()},
            "first token, ms": 1000 * texts(1, 1)[1],
            f"a token at {POSITIONS[1]} / at {POSITIONS[0]}": far / near,
        }

    return measure


def transformers_fp32(checkpoint: Path, tokens: int) -> Measure:
    from transformers import AutoModelForCausalLM

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


def llama_cpp(gguf: Path, tokens: int, threads: int) -> Measure:
    import llama_cpp

    model = llama_cpp.Llama(str(gguf), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def measure() -> dict[str, float]:
        model.reset()
        started, n = time.perf_counter(), 0
        for _ in model.generate([7] * PROMPT, top_k=50, reset=True):
            n += 1
            if n == tokens:
                return {"1 streams, tok/s": tokens / (time.perf_counter() - started)}

    return measure


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def subjects(checkpoint: Path, args: argparse.Namespace) -> tuple[dict[str, Measure], list[str]]:
    """What is measured, by name, and what is missing."""
    peers = {
        "transformers": ("transformers float32", lambda: transformers_fp32(checkpoint, args.tokens)),
        "ctranslate2": ("CTranslate2 int8", lambda: ctranslate2_int8(checkpoint, args.tokens, args.threads)),
    }
    measures = {f"ours {dtype}": ours(checkpoint, dtype, args.tokens) for dtype in ("float32", "int8")}
    missing = []
    for package, (name, make) in peers.items():
        if installed(package):
            measures[name] = make()
        else:
            missing.append(f"{name}: {package} is not installed")
    if not installed("llama-cpp-python") or not args.gguf:
        missing.append("llama.cpp: needs llama-cpp-python and --gguf")
    else:
        measures |= {f"llama.cpp {path.stem}": llama_cpp(path, args.tokens, args.threads) for path in args.gguf}
    return measures, missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        measures, missing = subjects(args.checkpoint or random_checkpoint(Path(directory)), args)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in measures}
        for number in range(args.runs + 1):
            for name, measure in measures.items():
                figures = measure()
                if number:  # the first is warming up
                    runs[name].append(figures)
    medians = {
        name: {key: round(statistics.median(run[key] for run in of), 2) for key in of[0]} for name, of in runs.items()
    }
    for name, figures in medians.items():
        print(name, *(f"{key} {value:,.2f}" for key, value in figures.items()), sep="\n    ")
    print(*missing, sep="\n")
    packages = ("torch", "transformers", "ctranslate2", "llama-cpp-python")
    result = {
        "median": medians,
        "runs": runs,
        "missing": missing,
        "tokens": args.tokens,
        "threads": args.threads,
        "machine": describe(torch.device("cpu")),
        "int8 instructions": has_fast_int8(torch.device("cpu")),
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in packages},
    }
    path = Path(__file__).parent / "results" / "decode.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
