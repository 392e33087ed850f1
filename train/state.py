"""What must survive a kill: files and directories that are whole or not there.

Everything is written under a temporary name, flushed to the disk, then renamed. Knows nothing of what is written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_file(path: Path, content: str | bytes) -> None:
    """Replace a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    _flush(temporary)
    os.replace(temporary, path)


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """A fresh directory to fill; when the block ends without an error it takes the place of path, as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        stage.chmod(0o755)
        yield stage
        for file in stage.rglob("*"):
            _flush(file)
        old = path.with_name(f".{path.name}-old-{os.getpid()}")
        if path.exists():
            os.rename(path, old)  # a directory can not be renamed over a full one
        os.rename(stage, path)
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _flush(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows can not open a directory
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
