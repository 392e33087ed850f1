"""Texts that come over the network, fetched once and then kept: tiny Shakespeare, data sets of the Hugging Face Hub.

Knows the cache, and what can go wrong on the way to it. Knows nothing of what the texts are for.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from train.document import Document, progress, unreadable

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def cache_dir() -> Path:
    """Where what can be had again is kept: downloads, tokens; created by the first of them."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpt2-from-scratch")


def sweep(directory: Path) -> None:
    """Remove what processes that died left under temporary names; for a day it may be another's work."""
    for path in directory.glob(".*.tmp"):
        with contextlib.suppress(OSError):  # another may sweep, too
            if time.time() - max(os.path.getmtime(file) for file in (path, *path.glob("*"))) > 24 * 3600:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[BinaryIO]:
    """A file under a temporary name; when the block ends without an error it takes the place of path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the name without the text
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- tiny Shakespeare


def tinyshakespeare() -> Document:
    """The file that TINYSHAKESPEARE names, else the cached one, else a download; the same bytes always."""
    instead = "set TINYSHAKESPEARE to a copy of the file, or use --corpus plays, or a text file of your own"
    named, cached = os.environ.get("TINYSHAKESPEARE"), cache_dir() / "tinyshakespeare.txt"
    downloaded = False
    if named:
        source, way_out = named, "correct TINYSHAKESPEARE, or unset it"
        data = _bytes(Path(named), way_out)
    elif os.path.lexists(cached):
        source, way_out = cached, "delete it, and it is downloaded again"
        data = _bytes(cached, way_out)
    else:
        source, way_out, downloaded = TINY_URL, instead, True
        data = _download(TINY_URL, way_out)
    digest = hashlib.sha256(data).hexdigest()
    if digest != TINY_SHA256:
        found = f"{len(data):,} bytes, sha256 {digest[:8]}..."
        raise ValueError(f"{source} is not tiny Shakespeare ({found}): {way_out}")
    if downloaded:
        # A cache that can not be written costs the next run a download.
        with contextlib.suppress(OSError), _staged(cached) as file:
            file.write(data)
    return Document("tinyshakespeare", data.decode("utf-8"))


def _bytes(path: Path, way_out: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error, way_out) from None


def _download(url: str, way_out: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.read(4_000_000)  # nearly four times the right file; the checksum judges the rest
    except (OSError, http.client.HTTPException) as error:
        reason = str(error).strip("<>")
        raise FileNotFoundError(f"no tiny Shakespeare here and {url} failed ({reason}): {way_out}") from None


# ---- data sets of the Hub


def hub_names(corpus: str) -> tuple[str, str]:
    """(repository, column) of "hf:REPO[:COLUMN]".

    Raises:
        ValueError: where REPO can be no name on the Hub.
    """
    repo, _, column = corpus.removeprefix("hf:").partition(":")
    parts = repo.split("/")
    # The Hub's own rule.
    named = all(re.fullmatch(r"\w|\w[\w.-]{,94}\w", part, re.ASCII) for part in parts) and len(parts) <= 2
    if not named or re.search(r"--|\.\.", repo):
        raise ValueError(f"--corpus {corpus} names no data set of the Hub: it is hf:OWNER/NAME or hf:OWNER/NAME:COLUMN")
    return repo, column or "text"


def hub_dataset(repo: str, column: str, say: Callable[[str], None]) -> Document:
    """A column of a data set, its rows apart; fetched once, and from then on read from the disk.

    Raises:
        OSError, ValueError: where it can not be had, with the way out.
    """
    path = cache_dir() / "hf" / f"{repo.replace('/', '--')}--{quote(column, safe='')}.txt"
    if path.exists():
        say(f"Reading {repo} from {path}; delete that file to fetch it anew.")
    else:
        if os.path.lexists(repo):  # the library would read that, in place of the Hub's
            raise ValueError(f"{repo} is a file or folder here: train on it without --corpus, or start from elsewhere")
        say(f"Fetching the column {column!r} of {repo} from the Hugging Face Hub ...")
        _write_rows(_hub_rows(repo), repo, column, path)
    with progress(path.stat().st_size, "Reading") as bar:
        return Document(repo, path, rows=True, on_read=bar.update)


def _hub_rows(repo: str) -> Iterator[dict]:
    """The rows of a data set's training split, as they come in."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise FileNotFoundError("data sets of the Hub need the package datasets: pip install datasets") from None
    try:
        yield from load_dataset(repo, split="train", streaming=True)
    except Exception as error:  # the library, and the many below it, raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(
            f"{repo} could not be had from the Hugging Face Hub ({reason}): check the name, the network and, for a "
            "private one, HF_TOKEN"
        ) from None


def _write_rows(rows: Iterator[dict], repo: str, column: str, path: Path) -> None:
    """Put the texts of a column into a file, "\\0" between them."""
    with _staged(path) as file, progress(None, f"Fetching {repo}") as bar:
        for row in rows:
            if column not in row:
                raise ValueError(
                    f"{repo} has no column {column!r} but {', '.join(row)}: choose one by hf:{repo}:COLUMN"
                )
            text = row[column]
            if isinstance(text, str) and text.strip():
                data = text.replace("\0", "").encode("utf-8", "replace")
                bar.update(file.write(b"\0" + data if file.tell() else data))
        if not file.tell():
            raise ValueError(f"the column {column!r} of {repo} holds no text: choose another by hf:{repo}:COLUMN")
