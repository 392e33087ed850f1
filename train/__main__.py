"""python -m train [TEXT ...] - train a GPT-2 from scratch on your text.

Knows the command line, signals, the exit codes and what to print at the end; everything else is done below it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path

import tyro
from tqdm import tqdm

import gpt2
from train import card, setup, state
from train.config import RESUMABLE, TrainConfig, preset
from train.corpus import corpus_name, open_corpus
from train.export import RUN
from train.journal import FILES
from train.learner import is_out_of_memory
from train.processes import Lost, Processes, Stopped, leave
from train.pusher import Pusher
from train.trainer import Result, fit

CHECKPOINTS = Path("checkpoints")
DESCRIPTION = "Train a GPT-2 from scratch on your text, or, where you name none, on Shakespeare's plays."


def parse(argv: list[str], base: TrainConfig | None = None) -> TrainConfig:
    """The configuration that the flags ask for: base, or the preset they name, with the other flags on top.

    Raises:
        ValueError: for values that make no sense.
        SystemExit: for flags that do not exist (code 2) and --help (0), after tyro has explained.
    """
    if base is None:  # tyro needs the defaults before it parses, so what decides them is looked up first
        source = _last(argv, "init-from") or _last(argv, "init_from")
        base = preset(_last(argv, "preset") or ("finetune" if source else "mini"))
        if (source or base.init_from) and not {"-h", "--help"} & set(argv):
            source = source or base.init_from
            base = replace(base, init_from=source, tokenizer="inherited", **setup.inherited_sizes(source))
    flags = {"--compile": ["--compile", "True"], "--no-compile": ["--compile", "False"]}
    words = [part for word in argv for part in flags.get(word, [word])]
    config = tyro.cli(TrainConfig, args=words, default=base, prog="python -m train", description=DESCRIPTION)
    if config.texts and not any(word.partition("=")[0] == "--corpus" for word in argv):
        config = replace(config, corpus=None)  # a text of one's own replaces the preset's
    return config


def _last(argv: list[str], flag: str) -> str | None:
    """The value that a flag has in the end."""
    values = re.findall(rf"(?:^|\0)--{flag}(?:=|\0)([^\0]*)", "\0".join(argv))
    return values[-1] if values else None


def run_directory(config: TrainConfig) -> Path:
    """Where the run goes, whether or not it is there."""
    return config.out or CHECKPOINTS / (config.name or corpus_name(config.texts, config.corpus))


def check_new(directory: Path) -> None:
    """A new run needs an empty place.

    Raises:
        ValueError: where something is there already.
    """
    # A run that died before it saved anything left its beginning, and nothing to resume.
    found = {path.name for path in directory.iterdir() if path.suffix != ".tmp"} if directory.is_dir() else set()
    if not state.states(directory / "state"):
        found -= {"state"}
    if (directory.exists() and not directory.is_dir()) or found - {RUN, state.LOCK, *FILES}:
        raise ValueError(
            f"{directory} exists already and is never overwritten: go on with it by --resume, or choose another --name."
        )


def resumed(argv: list[str], directory: Path) -> TrainConfig:
    """The interrupted run's own configuration, with what the flags may change.

    Raises:
        ValueError: where there is nothing to resume, or a flag would make it another run.
    """
    facts = state.load_facts(directory / "state")
    if facts is None:
        raise ValueError(
            f"{directory} has no state to resume from: begin anew without --resume, and with another --name where this "
            "one is taken."
        )
    old = TrainConfig.from_json(facts["config"])
    new = replace(parse(argv, old), name=old.name, out=old.out)
    # The text may have moved; whether it is the same is seen when it is read.
    free = (*RESUMABLE, "texts", "corpus", "init_from", "distill_from")
    for name in (field.name for field in fields(TrainConfig) if field.name not in free):
        ours, theirs = getattr(new, name), getattr(old, name)
        if ours != theirs:
            raise ValueError(
                f"--{name.replace('_', '-')} {ours} would make this another run (it was {theirs}): leave the flag out, "
                "or begin anew with another --name."
            )
    return new


def stop_on_signals(received: list[int], processes: Processes) -> None:
    """Note Ctrl-C and SIGTERM in received, once there is something to save; the second one ends the process at once
    (but not under torchrun, which passes on every Ctrl-C a second time)."""

    def remember(number: int, _frame) -> None:
        if not processes.listening:
            raise KeyboardInterrupt
        received.append(number)
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(number, signal.SIG_DFL)
        if processes.first and len(received) == 1:
            print("\nStopping: saving what there is ...", file=sys.stderr, flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, remember)


def closing_words(result: Result, device: str) -> str:
    """A sample, the figures, the path and the next command."""
    model, tokenizer = gpt2.load(result.directory, device)
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


def settle(config: TrainConfig, argv: list[str], processes: int) -> tuple[TrainConfig, Path]:
    """The configuration of the run, and its directory, which is free or can be resumed.

    Raises:
        ValueError: where it is neither, or the processes can not share a batch evenly.
    """
    directory = run_directory(config)
    if config.resume:
        config = resumed(argv, directory)
    elif not config.dry_run:
        check_new(directory)
    if config.batch_size % processes:
        raise ValueError(
            f"--batch-size {config.batch_size} can not be shared evenly by {processes} processes: change either."
        )
    return config, directory


def in_words(error: Exception) -> str:
    """What to print of an error that a user can cause."""
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}. Check that place, its permissions and free space, or choose another --out."
    return str(error) or "not enough memory; try --micro-batch 1 or a smaller --block-size."


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    received: list[int] = []
    processes, directory, pusher = Processes(should_stop=lambda: bool(received)), Path(), None
    say = print if processes.first else lambda sentence: None
    try:
        config = processes.from_first(lambda: parse(argv))
    except (OSError, ValueError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while a model to fine-tune is fetched
        print("\nStopped before the training began; there is nothing to save.", file=sys.stderr)
        return 1
    try:
        config, directory = processes.from_first(lambda: settle(config, argv, processes.world))
        stop_on_signals(received, processes)
        corpus = processes.one_first(lambda: open_corpus(config.texts, config.corpus, say))
        if config.push_to and processes.first and not config.dry_run:
            pusher = Pusher(config.push_to, config.private, config.result, beside_the_bar)
        processes.from_first(lambda: pusher and pusher.check())
        result = fit(config, corpus, directory, card.write, pusher or (lambda directory: None), processes, say)
        if result:
            if pusher:
                pusher.finish(result.directory)
            say(closing_words(result, config.device))
        return 0
    except Stopped:
        if pusher:
            pusher.abandon()
        say("\nStopped." if config.dry_run else f"\nStopped and saved. Go on with:  python {resume(directory)}")
        return 0
    except KeyboardInterrupt:
        if config.resume and directory != Path():  # what it would have gone on from is untouched
            say(f"\nStopped. Go on with:  python {resume(directory)}")
            return 0
        print("\nStopped before the training began; there is nothing to save.", file=sys.stderr)
    except Lost:
        saved = state.states(directory / "state") if processes.first else True
        way_out = f"Go on from the last save with:  torchrun ... {resume(directory)}" if saved else "Nothing was saved."
        print(
            f"error: process {processes.rank} of {processes.world} lost the others: one of them ended, or its machine "
            f"is gone. {way_out}",
            file=sys.stderr,
        )
    except FloatingPointError as error:
        if processes.first:  # all of them found the same
            print(f"error: {error}", file=sys.stderr)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {in_words(MemoryError())}", file=sys.stderr)
    except (OSError, ValueError, MemoryError) as error:
        print(f"error: {in_words(error)}", file=sys.stderr)
    finally:
        processes.close()
    return 1


def beside_the_bar(sentence: str) -> None:
    """Print a line without tearing the progress bar."""
    tqdm.write(sentence, file=sys.stderr)


def resume(directory: Path) -> str:
    """The end of the command that goes on with a run."""
    return f"-m train --resume --out {shlex.quote(str(directory))}"


if __name__ == "__main__":
    code = main()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is done; Python's own end would let it look killed
    leave(code)
