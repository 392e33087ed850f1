"""Text -> token shards on disk -> batches.

Every document is cut into three contiguous parts: training, validation, held out. The batch of a step is a pure
function of (seed, step), so a resumed run, or one on more processes, sees what an undisturbed one would. Knows
nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2.model import IGNORE
from gpt2.tokenizer import Tokenizer
from train import vocabulary
from train.config import TrainConfig
from train.corpus import Corpus, Document, cache_dir
from train.state import staged_directory

FORMAT = 1  # raise it when what the shards hold changes, so that old ones are not read
SHARD_TOKENS = 50_000_000  # tokens a file; small enough to build in memory, large enough to have few


@dataclass(frozen=True)
class Part:
    """Tokens of one part of all documents, one after the other."""

    ids: Tensor  # (n,) uint16 or int32
    starts: tuple[int, ...]  # where documents begin: the token there separates and is never a target
    bytes: int  # UTF-8 bytes of its text

    def __len__(self) -> int:
        return self.ids.numel()


@dataclass(frozen=True)
class Dataset:
    """A tokenised corpus."""

    key: str  # identity of text, split and vocabulary
    tokenizer: Tokenizer
    bos: int  # the token that separates documents, and that an empty prompt starts from
    train: Part
    validation: Part
    holdout: Part


def prepare(corpus: Corpus, config: TrainConfig, say=lambda sentence: None) -> Dataset:
    """Split and tokenise the corpus, or read the shards if this was done before.

    Args:
        say: told in a sentence what is being waited for.

    Raises:
        ValueError: where the text is too short for block_size.
    """
    directory = cache_dir() / "tokens" / _key(corpus, config)
    if not (directory / "manifest.json").exists():
        say(f"Tokenising {len(corpus.documents)} documents ...")
        with staged_directory(directory) as stage:
            _write_shards(corpus, config, stage)
    try:
        dataset = _read_shards(directory)
    except (SafetensorError, OSError, ValueError, KeyError):  # damaged: a cache can be made anew
        shutil.rmtree(directory)
        return prepare(corpus, config, say)
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
    """

    def __init__(self, ids: Tensor, block_size: int, batch_size: int, seed: int, order: str):
        self.ids, self.block_size, self.batch_size, self.seed, self.order = ids, block_size, batch_size, seed, order
        n = ids.numel()
        # Windows of an epoch. Shuffled leaves room for the offset; sequential uses every full window, and where
        # the text ends with the last window, its last token has no target.
        self.windows = n // block_size if order == "sequential" else max(1, n // block_size - 1)

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """(idx, targets) of a step, both (B, T) int64."""
        numbers = range(step * self.batch_size, (step + 1) * self.batch_size)
        rows = [self._window(*divmod(number, self.windows)) for number in numbers]
        idx, targets = zip(*rows, strict=True)
        return torch.stack(idx), torch.stack(targets)  # (B, T)

    def _window(self, epoch: int, number: int) -> tuple[Tensor, Tensor]:
        start = number * self.block_size
        if self.order == "shuffled":
            offset, permutation = _epoch(self.seed, epoch, self.windows, self.ids.numel() - 1, self.block_size)
            start = offset + int(permutation[number]) * self.block_size
        window = self.ids[start : start + self.block_size + 1].long()
        targets = torch.full((self.block_size,), IGNORE)
        targets[: window.numel() - 1] = window[1:]
        return window[: self.block_size], targets  # (T,), (T,)


@lru_cache(maxsize=2)
def _epoch(seed: int, epoch: int, windows: int, last: int, block_size: int) -> tuple[int, Tensor]:
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    slack = min(block_size, last - windows * block_size + 1)  # offsets that keep every window inside the text
    return int(torch.randint(max(1, slack), (), generator=generator)), torch.randperm(windows, generator=generator)


def split(text: str, config: TrainConfig) -> tuple[str, str, str]:
    """Training, validation and held-out part of one document, by characters."""
    end = len(text) - int(len(text) * config.holdout) if config.holdout < 1 else len(text)
    middle = end - int(len(text) * config.validation)
    return text[:middle], text[middle:end], text[end:]


