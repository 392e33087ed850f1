"""python -m gpt2 "JULIET:" - continue a prompt on the terminal, as it is written.

Knows the command line and standard output; everything else is gpt2's public interface.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import fields, replace

import torch

import gpt2
from gpt2.device import DTYPES, threads

DEFAULTS = gpt2.SamplingParams()
# What moves a terminal's cursor, names its window or fills its clipboard: a stranger's model may have learned it.
CONTROLS = {i: "\N{REPLACEMENT CHARACTER}" for i in (*range(32), *range(127, 160)) if chr(i) not in "\n\t"}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m gpt2",
        description="Continue a prompt with a GPT-2 checkpoint, streaming to the terminal.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    p.add_argument("prompt", nargs="?", default="", metavar="PROMPT", help="what to continue; empty starts a new text")
    p.add_argument(
        "--checkpoint", default=str(gpt2.BUNDLED), metavar="DIR|REPO_ID[@REVISION]", help="directory, run, Hub id"
    )
    p.add_argument("--max-new-tokens", type=int, default=DEFAULTS.max_new_tokens, metavar="N", help="how many tokens")
    p.add_argument("--temperature", type=float, default=DEFAULTS.temperature, metavar="T", help="0 takes the likeliest")
    p.add_argument("--top-k", type=int, default=DEFAULTS.top_k, metavar="K", help="keep the K likeliest; 0 keeps all")
    p.add_argument("--top-p", type=float, default=DEFAULTS.top_p, metavar="P", help="keep this much probability")
    p.add_argument("--min-p", type=float, default=DEFAULTS.min_p, metavar="M", help="keep M of the likeliest or more")
    p.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1 repeats itself less")
    p.add_argument("--seed", type=int, metavar="S", help="the same seed gives the same text; each sample adds 1")
    p.add_argument("--num-samples", type=int, default=1, metavar="N", help="how many continuations")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    p.add_argument("--dtype", default="auto", choices=["auto", *DTYPES, "int8"], help="number format")
    return p


def write(model: gpt2.GPT, tokenizer: gpt2.Tokenizer, prompt: str, params: gpt2.SamplingParams) -> gpt2.Outcome:
    """Print the prompt and its continuation piece by piece, harmless where a terminal reads; return the Outcome."""
    harmless = CONTROLS if sys.stdout.isatty() else {}
    print(prompt, end="", flush=True)
    stream = gpt2.generate(model, tokenizer, prompt, params)
    while True:
        try:
            print(next(stream).translate(harmless), end="", flush=True)
        except StopIteration as end:
            return end.value


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    try:
        if args.num_samples < 1:
            raise ValueError(f"--num-samples {args.num_samples} must be at least 1.")
        if args.seed is not None:  # each sample adds 1
            gpt2.SamplingParams(seed=args.seed + args.num_samples - 1)
        if args.device not in ("auto", "cpu", "cuda", "mps") and not args.device.startswith("cuda:"):
            raise ValueError(f"unknown device {args.device!r}; choose auto, cpu, cuda or mps.")
        names = {field.name for field in fields(gpt2.SamplingParams)}
        params = gpt2.SamplingParams(**{name: value for name, value in vars(args).items() if name in names})
    except ValueError as error:
        p.error(str(error))  # exit code 2
    # A terminal that can not show a character must not end the program.
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        torch.set_num_threads(threads())  # in a container PyTorch counts the machine's cores
        found = gpt2.find(args.checkpoint)
        model, tokenizer = gpt2.load(found.directory, args.device, args.dtype)
        if found.sha:
            print(f"[{found.name}, commit {found.sha[:8]}]", file=sys.stderr)
        for number in range(args.num_samples):
            if number:
                print("\n" + "-" * 40)
            started = time.perf_counter()
            sample = params if params.seed is None else replace(params, seed=params.seed + number)
            outcome = write(model, tokenizer, args.prompt, sample)
            seconds = time.perf_counter() - started
            print(flush=True)
            n = len(outcome.new_ids)
            dropped = f"; the first {outcome.dropped} tokens of the prompt did not fit" if outcome.dropped else ""
            print(
                f"[{n} tokens, {n / seconds:.0f} tok/s, stopped: {outcome.stop_reason}, seed {outcome.seed}{dropped}]",
                file=sys.stderr,
            )
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\n[stopped]", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
