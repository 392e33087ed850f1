"""python -m train.evaluate CHECKPOINT [TEXT ...] - how good a checkpoint is, on a text that it was not trained on.

Knows which text that is, when to refuse, and how to print what was found. How a text is scored is train/scoring.py's
business, what was learned by heart train/memory.py's.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gpt2
from gpt2 import device as hardware
from gpt2.checkpoint import json_text, read_json
from gpt2.overlap import build
from train import memory, tokens
from train.config import TrainConfig
from train.corpus import Corpus, open_corpus
from train.dataset import Dataset, Part, prepare
from train.document import progress
from train.learner import is_out_of_memory
from train.scoring import Score, score
from train.state import load_facts, write_file

MAX_KNOWN = 0.05  # of the words, in runs of 8 that were trained on; of the bundled model's held-out part it is 0.001
SHOWN_NGRAMS = 8  # after these nearly all are new
SHOWN_DOCUMENTS = 5  # at either end
FIGURES = (
    ("bits_per_byte", ".4f", "bits per byte"),
    ("bits_per_byte_half_overlap", ".4f", "the same, windows overlapping by half"),
    ("nats_per_character", ".4f", "nats per character"),
    ("perplexity", ".2f", "perplexity per token, which compares only within one vocabulary"),
    ("accuracy", ".1%", "of the tokens are the one it found likeliest"),
    ("calibration_error", ".1%", "calibration error: how far its confidence is from that (15 bins, Guo et al. 2017)"),
)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m train.evaluate", description="Say how good a checkpoint is.")
    p.add_argument("checkpoint", metavar="CHECKPOINT", help="directory, run, or Hub id user/repo[@revision]")
    p.add_argument("texts", nargs="*", type=Path, metavar="TEXT", help="files, folders; none: its own held-out part")
    p.add_argument("--corpus", help="a named text instead: plays, tinyshakespeare or hf:REPO[:COLUMN]")
    p.add_argument("--holdout", type=float, default=0, metavar="SHARE", help="score only so much of a TEXT, at its end")
    p.add_argument("--contaminated", action="store_true", help="also score a text that it was trained on")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or mps; it computes in float32 anyway")
    p.add_argument("--json", metavar="FILE", help="write all that was found; -: to standard output, and nothing else")
    return p


@dataclass(frozen=True)
class Trained:
    """What training.json says of the text."""

    config: dict[str, Any]  # of the run
    documents: dict[str, str]  # sha256 to name
    ours: bool = False  # config is of a run's own states

    @classmethod
    def read(cls, directory: Path) -> Trained | None:
        """None where there is no training.json that names a text.

        Raises:
            ValueError: where it is damaged.
        """
        path = directory / "training.json"
        record = read_json(path) if path.is_file() else {}
        try:
            documents = {str(document["sha256"]): str(document["name"]) for document in record["data"]}
            # What is published has only the names of files; the states of a run have whole paths.
            facts = load_facts(directory.parent / "state")
            return cls(dict((facts or record)["config"]), documents, ours=facts is not None)
        except (KeyError, TypeError, ValueError):
            return None

    def text(self, tokenizer: gpt2.Tokenizer, say: Callable[[str], None]) -> tuple[Corpus, Dataset]:
        """The text, cut into the parts that it had in training.

        Raises:
            ValueError: where it is not there, or not the same any more.
        """
        try:
            config = TrainConfig.from_json(self.config)
            if not (self.ours or all(map(is_name, config.texts))):
                raise ValueError("its record has a path where published ones have a name alone")
            corpus = open_corpus(config.texts, config.corpus, say)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the text that it was trained on is not here: {error}") from None
        found = {document.sha256 for document in corpus.documents}
        if found != self.documents.keys():
            names = [name for digest, name in self.documents.items() if digest not in found] or [corpus.name]
            raise ValueError(f"{names[0]} is not what it was trained on (another sha256): put that back.")
        return corpus, prepare(corpus, config, say, tokenizer)


@dataclass(frozen=True)
class Test:
    """What is scored, and what is known of it."""

    corpus: Corpus
    part: Part
    scored: str  # which part of the corpus that is
    own: Dataset | None = None  # the text that was trained on, with part as its held-out one; None where it is not here
    names: tuple[str, ...] = ()  # of its documents
    known: tuple[str, ...] = ()  # why it is none: the model knows the text
    notes: tuple[str, ...] = ()


def is_name(path: Path) -> bool:
    """Whether it is one of the folder where the command runs: no stranger's record leads to another."""
    return str(path) == path.name and path.name != ".." and "**" not in path.name


