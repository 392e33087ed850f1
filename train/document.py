"""A text that need not fit in memory: counted, checked and hashed once, then read piece by piece.

Knows files, gzip and UTF-8. Knows nothing of where texts come from, nor of tokens.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

CHUNK = 2**20  # bytes read at once
MAX_RATIO = 500  # of gzip: prose shrinks three- or fourfold, zeros and their like a thousandfold


class Document:
    """One text: its lines end in newlines, and it has no byte-order mark.

    Args:
        name: "hamlet", "my.txt", "poems/ode.txt"; published with the model, so never a whole path.
        source: the text itself, or the file that it is read from, now and again whenever it is asked for.
        rows: whether the file holds rows of a data set with "\\0" between them; elsewhere that is no text.
        on_read: told, during this first reading, how many bytes of the file came in.

    Attributes:
        characters: how many; bytes: how many in UTF-8; sha256: of those bytes; blank: whether it is white space only.

    Raises:
        OSError, ValueError: where the file can not be read, or is no UTF-8 text.
    """

    def __init__(
        self, name: str, source: str | Path, rows: bool = False, on_read: Callable[[int], object] = lambda n: None
    ):
        self.name, self._source, self._rows = name, source, rows
        digest, self.characters, self.bytes, self.blank = hashlib.sha256(), 0, 0, True
        for piece in self._read(on_read):
            data = piece.encode("utf-8")
            digest.update(data)
            self.characters += len(piece)
            self.bytes += len(data)
            self.blank = self.blank and piece.isspace()
        self.sha256 = digest.hexdigest()

    def pieces(self) -> Iterator[str]:
        """The text in pieces of about a megabyte; "\\0" in them stands between rows.

        Raises:
            ValueError: at the end, where the file is no longer what it was.
        """
        digest = hashlib.sha256()
        for piece in self._read():
            digest.update(piece.encode("utf-8"))
            yield piece
        if digest.hexdigest() != self.sha256:
            raise ValueError(f"{self._source} changed while it was being read: start again once it is whole.")

    @property
    def text(self) -> str:
        """All of it, in memory."""
        return "".join(self.pieces())

    def _read(self, on_read: Callable[[int], object] = lambda n: None) -> Iterator[str]:
        if isinstance(self._source, Path):
            return read_text(self._source, self._rows, on_read)
        return (self._source[start : start + CHUNK] for start in range(0, len(self._source), CHUNK))


def read_text(path: Path, rows: bool = False, on_read: Callable[[int], object] = lambda n: None) -> Iterator[str]:
    """The text of a file, unpacked where it ends in .gz, a piece at a time; the arguments are Document's."""
    # The BOM goes, and \r and \r\n become \n, also where a read ends between the two.
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8-sig")(), translate=True)
    offset = 0  # of the chunk, in what is unpacked
    for chunk in _chunks(path, on_read):
        if not rows and b"\0" in chunk:
            raise ValueError(
                f"{path} is not plain text (NUL byte at offset {offset + chunk.find(0)}): a binary file, or UTF-16; "
                "save it as UTF-8 text"
            )
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:  # its object is the chunk, with what was left over before it
            at = offset + len(chunk) - len(error.object) + error.start
            raise ValueError(
                f"{path} is not UTF-8 (byte 0x{error.object[error.start]:02x} at offset {at}): convert it, "
                f"for instance with iconv -f WINDOWS-1252 -t UTF-8 '{path}' > utf8.txt"
            ) from None
        offset += len(chunk)
        if text:
            yield text


def _chunks(path: Path, on_read: Callable[[int], object]) -> Iterator[bytes]:
    """The bytes of a file, unpacked; the last chunk is empty."""
    try:
        with path.open("rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix.lower() == ".gz" else raw
            unpacked, told, chunk = 0, 0, b"first"
            while chunk:
                chunk = file.read(CHUNK)
                unpacked += len(chunk)
                at = raw.tell() if raw.seekable() else unpacked
                if unpacked > 100 * CHUNK and unpacked > MAX_RATIO * at:
                    raise ValueError(f"{path} grows more than {MAX_RATIO}-fold when it is unpacked: that is no text")
                on_read(at - told)
                told = at
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged, or not a gzip file ({error}): pack it again") from None
    except OSError as error:
        raise unreadable(path, error, "check its name and permissions") from None


def unreadable(path: Path | str, error: OSError, way_out: str) -> OSError:
    """The error that says which file, and what to do about it."""
    return type(error)(f"cannot read {path} ({error.strerror}): {way_out}")


def progress(total: int | None, what: str, unit: str = "B") -> tqdm:
    """A bar on standard error, for bytes unless said otherwise; what is done within a second shows none, and none
    stays."""
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        unit_scale=True,
        leave=False,
        delay=1,
        dynamic_ncols=True,
        mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file needs no animation
    )
