"""python -m train [TEXT ...] - train a GPT-2 from scratch on your text.

Knows the command line, the exit codes and what to print at the end; everything else is done below it.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import tyro

import gpt2
from train import card
from train.config import TrainConfig, preset
from train.corpus import open_corpus
from train.trainer import Result, fit

CHECKPOINTS = Path("checkpoints")
DESCRIPTION = "Train a GPT-2 from scratch on your text, or, where you name none, on Shakespeare's plays."


def parse(argv: list[str]) -> TrainConfig:
    """The configuration that the flags ask for: the preset's, with the other flags on top.

    Raises:
        ValueError: for values that make no sense.
        SystemExit: for flags that do not exist (code 2) and --help (0), after tyro has explained.
    """
    # tyro needs the defaults before it parses, so the preset is looked up first.
    named = re.search(r"(?:^|\0)--preset(?:=|\0)([^\0]*)", "\0".join(argv))
    base = preset(named.group(1) if named else "mini")
    flags = {"--compile": ["--compile", "True"], "--no-compile": ["--compile", "False"]}
    words = [part for word in argv for part in flags.get(word, [word])]
    return tyro.cli(TrainConfig, args=words, default=base, prog="python -m train", description=DESCRIPTION)


def run_directory(config: TrainConfig, corpus_name: str) -> Path:
    """Where the run goes.

    Raises:
        ValueError: where something is there already.
    """
    directory = config.out or CHECKPOINTS / (config.name or corpus_name)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} exists already and is never overwritten: choose another --name.")
    return directory


def closing_words(result: Result) -> str:
    """A sample, the path, the figures and the next command."""
    model, tokenizer = gpt2.load(result.directory)
    params = gpt2.SamplingParams(max_new_tokens=200, temperature=0.8, top_k=50, seed=1)
    sample = "".join(gpt2.generate(model, tokenizer, "", params)).strip()
    figures = "\n".join(f"  {name.replace('_', ' ')}: {value:.4g}" for name, value in result.figures.items())
    where = shlex.quote(str(result.directory))
    return (
        f"\nA sample:\n\n{sample}\n\n"
        f"{result.steps} steps done. Figures of the saved checkpoint:\n{figures}\n\n"
        f"Checkpoint: {where}\n"
        f'Next:  python -m gpt2 "Once" --checkpoint {where}\n'
        f"  or:  MODEL_ID={where} python app.py"
    )


def main(argv: list[str] | None = None) -> int:
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        config = parse(sys.argv[1:] if argv is None else argv)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        corpus = open_corpus(config.texts, config.corpus)
        directory = run_directory(config, corpus.name)
        result = fit(config, corpus, directory, on_save=card.write)
        print(closing_words(result))
    except (OSError, ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
