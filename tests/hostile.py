"""Checkpoint files as an enemy, or a broken disk, would leave them, and what must hold whoever wrote them.

KINDS has one entry for every kind of file that is read: how to spoil it (a hypothesis strategy), and who reads it. A
Trial lays a spoiled file into an otherwise good checkpoint, has it read, and raises Broken unless the reader either
took it or refused it with its own error in one printable sentence; without a file opened outside the directory or for
writing, anything run, or memory taken that the files on the disk do not account for. For test_fuzz.py and
bench/fuzz.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import torch
from hypothesis import strategies as st
from safetensors.torch import save_file

import gpt2
from gpt2 import overlap
from gpt2.files import WEIGHTS, CheckpointError, read_json
from page import served, training
from tests.page.visit import INJECTIONS

MEMORY = 256 * 2**20  # bytes that a case may take; its files have some kB
LONGEST = 700  # characters of a refusal, with the path of a file in it twice
TEXT = "The hand \N{GRINNING FACE} and\n\n  the  land's 1,234 \x00 <|endoftext|>"
SECRET = "hunter2-the-secret-of-another-file"


class Broken(AssertionError):
    """What must not happen."""


class Exploit:
    """As a pickle, it would leave a trace of having run."""

    def __reduce__(self):
        return os.system, ("touch /tmp/a-pickle-was-run",)


# How files are spoiled


ODD = [
    *(None, True, 0, -1, 1, 1.5, 2**31, 2**53 + 1, 2**63, 10**30, 1e308, -1e308, 5e-324, float("nan"), float("inf")),
    *("", "\x00", "\ud800", "\x1b[2J\r\n", "../../../etc/passwd", "/etc/passwd", "A" * 5000, "1" * 40, INJECTIONS),
    *([], {}, [[]], {"": {"": []}}, ["the", "hand"]),
]
DEEP = [b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900, b'{"a":' * 300 + b"1" + b"}" * 300, b"1" * 5000]
FOREIGN = [
    b"",
    b"\xef\xbb\xbf{}",
    b"\xff\xfe{\x00}\x00",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 2\n",
    pickle.dumps(Exploit()),
    b"PK\x03\x04" + bytes(100),
    b"\x89PNG\r\n\x1a\n",
    b"<html><body>404</body></html>",
    b"\r\n" * 50,
    bytes(64),
]
odd = st.sampled_from(ODD).map(deepcopy)  # an edit may change the empty list that an earlier one put there
scalars = st.one_of(odd, odd, odd, st.integers(), st.floats(), st.text(max_size=12), st.integers(-3, 40))
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=6), v, max_size=3), max_leaves=5
)


def as_bytes(record: Any, escaped: bool = False) -> bytes:
    return json.dumps(record, ensure_ascii=escaped).encode("utf-8", "surrogatepass")


@st.composite
def edited(draw, record: Any, most: int = 3) -> Any:
    """A JSON value with up to `most` places changed, removed, added or exchanged."""
    record = deepcopy(record)
    for _ in range(draw(st.integers(1, most))):
        node = record
        while isinstance(node, (dict, list)) and node:
            keys = list(node) if isinstance(node, dict) else range(len(node))
            key = draw(st.sampled_from(keys))
            child = node[key]
            if isinstance(child, (dict, list)) and child and draw(st.integers(0, 3)):
                node = child
                continue
            change = draw(st.sampled_from(["replace", "replace", "remove", "add", "exchange"]))
            if change == "replace":
                node[key] = draw(values)
            elif change == "remove":
                del node[key]
            elif change == "exchange":
                other = draw(st.sampled_from(keys))
                node[key], node[other] = node[other], node[key]
            elif isinstance(node, dict):
                node[draw(st.sampled_from(["<|endoftext|>", "../x", "\x1b]0;x\x07", "__class__"]) | st.text())] = child
            else:
                node.insert(key, draw(values))
            break
    return record


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """Bytes with a few of them changed, or a part cut out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        much = draw(st.integers(1, 64))
        change = draw(st.sampled_from(["overwrite", "insert", "cut out", "double", "cut off"]))
        if change == "overwrite":
            content[at : at + much] = draw(st.binary(min_size=1, max_size=8))
        elif change == "insert":
            content[at:at] = draw(
                st.binary(max_size=8) | st.sampled_from([b'"', b"\n", b"\\ud800", b"1e999", b"[", b"{"])
            )
        elif change == "cut out":
            del content[at : at + much]
        elif change == "double":
            content[at:at] = content[at : at + much]
        else:
            del content[at:]
    return bytes(content)


def json_file(record: Any) -> st.SearchStrategy[bytes]:
    whole = as_bytes(record)
    spoiled = st.builds(as_bytes, edited(record) | edited(record) | values, st.booleans())
    return st.one_of(spoiled, spoiled, damaged(whole), st.binary(max_size=64), st.sampled_from(DEEP + FOREIGN))