def own_test(trained: Trained, tokenizer: gpt2.Tokenizer, say: Callable[[str], None]) -> Test:
    """The part of its own text that the model never read."""
    corpus, own = trained.text(tokenizer, say)
    names = tuple(document.name for document in corpus.documents)
    return Test(corpus, own.holdout, "the part that it never read", own, names)


def other_test(
    args: argparse.Namespace, directory: Path, trained: Trained | None, model: gpt2.GPT, tokenizer: gpt2.Tokenizer, say
) -> Test:
    """The text that the command names, or the end of it.

    Raises:
        ValueError: where the model knows it, unless args.contaminated.
    """
    corpus = open_corpus(args.texts, args.corpus, say)
    part = last_part(corpus, args.holdout, model, tokenizer)
    scored = f"the last {args.holdout:.4g} of every document" if args.holdout else "all of it"
    own, names, known, notes = None, (), [], []
    if trained is None:
        notes.append("Contamination could not be fully checked: there is no training.json.")
    else:
        if same := [document.name for document in corpus.documents if document.sha256 in trained.documents]:
            known.append(f"its training.json names {same[0]}" + f" and {len(same) - 1} more" * (len(same) > 1))
        try:
            if str(trained.config.get("corpus")).startswith("hf:"):  # a stranger's record chooses no download
                raise ValueError("the text that it was trained on lies on the Hub.")
            test = own_test(trained, tokenizer, say)
            own, names = replace(test.own, holdout=part), test.names
        except ValueError as error:
            notes.append(f"What it learned by heart is left out: {error}")
    overlap = gpt2.Overlap.from_directory(directory)
    if overlap is None and own and own.train.bytes <= memory.MAX_TEXT:
        overlap = gpt2.Overlap.from_tensors(build(own.train.texts(tokenizer), torch.empty(0, dtype=torch.bool)))
    if overlap is None:
        notes.append("Contamination could not be fully checked: there is no overlap.safetensors.")
    elif (share := overlap.share("\0".join(part.texts(tokenizer)))) > MAX_KNOWN:
        known.append(f"{share:.0%} of the words stand in runs of 8 that it was trained on")
    if known and not args.contaminated:
        raise ValueError(
            f"no test of this checkpoint: {', and '.join(known)}. Name no text, and the part that it never read is "
            "scored; or see these figures all the same, by --contaminated."
        )
    return Test(corpus, part, scored, own, names, tuple(known), tuple(notes))


def last_part(corpus: Corpus, share: float, model: gpt2.GPT, tokenizer: gpt2.Tokenizer) -> Part:
    """The last share of every document (0: all of it), after the token that the model starts a text from."""
    config = TrainConfig(holdout=share, validation=0, result="last")
    ids, starts, n, n_bytes = [np.empty(0, np.uint32)], [], 0, 0
    for number, piece in tokens.encoded(corpus.documents, config, tokenizer, model.config.bos_token_id):
        if number == (2 if share else 0):
            ids.append(piece.ids)
            starts += [n + start for start in piece.starts]
            n, n_bytes = n + len(piece.ids), n_bytes + piece.bytes
    return Part(torch.from_numpy(np.concatenate(ids)), tuple(starts), n_bytes)


