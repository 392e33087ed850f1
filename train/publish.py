"""python -m train.publish DIR user/repo - put a checkpoint on the Hugging Face Hub, and a page for it.

Knows what belongs on the Hub and what must be right before it goes there. How it gets there is train/upload.py's
business, what a Space is made of train/space.py's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path

import torch

import gpt2
from gpt2.files import check_file, read_json
from train import card, gguf, space
from train.config import REPO_ID
from train.upload import Pushed, Repository

# All that a repository of ours holds. What else lies in the directory stays at home: state/ above all.
FILES = (
    "config.json",
    "model.safetensors",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "overlap.safetensors",
    "training.json",
    "metrics.jsonl",
    "samples.jsonl",
    "loss.png",
    "README.md",
)
PROBE = "To be, or not to be:\r\n\tça va? \N{GRINNING FACE}\0 0123 ...  \n"  # what a tokenizer has to bring back whole


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m train.publish", description="Put a checkpoint on the Hugging Face Hub.")
    p.add_argument("directory", type=Path, metavar="DIR", help="the checkpoint, or a run, whose best/ is meant")
    p.add_argument("repo_id", nargs="?", metavar="REPO_ID", help="user/name; made where it is missing")
    p.add_argument("--private", action="store_true", help="for your eyes only")
    p.add_argument("--tag", help="a name for this state of the repository; default: one that belongs to the run")
    p.add_argument("--dry-run", action="store_true", help="check, list the files, reach for nothing")
    p.add_argument("--overwrite", action="store_true", help="also where somebody else changed the repository")
    p.add_argument("--space", metavar="SPACE_ID", help="user/name of a Space that shows the model; made, or updated")
    p.add_argument("--gguf", type=Path, metavar="FILE", help="write the checkpoint as a file for llama.cpp")
    p.add_argument("--hardware", choices=space.HARDWARE, help="of the Space; default for a new one: zero-a10g")
    return p


def checked(directory: Path) -> tuple[Path, str]:
    """The checkpoint directory that is meant, and the identity of what it holds, once it is seen to be whole.

    Raises:
        ValueError: where it can not be opened, or not be used.
    """
    directory = gpt2.find(directory).directory
    model, tokenizer = gpt2.load(directory, "cpu", "float32")
    damaged = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    if damaged:
        raise ValueError(f"{directory}: {damaged[0]} holds numbers that are not finite; publish another checkpoint.")
    ids = tokenizer.encode(PROBE)
    if tokenizer.decode(ids) != PROBE:
        raise ValueError(f"{directory}: its tokenizer does not bring a text back as it was; the files do not match.")
    with torch.inference_mode():
        logits, _ = model(torch.tensor([ids[: model.config.block_size]]))
    if not logits.isfinite().all():
        raise ValueError(f"{directory}: what the model computes is not finite; publish another checkpoint.")
    return directory, identity(directory)


def identity(directory: Path) -> str:
    """Eight hexadecimal digits that tell one run from another; the same at every step of it."""
    path = directory / "training.json"
    trained = read_json(path) if path.exists() else {}
    if "config" in trained:
        facts = json.dumps([trained.get(key) for key in ("command", "data", "tokenizer_sha256")]).encode()
    else:  # not of this project's making
        facts = (directory / "model.safetensors").read_bytes()
    return hashlib.sha256(facts).hexdigest()[:8]


def contents(directory: Path, repo_id: str) -> dict[str, Path | bytes]:
    """What goes into the repository, by name. A card that we wrote and nobody edited gets the repository's name.

    Raises:
        CheckpointError: where one of the files is a link to elsewhere.
    """
    files: dict[str, Path | bytes] = {name: directory / name for name in FILES if (directory / name).is_file()}
    for path in files.values():
        check_file(path)  # no link to a file that was never meant for others
    if {"README.md", "training.json"} <= files.keys():
        written = (directory / "README.md").read_text(encoding="utf-8")
        if written == card.render(directory):
            files["README.md"] = card.render(directory, repo_id).encode("utf-8")
    return files


def listing(files: dict[str, Path | bytes]) -> str:
    """Names and sizes, a line each."""
    sizes = {name: len(f) if isinstance(f, bytes) else f.stat().st_size for name, f in files.items()}
    lines = [f"{size:>15,}  {name}" for name, size in sorted(sizes.items())]
    return "\n".join([*lines, f"{sum(sizes.values()):>15,}  bytes in {len(sizes)} files"])


def publish(args: argparse.Namespace, directory: Path, run: str) -> Pushed:
    """Push the checkpoint, in one commit, and tag it."""
    steps = read_json(directory / "training.json").get("steps") if (directory / "training.json").exists() else None
    repository = Repository(args.repo_id, private=args.private)
    print(f"{'New' if repository.created else 'Existing'} repository {repository.url}", flush=True)
    title = f"Step {steps:,} of run {run}" if isinstance(steps, int) else f"Checkpoint {run}"
    files = contents(directory, args.repo_id)
    pushed = repository.commit(files, FILES.__contains__, title, args.overwrite)
    repository.tag(args.tag or f"run-{run}", pushed.sha, moves=not args.tag)
    done = "Pushed" if pushed.changed else "Nothing has changed since the last push:"
    print(f"{done} {repository.url}, commit {pushed.sha[:8]}, tag {args.tag or f'run-{run}'}.")
    return pushed


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    if args.repo_id is None and (args.gguf is None or args.space):
        p.error("the following arguments are required: REPO_ID")
    for name in filter(None, [args.repo_id, args.space]):
        if not re.fullmatch(REPO_ID, name):
            p.error(f"{name!r} is no name on the Hub: it is user/name.")
    if args.hardware and not args.space:
        p.error("--hardware is the Space's: name one by --space.")
    try:
        directory, run = checked(args.directory)
        if args.gguf and args.dry_run:
            print(f"{args.gguf} would be written.")
        elif args.gguf:
            gguf.write(directory, args.gguf)
            print(f"{args.gguf}: {args.gguf.stat().st_size:,} bytes")
        if args.repo_id is None:
            return 0
        if args.dry_run:
            print(f"{args.repo_id} would hold:\n{listing(contents(directory, args.repo_id))}")
            if args.space:
                print(f"The Space {args.space} would hold:\n{listing(space.contents(args.repo_id, args.hardware))}")
            print("Nothing was sent.")
            return 0
        pushed = publish(args, directory, run)
        if args.space:
            print(space.deploy(args.space, args.repo_id, pushed.sha, args.private, args.hardware, args.overwrite))
        return 0
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\nStopped. What the Hub has is whole: the old state or the new one.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