def lines_file(entries: list[dict]) -> st.SearchStrategy[bytes]:
    line = st.one_of(
        st.builds(as_bytes, st.one_of(*[edited(entry) for entry in entries]), st.booleans()),
        st.builds(
            lambda entry, key, value: as_bytes(entry | {key: value}, escaped=True),
            st.sampled_from(entries),
            st.sampled_from(sorted({*entries[0], *entries[-1]})),
            odd,
        ),
        st.builds(as_bytes, st.sampled_from(entries)),
        st.builds(as_bytes, values),
        st.binary(max_size=16),
    )
    joined = st.lists(line, max_size=8).map(b"\n".join)
    whole = b"\n".join(map(as_bytes, entries))
    return st.one_of(joined, joined, damaged(whole), st.sampled_from(DEEP + FOREIGN))


@st.composite
def tensors_file(draw, content: bytes) -> bytes:
    """A safetensors file whose header lies, or which is damaged, or is something else."""
    size = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    how = draw(st.sampled_from(["header", "header", "header", "names", "damage", "length", "foreign"]))
    if how == "foreign":
        return draw(st.sampled_from(DEEP + FOREIGN) | st.binary(max_size=64))
    if how == "damage":
        return draw(damaged(content[: 8 + size])) + body if draw(st.booleans()) else draw(damaged(content))
    if how == "names":
        name = draw(st.sampled_from(sorted(header)))
        name_of = st.sampled_from([
            "../../x",
            "/etc/passwd",
            "lm_head.weight",
            "module.module.x",
            "\x1b[31m\n",
            "a" * 5000,
        ])
        header[draw(name_of | st.text(max_size=20))] = header[name] if draw(st.booleans()) else header.pop(name)
    elif how == "header":
        header = draw(edited(header))
    text = as_bytes(header, draw(st.booleans()))
    text += b" " * (-len(text) % 8)
    length = len(text) if how != "length" else draw(st.sampled_from([0, 1, 2**20, 10**8, 2**32, 2**63, 2**64 - 1]))
    return struct.pack("<Q", length) + text + body


@st.composite
def merges_file(draw, content: str) -> bytes:
    lines = content.split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        wrong = ["", " ", "t  h", "t h e", "th e", "\x00 \x00", "\ud800 a", "t h\r", "\u0120 t", "A" * 5000]
        new = st.sampled_from(wrong + lines)
        lines[at : at + draw(st.integers(0, 2))] = draw(st.lists(new, max_size=2))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# Who reads them


def open_checkpoint(directory: Path) -> None:
    """Load it, split a text and write two tokens."""
    model, tokenizer = gpt2.load(directory, device="cpu", dtype="float32")
    if tokenizer.decode(tokenizer.encode(TEXT)) != TEXT:
        raise Broken("a tokenizer that was accepted loses text")
    try:
        "".join(gpt2.generate(model, tokenizer, TEXT, gpt2.SamplingParams(max_new_tokens=2, seed=1)))
    except ValueError as error:  # weights may be numbers that no text can be written with
        raise CheckpointError(str(error)) from error


class _Tags(HTMLParser):
    def handle_starttag(self, tag, attrs):
        allowed = {"tr", "th", "td", "table", "details", "summary", "ul", "li", "figure", "figcaption", "div", "svg"}
        if tag not in allowed | {"line", "polyline", "span", "b", "p", "a"}:
            raise Broken(f"a text became the tag {tag}")
        for name, value in attrs:
            if name.startswith("on") or (name == "href" and not (value or "").startswith("https://")):
                raise Broken(f"a text became the attribute {name}={value}")


def open_history(directory: Path) -> None:
    """All that the page makes of what a run left beside its weights, as it goes to a browser."""
    record = None
    with contextlib.suppress(ValueError, OSError):
        record = read_json(directory / "training.json")
    here = served.Served(MODEL, TOKENIZER, "tiny", None, served.provenance(directory), directory)
    shown = [training.curves(directory, record), training.provenance_card(here, record)]
    for text in filter(None, shown):
        _Tags().feed(text)
    samples = [(prompt, list(texts.items())) for prompt, texts in training.samples(directory).items()]
    orjson.dumps([*shown, here.training, samples, served.examples(directory)])  # as Gradio does


def open_overlap(directory: Path) -> None:
    known = gpt2.Overlap.from_directory(directory)
    if known is not None:
        known.spans(TEXT), known.share(TEXT), known.saw(5)