def evaluate(args: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All that --json writes. What memorisation there calls held out is the part that was scored.

    Raises:
        OSError, ValueError: where checkpoint or text can not be had, or the text may not be scored.
    """
    found, device = gpt2.find(args.checkpoint), hardware.pick_device(args.device)
    hardware.prepare(device)
    torch.set_float32_matmul_precision("highest")  # no TensorFloat-32 in a figure
    model, tokenizer = gpt2.load(found.directory, args.device, "float32")
    trained = Trained.read(found.directory)
    if args.texts or args.corpus:
        test = other_test(args, found.directory, trained, model, tokenizer, say)
    elif trained:
        test = own_test(trained, tokenizer, say)
    else:
        raise ValueError(f"{found.name} has no training.json that names its text: name a text to score.")
    part, notes = test.part, list(test.notes)
    if len(part) < 2:
        raise ValueError(f"there is nothing of {test.corpus.name} to score: name another text, or another --holdout.")
    if test.known:
        notes.insert(0, f"CONTAMINATED, so these figures say little: {', and '.join(test.known)}.")
    if trained and trained.config.get("init_from"):
        notes.append(f"It began as {trained.config['init_from']}; what that was trained on is not known here.")
    with progress(2 * len(part), "Scoring", unit="tok") as bar:
        result, half = (score(model, part, overlap, done=bar.update) for overlap in (False, True))
    if not result.nats < 700 * result.tokens:  # NaN, too; and a perplexity above e**709 is no float
        raise ValueError(f"{found.name} computes no probabilities to speak of: take an earlier checkpoint.")
    texts = list(part.texts(tokenizer))
    return {
        "checkpoint": found.name,
        "commit": found.sha,
        "text": test.corpus.name,
        "scored": test.scored,
        "contaminated": bool(test.known),
        "notes": notes,
        "bytes": result.bytes,
        "tokens": result.tokens,
        "bits_per_byte": round(result.bits_per_byte, 4),
        "bits_per_byte_half_overlap": round(half.bits_per_byte, 4),
        "nats_per_character": round(result.nats / sum(map(len, texts)), 4),
        "perplexity": round(result.perplexity, 3),
        "accuracy": round(result.accuracy, 4),
        "calibration_error": round(result.calibration_error, 4),
        "calibration": result.calibration(),
        "documents": by_document(test.corpus, part, texts, result),
        "memorisation": test.own
        and memory.report(model, test.own, test.names, window=TrainConfig.from_json(trained.config).window),
        "hardware": hardware.describe(device),
        "precision": "float32",
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def by_document(corpus: Corpus, part: Part, texts: list[str], result: Score) -> list[dict[str, Any]]:
    """Every document's own figure; none of one alone, nor of rows, where nobody knows which is whose."""
    if not 1 < len(corpus.documents) == len(part.starts) == len(texts):
        return []
    # Every token is a target but the separators, one before each document.
    edges, rows = [start - number for number, start in enumerate((*part.starts, len(part)))], []
    for document, text, (low, high) in zip(corpus.documents, texts, pairwise(edges), strict=True):
        n_bytes = len(text.encode("utf-8"))
        bits = float(result.each[low:high].double().sum()) / math.log(2) / n_bytes
        rows.append({"name": document.name, "bytes": n_bytes, "bits_per_byte": round(bits, 4)})
    return rows


def table(report: dict[str, Any]) -> Iterator[str]:
    """What the terminal shows, line by line."""
    yield f"{report['checkpoint']} on {report['text']}: {report['scored']}"
    yield from report["notes"]
    yield f"\n{report['bytes']:>10,}  bytes, {report['tokens']:,} tokens"
    for key, form, name in FIGURES:
        yield f"{report[key]:>10{form}}  {name}"
    found = report["memorisation"] or {}
    titles = {"generated": "what it writes", "held_out": "the scored text", "train": "its own text"}
    if "novelty" in found:
        yield "\nRuns of n words that its own text lacks"
        yield f"{'n':>17}" + "".join(f"{n:>8}" for n in range(1, SHOWN_NGRAMS + 1))
        for kind in found["copied"]:
            yield f"{titles[kind]:>17}" + "".join(f"{share:>8.1%}" for share in found["novelty"][kind][:SHOWN_NGRAMS])
        yield "\nThe most words in a row that stand in its own text, too"
        for kind, copy in found["longest_copy"].items():
            where = f", {copy['document']}, line {copy['line']:,}" if "document" in copy else ""
            yield f"{titles[kind]:>17}{copy['words']:>8}{where}"
    if found:
        said = found["extraction"]
        yield f"\nPlaces where, given {said['prompt_tokens']} tokens, it recites the next {said['recited_tokens']}"
        for kind in ("train", "held_out"):
            where = ", beginnings of the windows that it read" * (kind == "train" and said["from_window_starts"])
            yield f"{titles[kind]:>17}{said[kind]['recited']:>8} of {said[kind]['prompts']}{where}"
    rows = sorted(report["documents"], key=lambda row: row["bits_per_byte"])
    lines = [f"{row['bits_per_byte']:>10.4f}  {row['name']}" for row in rows]
    if more := lines[SHOWN_DOCUMENTS:-SHOWN_DOCUMENTS]:
        lines[SHOWN_DOCUMENTS:-SHOWN_DOCUMENTS] = [f"{'...':>10}  {len(more)} more"]
    yield from ["\nBits per byte, by document", *lines] if lines else []


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if not 0 <= args.holdout <= 0.9 or (args.holdout and not (args.texts or args.corpus)):
        p.error("--holdout is a share, at most 0.9, of a TEXT; the part that it never read of its own text is known.")
    if args.json and not Path(args.json).parent.is_dir():
        p.error(f"--json {args.json}: there is no such folder; make it first.")
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        report = evaluate(args, lambda sentence: print(sentence, file=sys.stderr))
        print(json_text(report).rstrip() if args.json == "-" else "\n".join(table(report)))
        if args.json not in (None, "-"):
            write_file(Path(args.json), json_text(report))
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print("error: not enough memory on this device; try --device cpu.", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
