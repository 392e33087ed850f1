"""What must survive a kill: files that are whole or not there, and the states a run resumes from.

Everything is written under a temporary name, flushed to the disk, then renamed. A state is one safetensors file,
complete in itself: tensors, and the facts beside them as JSON in its header. Knows nothing of what they mean.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.checkpoint import write_tensors

KEPT_STATES = 2  # the newest, and the one before it in case a disk loses the newest
LOCK = ".lock"  # in a run's directory: held by the process that writes there, let go by its end, whatever that is


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """A temporary path to write; when the block ends without an error the file takes the place of path."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """A fresh directory to fill; when the block ends without an error it takes the place of path, as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent))
    try:
        stage.chmod(0o755)
        yield stage
        for file in stage.rglob("*"):
            flush(file)
        old = path.with_name(f".{path.name}-{os.getpid()}-old.tmp")
        if path.exists():
            os.rename(path, old)  # a directory can not be renamed over a full one
        os.rename(stage, path)
        flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step."""
    with staged_file(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def only_writer(directory: Path) -> Iterator[None]:
    """No other training writes to the directory for as long as the block lasts.

    Raises:
        ValueError: where one does.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Not by a mark instead, where a disk has no locks: it would outlive a process that is killed.
    lock = FileLock(directory / LOCK, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another training is writing to {directory}: let it end, stop it, or choose another --name."
        ) from None
    except (NotImplementedError, OSError):
        pass  # a disk without locks can still be written to, and one that can not will say so
    try:
        yield
    finally:
        lock.release()


def sweep(directory: Path) -> None:
    """Remove what a kill left under temporary names."""
    for path in directory.glob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def save_state(directory: Path, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write directory/STEP.safetensors and remove all but the newest KEPT_STATES."""
    directory.mkdir(parents=True, exist_ok=True)
    with staged_file(directory / f"{step:06d}.safetensors") as temporary:
        write_tensors(tensors, temporary, {"facts": json.dumps(facts)})
    for old in states(directory)[KEPT_STATES:]:
        old.unlink()


def load_state(directory: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """(tensors, facts) of the newest state that is whole; None where there is none."""
    for path in states(directory):
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118 (not a dict)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            continue
    return None


def load_facts(directory: Path) -> dict[str, Any] | None:
    """The facts of the newest state that can be opened, without its tensors; None where there is none."""
    for path in states(directory):
        try:
            with safe_open(path, framework="pt") as file:
                return json.loads(file.metadata()["facts"])
        except (SafetensorError, OSError, ValueError, KeyError, TypeError):
            continue
    return None


def states(directory: Path) -> list[Path]:
    """The states in a directory, newest first."""
    found = [path for path in directory.glob("*.safetensors") if path.stem.isdigit()]
    return sorted(found, key=lambda path: int(path.stem), reverse=True)


def flush(path: Path) -> None:
    """Make sure that a file, or the names in a directory, would survive a power cut."""
    if os.name == "nt" and path.is_dir():
        return  # Windows can not open a directory
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)  # Windows flushes what it may write
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