def make_checkpoint(directory: Path) -> None:
    """A whole checkpoint of some kB, with everything that a run leaves in it."""
    gpt2.save(directory, MODEL, TOKENIZER, **TRAINING)
    for name, entries in {"metrics.jsonl": METRICS, "samples.jsonl": SAMPLES}.items():
        (directory / name).write_bytes(b"\n".join(map(as_bytes, entries)))
    (directory / "README.md").write_text(CARD, encoding="utf-8", newline="\n")
    save_file(overlap.build(["a b c d e f g h i j k l m n"], torch.ones(5, dtype=torch.bool)), directory / overlap.FILE)


TOKENIZER = gpt2.Tokenizer([(b"t", b"h"), (b"th", b"e"), (b"a", b"n"), (b"an", b"d"), (b" ", b"the")])
MODEL = gpt2.GPT(gpt2.GPTConfig(block_size=8, vocab_size=TOKENIZER.vocab_size, n_layer=1, n_head=1, n_embd=4), 1)
MODEL = MODEL.init_weights(torch.Generator().manual_seed(0)).eval().requires_grad_(False)
TRAINING = {
    "corpus": {"name": "plays", "origin": "https://example.org"},
    "figures": {"held_out_bits_per_byte": 2.5, "validation_bits_per_byte": 2.4},
    "data": [{"name": "a.txt", "sha256": "0123abcd"}],
    "steps": 200,
    "seconds": 12.5,
    "tokens_seen": 5000,
    "parts": {"train": {"tokens": 100, "bytes": 300}},
    "memorisation": {
        "copied": {"generated": 0.1, "held_out": 0.2},
        "extraction": {"train": {"prompts": 200, "recited": 3}},
    },
    "hardware": "a machine",
    "precision": "float32",
    "command": "python -m train",
    "versions": {"python": "3.11", "torch": "2.13"},
}
METRICS = [{"step": i, "loss": 6 - i / 100, "seconds": 1.0} for i in (0, 10, 20)]
METRICS += [{"step": i, "validation_bits_per_byte": 3.0, "validation_bits_per_byte_ema": 2.9} for i in (0, 20)]
SAMPLES = [{"step": i, "prompt": prompt, "seed": 1, "text": "the land"} for i in (0, 10) for prompt in ("", "A")]
CARD = "---\nlicense: mit\nwidget:\n- text: 'ROMEO:'\n- text: |\n    two\n    lines\n---\n# A card\n"
YAML = [
    "2001-99-99",
    "!!int x",
    "!!timestamp x",
    "!!float x",
    "!!binary x",
    "!!python/name:os.system",
    "&a [*a]",
    "<<: x",
]


@dataclass(frozen=True)
class Kind:
    """One kind of file: how it is spoiled, name -> bytes, None (it is not there) or a Path (a link leads there)."""

    spoiled: Callable[[Path], st.SearchStrategy[dict[str, bytes | Path | None]]]  # of a good checkpoint
    read: Callable[[Path], None]
    error: type[Exception] | tuple = CheckpointError


def only(name: str, make: Callable[[bytes], st.SearchStrategy[bytes]], **beside: None) -> Callable:
    """A Kind's spoiled for one file, those in `beside` not being there."""
    return lambda good: make((good / name).read_bytes()).map(lambda content: {name: content, **beside})


def parsed(make: Callable[[Any], st.SearchStrategy[bytes]]) -> Callable[[bytes], st.SearchStrategy[bytes]]:
    return lambda content: make(json.loads(content))


def card_file(content: bytes) -> st.SearchStrategy[bytes]:
    wrong = st.sampled_from(YAML).map(lambda text: CARD.replace("'ROMEO:'", text).encode())
    return st.one_of(wrong, damaged(content), damaged(content), st.sampled_from(DEEP + FOREIGN))


def links(good: Path) -> st.SearchStrategy[dict]:
    """A file that is a link: to a good one elsewhere, to a stranger's, to a directory, a device, itself, nowhere."""
    elsewhere = good.with_name("elsewhere")
    names = sorted(path.name for path in good.iterdir())

    def targets(name: str) -> list[Path]:
        outside = [elsewhere / name, Path("..", "elsewhere", name), elsewhere / "secret", Path("/etc/passwd")]
        return [*outside, Path("/dev/zero"), Path("/proc/self/environ"), Path(name), Path("gone"), Path("/"), Path(".")]

    return st.sampled_from(names).flatmap(
        lambda name: st.sampled_from(targets(name)).map(lambda target: {name: target})
    )


def read_all(directory: Path) -> None:
    open_history(directory)
    with contextlib.suppress(ValueError):
        open_overlap(directory)
    open_checkpoint(directory)


