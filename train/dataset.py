"""Text -> token files on disk -> batches.

Every document is cut into three contiguous parts: training, validation, held out. Neither text nor tokens need fit
in memory: the text is read piece by piece, and the tokens are mapped from the disk. The batch of a step is a pure
function of (seed, step), so a resumed run, or one on more processes, sees what an undisturbed one would. Knows
nothing of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpt2.model import IGNORE
from gpt2.tokenizer import Tokenizer
from train import tokens, vocabulary
from train.augment import Augmentation, generator
from train.config import TrainConfig
from train.corpus import Corpus
from train.fetch import cache_dir, sweep
from train.state import flush

FORMAT = 2  # raise it when what the files hold changes, so that old ones are not read
PARTS = ("train", "validation", "holdout")


@dataclass(frozen=True)
class Part:
    """Tokens of one part of all documents, one after the other."""

    ids: Tensor  # (n,) uint16 or uint32, on the disk: take slices, and .long() of them
    starts: tuple[int, ...]  # rising; where documents and rows begin: the token there separates, and is no target
    bytes: int  # UTF-8 bytes of its text

    def __len__(self) -> int:
        return self.ids.numel()

    def texts(self, tokenizer: Tokenizer) -> Iterator[str]:
        """The text of every document and row; of all in one, where no separators were put between them."""
        for before, end in pairwise((-1, *self.starts, len(self))):
            if text := tokenizer.decode(self.ids[before + 1 : end].tolist()):
                yield text


@dataclass(frozen=True)
class Dataset:
    """A tokenised corpus."""

    key: str  # identity of text, split and vocabulary
    tokenizer: Tokenizer
    bos: int  # the token that separates documents, and that an empty prompt starts from
    train: Part
    validation: Part
    holdout: Part


def prepare(
    corpus: Corpus,
    config: TrainConfig,
    say: Callable[[str], None] = lambda sentence: None,
    tokenizer: Tokenizer | None = None,
) -> Dataset:
    """Split and tokenise the corpus, or map the token files if this was done before.

    Args:
        say: told in a sentence what is being waited for.
        tokenizer: takes the place of config.tokenizer.

    Raises:
        ValueError: where the text is too short for block_size, or changes while it is read.
    """
    directory = cache_dir() / "tokens" / _key(corpus, config, tokenizer)
    dataset = _read(directory)
    if dataset is None:
        with _staged(directory) as stage:
            _write(corpus, config, tokenizer, stage, say)
        dataset = _read(directory)
    if dataset is None:
        raise OSError(f"what was just written to {directory} can not be read: is that disk full, or failing?")
    if len(dataset.train) <= config.block_size:
        fits = max(1, 2 ** (max(2, len(dataset.train)) - 1).bit_length() // 4)
        raise ValueError(
            f"the text is too short: its training part has {len(dataset.train)} tokens, and one window needs "
            f"block_size + 1 = {config.block_size + 1}. Use more text, or --block-size {fits}."
        )
    if config.validation and len(dataset.validation) < 2:
        raise ValueError("the text is too short to have a validation part; use more text, or --validation 0.2.")
    return dataset


class Batches:
    """The batches of a run.

    Shuffled, every epoch cuts the text into windows at an offset of its own and takes each once. Sequential, the
    windows start at 0, follow each other, and repeat.

    Args:
        ids: the training tokens, (n,).
        block_size: T.
        batch_size: B, sequences in one step.
        augmentation: what is done to the windows; default: nothing.
    """

    def __init__(
        self,
        ids: Tensor,
        block_size: int,
        batch_size: int,
        seed: int,
        order: str,
        augmentation: Augmentation | None = None,
    ):
        self.ids, self.block_size, self.batch_size, self.seed, self.order = ids, block_size, batch_size, seed, order
        self.augmentation = augmentation or Augmentation(ids)
        n = ids.numel()
        # Windows of an epoch. Shuffled leaves room for the offset; sequential uses every full window, and where
        # the text ends with the last window, its last token has no target.
        self.windows = n // block_size if order == "sequential" else max(1, n // block_size - 1)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """(idx, targets) of a step, both (B, T) int64."""
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        rows = [self._window(*divmod(number, self.windows)) for number in numbers]
        idx, targets = (torch.stack(column) for column in zip(*rows, strict=True))  # (B, T), (B, T)
        for row in range(self.batch_size):
            self.augmentation.disturb(idx[row], f"{self.seed}/noise/{step}/{row}")
        return idx, targets

    def _window(self, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        start = number * self.block_size
        if self.order == "shuffled":
            offset, permutation = _epoch(self.seed, epoch, self.windows, self.ids.numel() - 1, self.block_size)
            start = offset + int(permutation[number]) * self.block_size
        window = self.ids[start : start + self.block_size + 1].long()
        window, unforeseen = self.augmentation.window(window, self.seed, f"{epoch}/{number}")
        targets = torch.full((self.block_size,), IGNORE)
        targets[: window.numel() - 1] = window[1:]
        for place in unforeseen:
            targets[place - 1] = IGNORE
        return window[: self.block_size], targets  # (T,), (T,)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, last: int, block_size: int) -> tuple[int, Tensor]:
    draw = generator(f"{seed}/{epoch}")
    slack = min(block_size, last - windows * block_size + 1)  # offsets that keep every window inside the text
    return int(torch.randint(max(1, slack), (), generator=draw)), torch.randperm(windows, generator=draw)


# ---- ids to files and back


def _write(corpus: Corpus, config: TrainConfig, tokenizer: Tokenizer | None, directory: Path, say: Callable) -> None:
    documents = corpus.documents
    if tokenizer is None:
        characters = sum(tokens.bounds(document.characters, config)[0] for document in documents)
        tokenizer = vocabulary.build(config.tokenizer, tokens.training_texts(documents, config), characters, say)
    tokenizer.save(directory)
    # Where training never sees <|endoftext|>, a newline is what a text can start after.
    bos = tokenizer.endoftext if config.endoftext else tokenizer.encode("\n")[0]
    say(f"Tokenising {len(documents)} document{'s' * (len(documents) > 1)} ...")
    # 16 bits hold every id of a small vocabulary and of GPT-2's own, at half the disk.
    dtype = "<u2" if tokenizer.vocab_size <= 2**16 else "<u4"
    facts = {name: {"tokens": 0, "bytes": 0, "starts": []} for name in PARTS}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context((directory / f"{name}.bin").open("wb")) for name in PARTS]
        for number, (ids, starts, n_bytes) in tokens.encoded(documents, config, tokenizer, bos):
            files[number].write(ids.astype(dtype))
            part = facts[PARTS[number]]
            part["starts"] += [part["tokens"] + start for start in starts]
            part["tokens"] += len(ids)
            part["bytes"] += n_bytes
    manifest = {"format": FORMAT, "dtype": dtype, "bos": bos, "parts": facts}
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@contextlib.contextmanager
def _staged(directory: Path) -> Iterator[Path]:
    """A directory to fill; when the block ends without an error it gets its name, as a whole. Where another process
    was faster, that one's stays: somebody may be reading it."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    sweep(directory.parent)
    stage = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", suffix=".tmp", dir=directory.parent))
    try:
        stage.chmod(0o755)
        yield stage
        for file in stage.iterdir():
            flush(file)
        if directory.exists() and _read(directory) is None:
            shutil.rmtree(directory)  # damaged
        with contextlib.suppress(OSError):  # it is there by now; read, and seen to be whole, after this
            os.rename(stage, directory)
        flush(directory.parent)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _key(corpus: Corpus, config: TrainConfig, tokenizer: Tokenizer | None) -> str:
    facts = [FORMAT, tokenizer.sha256 if tokenizer else config.tokenizer]
    facts += [config.holdout, config.validation, config.endoftext]
    facts += [document.sha256 for document in corpus.documents]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _read(directory: Path) -> Dataset | None:
    """The dataset of a directory; None where it is not there or not whole."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
        parts = [_part(directory / f"{name}.bin", manifest["dtype"], **manifest["parts"][name]) for name in PARTS]
        return Dataset(directory.name, Tokenizer.from_directory(directory), manifest["bos"], *parts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _part(path: Path, dtype: str, tokens: int, bytes: int, starts: list[int]) -> Part:
    if path.stat().st_size != tokens * np.dtype(dtype).itemsize:
        raise ValueError(f"{path} is cut short, or not of this manifest")
    # Mapped for reading only: torch.from_file would have the system promise memory for all of it.
    ids = np.memmap(path, dtype, "r") if tokens else np.empty(0, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that nobody may write to it
        return Part(torch.from_numpy(ids), tuple(starts), bytes)