def _key(corpus: Corpus, config: TrainConfig) -> str:
    facts = [FORMAT, config.tokenizer, config.holdout, config.validation, config.endoftext]
    facts += [document.sha256 for document in corpus.documents]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def _write_shards(corpus: Corpus, config: TrainConfig, directory: Path) -> None:
    tokenizer = vocabulary.build(config.tokenizer, (split(d.text, config)[0] for d in corpus.documents))
    tokenizer.save(directory)
    # Where training never sees <|endoftext|>, a newline is what a text can start after.
    bos = tokenizer.endoftext if config.endoftext else tokenizer.encode("\n")[0]
    parts = [_Writer(directory, name, tokenizer) for name in ("train", "validation", "holdout")]
    for document in corpus.documents:
        for part, (ids, n_bytes) in zip(parts, _parts_of(document, tokenizer, config), strict=True):
            if ids:
                # Training without <|endoftext|> has nothing in between; the scored parts always need a first token
                # to predict from.
                part.add([bos] if config.endoftext or part.name != "train" else [], ids, n_bytes)
    manifest = {"format": FORMAT, "bos": bos, "parts": {part.name: part.close() for part in parts}}
    (directory / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def _parts_of(document: Document, tokenizer: Tokenizer, config: TrainConfig) -> Iterable[tuple[list[int], int]]:
    if config.holdout < 1:
        for text in split(document.text, config):
            yield tokenizer.encode(text), len(text.encode("utf-8"))
        return
    ids = tokenizer.encode(document.text)
    end = max(0, len(ids) - int(config.holdout))
    middle = end - int(end * config.validation)
    for part in (ids[:middle], ids[middle:end], ids[end:]):
        yield part, sum(len(tokenizer.token_bytes(idx)) for idx in part)


class _Writer:
    """Collects the tokens of one part and writes them out shard by shard."""

    def __init__(self, directory: Path, name: str, tokenizer: Tokenizer):
        self.directory, self.name = directory, name
        # 16 bits hold every id of a small vocabulary and of GPT-2's own, at half the disk.
        self.dtype = torch.uint16 if tokenizer.vocab_size <= 2**16 else torch.int32
        self.buffer, self.shards, self.starts, self.bytes, self.n = array("i"), 0, [], 0, 0

    def add(self, separator: Sequence[int], ids: Sequence[int], n_bytes: int) -> None:
        if separator:
            self.starts.append(self.n)
        self.buffer.extend(separator)
        self.buffer.extend(ids)
        self.n += len(separator) + len(ids)
        self.bytes += n_bytes
        while len(self.buffer) >= SHARD_TOKENS:
            self._flush(SHARD_TOKENS)

    def close(self) -> dict:
        if self.buffer:
            self._flush(len(self.buffer))
        return {"shards": self.shards, "starts": self.starts, "bytes": self.bytes, "tokens": self.n}

    def _flush(self, n: int) -> None:
        ids = torch.tensor(self.buffer[:n], dtype=torch.int32).to(self.dtype)
        save_file({"ids": ids}, self.directory / f"{self.name}-{self.shards:05d}.safetensors")
        self.buffer = self.buffer[n:]
        self.shards += 1


def _read_shards(directory: Path) -> Dataset:
    manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))

    def part(name: str) -> Part:
        facts = manifest["parts"][name]
        shards = []
        for number in range(facts["shards"]):
            with safe_open(directory / f"{name}-{number:05d}.safetensors", framework="pt") as file:
                shards.append(file.get_tensor("ids"))  # mapped, not read: the disk gives what is asked for
        ids = torch.cat(shards) if len(shards) > 1 else (shards or [torch.empty(0, dtype=torch.int32)])[0]
        return Part(ids, tuple(facts["starts"]), facts["bytes"])

    tokenizer = Tokenizer.from_directory(directory)
    return Dataset(directory.name, tokenizer, manifest["bos"], part("train"), part("validation"), part("holdout"))