KINDS = {
    "config.json": Kind(only("config.json", parsed(json_file)), open_checkpoint),
    WEIGHTS: Kind(only(WEIGHTS, tensors_file), open_checkpoint),
    "vocab.json": Kind(only("vocab.json", parsed(json_file)), open_checkpoint),
    "merges.txt": Kind(
        only("merges.txt", lambda content: st.one_of(merges_file(content.decode()), damaged(content))), open_checkpoint
    ),
    "tokenizer.json": Kind(
        only("tokenizer.json", parsed(json_file), **{"vocab.json": None, "merges.txt": None}), open_checkpoint
    ),
    "training.json": Kind(only("training.json", parsed(json_file)), open_history, ()),
    "metrics.jsonl": Kind(only("metrics.jsonl", lambda _: lines_file(METRICS)), open_history, ()),
    "samples.jsonl": Kind(only("samples.jsonl", lambda _: lines_file(SAMPLES)), open_history, ()),
    overlap.FILE: Kind(only(overlap.FILE, tensors_file), open_overlap, ValueError),
    "README.md": Kind(only("README.md", card_file), open_history, ()),
    "a link": Kind(links, read_all),
}


# What must hold


_ALLOWED = tuple(str(Path(path).resolve()) for path in {sys.prefix, sys.base_prefix}) + ("/proc/", "/sys/", "/dev/null")
_FORBIDDEN = {"exec", "compile", "import", "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn"}
_FORBIDDEN |= {"pickle.find_class", "socket.connect", "socket.getaddrinfo", "socket.__new__", "ctypes.dlopen"}
_FORBIDDEN |= {"os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "shutil.rmtree"}
_watched: list[tuple[str, list[str]]] = []  # (directory, what was seen), while somebody watches


def _audit(event: str, args: tuple) -> None:
    if not _watched:
        return
    directory, seen = _watched[-1]
    if event == "open" and isinstance(args[0], (str, bytes)):
        path, flags = os.fsdecode(args[0]), args[2] or 0
        if isinstance(args[1], str) and set(args[1]) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            seen.append(f"opened {path} for writing")
        elif not (real := os.path.realpath(path)).startswith(directory) and not real.startswith(_ALLOWED):
            seen.append(f"opened {path}")
        elif path.startswith(directory) and not real.startswith(directory):  # through a link, to a place allowed above
            seen.append(f"opened {path}, which leads to {real}")
    elif event in _FORBIDDEN:
        seen.append(f"{event} {str(args)[:200]}")


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[list[str]]:
    """What is done, while this lasts, that no reader of files has to do."""
    if _audit not in _HOOKED:
        sys.addaudithook(_audit)  # for good: a hook can not be removed
        _HOOKED.append(_audit)
    seen: list[str] = []
    _watched.append((f"{directory.resolve()}{os.sep}", seen))
    try:
        yield seen
    finally:
        _watched.pop()


_HOOKED: list[Callable] = []


@contextlib.contextmanager
def little_memory(much: int = MEMORY) -> Iterator[None]:
    """What this process may take beyond what it has; on Linux."""
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + much, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@dataclass
class Trial:
    """A good checkpoint in `folder`, spoiled by each case and mended after it."""

    folder: Path
    good: Path = field(init=False)
    directory: Path = field(init=False)
    slowest: float = 0.0  # seconds of a case

    def __post_init__(self):
        self.good, self.directory = self.folder / "good", self.folder / "tried"
        make_checkpoint(self.good)
        elsewhere = Path(shutil.copytree(self.good, self.folder / "elsewhere"))
        (elsewhere / "secret").write_text(f"{SECRET}\n", encoding="utf-8")
        shutil.copytree(self.good, self.directory)
        read_all(self.directory)  # imports what is imported late, and sees that it is good

    def run(self, kind: Kind, spoiled: dict[str, bytes | Path | None]) -> str:
        """ "opened" or "refused".

        Raises:
            Broken: for anything else.
        """
        for name, content in spoiled.items():
            path = self.directory / name
            path.unlink(missing_ok=True)
            if isinstance(content, Path):
                path.symlink_to(content)
            elif content is not None:
                path.write_bytes(content)
        started, outcome = time.perf_counter(), "opened"
        try:
            with watched(self.directory) as seen, little_memory():
                kind.read(self.directory)
        except kind.error as error:
            outcome = "refused"
            self._check(str(error))
        except Broken:
            raise
        except BaseException as error:  # tiktoken's panic is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            raise Broken(f"{type(error).__name__}: {str(error)[:300]}") from error
        finally:
            self.slowest = max(self.slowest, time.perf_counter() - started)
            for name in spoiled:
                (self.directory / name).unlink(missing_ok=True)
                shutil.copyfile(self.good / name, self.directory / name)
        if seen:
            raise Broken("; ".join(seen[:5]))
        return outcome

    def _check(self, sentence: str) -> None:
        if len(sentence) > LONGEST or not sentence.isprintable():
            raise Broken(f"no sentence for a terminal, {len(sentence):,} characters: {sentence[:300]!r}")
        if SECRET in sentence or "root:" in sentence:
            raise Broken(f"tells what stands in another file: {sentence[:300]!r}")
