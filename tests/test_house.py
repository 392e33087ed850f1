"""The house: who may import whom, what an import may do, how long it all may be."""

from __future__ import annotations

import ast
import graphlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 7280  # of code

# Top floor first. A module imports from its own floor or from those below; a file that is not yet written may have
# its place, one that has no place fails.
FLOORS = {
    "gpt2": [
        {"__main__", "__init__", "engine", "explain"},
        {"sampler", "checkpoint"},
        {"model", "tokenizer", "quantize", "overlap", "hub"},
        {"linear", "native"},
        {"cache", "config", "device", "dropout", "files", "patience", "prefixes"},
    ],
    "train": [
        {"__main__"},
        {"trainer", "setup", "learner", "export", "publish", "pusher", "upload", "space", "card", "gguf"}
        | {"evaluate"},
        {"dataset", "tokens", "vocabulary", "optimizer", "processes", "scoring", "memory", "state", "journal"}
        | {"tracking", "teachers", "augment", "headstart"},
        {"corpus", "plays", "document", "fetch", "config", "__init__"},
    ],
}
MAY_IMPORT = {"app": {"page", "gpt2"}, "page": {"gpt2"}, "train": {"gpt2"}, "gpt2": set()}
ONLY_IN = {"gradio": {"app", "page"}, "gradio_client": {"app", "page"}, "transformers": set()}

HOUSE = sorted([*ROOT.glob("app.py"), *(p for part in ("gpt2", "train", "page") for p in (ROOT / part).rglob("*.py"))])
EVERYTHING = HOUSE + sorted((ROOT / "tests").rglob("*.py"))


def name_of(path: Path) -> str:
    """gpt2/model.py -> gpt2.model; a package is its __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {name_of(path): path for path in HOUSE}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> set[str]:
    """Dotted names of all that a file imports, at its top or inside functions; ours in the form of name_of()."""
    found = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                is_module = f"{base}.{alias.name}" in MODULES or f"{base}.{alias.name}.__init__" in MODULES
                found.add(f"{base}.{alias.name}" if is_module else base)
    return {f"{name}.__init__" if f"{name}.__init__" in MODULES else name for name in found}


def upward(path: Path) -> list[str]:
    """What a file imports that its floor does not allow."""
    part, wrong = name_of(path).split(".")[0], []
    for name in sorted(imports(path)):
        top = name.split(".")[0]
        allowed = ONLY_IN.get(top)
        if allowed is not None and part not in allowed:
            wrong.append(name)
        elif top in MAY_IMPORT and top != part and top not in MAY_IMPORT[part]:
            wrong.append(name)
        elif top == part and part in FLOORS and floor(name) < floor(name_of(path)):
            wrong.append(name)
    return wrong


def floor(module: str) -> int:
    """Counted from the top."""
    part, name = module.split(".")[:2]
    return next((i for i, names in enumerate(FLOORS[part]) if name in names), -1)


def calls_that_guess_an_encoding(tree: ast.AST) -> list[int]:
    """Lines that open text in the machine's own encoding. Not text: os.open, tarfile.open and their like."""
    lines = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        is_method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if is_method else getattr(call.func, "id", "")
        owner = getattr(call.func.value, "id", "") if is_method else ""
        if name not in ("open", "read_text", "write_text") or owner in ("os", "tarfile", "gzip", "webbrowser", "Image"):
            continue
        is_path = is_method and owner != "io"
        mode_at, encoding_at = {"open": (0, 2) if is_path else (1, 3), "read_text": (99, 0), "write_text": (99, 1)}[
            name
        ]
        mode = call.args[mode_at] if len(call.args) > mode_at else None
        mode = next((keyword.value for keyword in call.keywords if keyword.arg == "mode"), mode)
        binary = isinstance(mode, ast.Constant) and "b" in mode.value
        named = len(call.args) > encoding_at or any(keyword.arg in ("encoding", None) for keyword in call.keywords)
        if not binary and not named:
            lines.append(call.lineno)
    return lines


@pytest.mark.parametrize("path", HOUSE, ids=name_of)
def test_every_file_has_its_floor(path):
    part = name_of(path).split(".")[0]
    if part in FLOORS:
        assert floor(name_of(path)) >= 0, f"{path.name} is new: give it a place in FLOORS and in the map"


def test_no_module_has_two_floors():
    for floors in FLOORS.values():
        assert sum(map(len, floors)) == len(set().union(*floors))


@pytest.mark.parametrize("path", HOUSE, ids=name_of)
def test_no_import_runs_upward(path):
    assert upward(path) == []


def test_there_is_no_circle():
    graph = {name: imports(path) & MODULES.keys() for name, path in MODULES.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("gpt2.model", "import gpt2", ["gpt2.__init__"]),
        ("gpt2.model", "from gpt2 import sampler", ["gpt2.sampler"]),
        ("gpt2.model", "from . import sampler", ["gpt2.sampler"]),
        ("gpt2.model", "from .sampler import generate", ["gpt2.sampler"]),
        ("gpt2.model", "def f():\n    import gpt2.checkpoint as c", ["gpt2.checkpoint"]),
        ("gpt2.sampler", "import train.config", ["train.config"]),
        ("gpt2.sampler", "if 1:\n    from gradio.themes import Base", ["gradio.themes"]),
        ("train.__main__", "import app", ["app"]),
        ("train.__main__", "import gradio", ["gradio"]),
        ("train.config", "from train import corpus\nimport gpt2", []),
        ("gpt2.__main__", "import gpt2\nfrom gpt2.device import DTYPES", []),
        ("gpt2.sampler", "import torch, json\nfrom gpt2.checkpoint import load", []),
    ],
)
def test_the_rule_sees_through_every_way_to_import(monkeypatch, module, line, found):
    path = ROOT / f"{module.replace('.', '/')}.py"
    monkeypatch.setitem(globals(), "parse", lambda _: ast.parse(line))
    assert upward(path) == found


@pytest.fixture(scope="module")
def seen_while_importing(run_python) -> dict[str, list[str]]:
    """Module -> what its import did that it should not have done; every module, one after the other, in a new
    process. What a third-party library does of itself is laid to who imports it first."""
    watch = """
import contextlib, importlib, io, json, random, signal, sys
import numpy, torch

done = []
names = ("socket.__new__", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system")
sys.addaudithook(lambda event, args: done.append(f"raised {event}") if event in names else None)

def state():
    return {
        "torch's random state": torch.get_rng_state().tolist(),
        "torch's seed": torch.initial_seed(),
        "Python's random state": random.getstate(),
        "numpy's random state": numpy.random.get_state()[1].tolist(),
        "CUDA": torch.cuda.is_initialized(),
        "the number of threads": torch.get_num_threads(),
        "the default dtype": torch.get_default_dtype(),
        "inference mode": torch.is_inference_mode_enabled(),
        "gradients": torch.is_grad_enabled(),
        "SIGINT and SIGTERM": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
    }

report = {}
for name in sys.argv[1:]:
    before, done[:] = state(), []
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        importlib.import_module(name)
    changed = [f"changed {key}" for key, value in state().items() if value != before[key]]
    said = [f"printed {printed.getvalue()!r}"] if printed.getvalue() else []
    report[name] = [*done, *changed, *said]
print(json.dumps(report))
"""
    names = [name.removesuffix(".__init__") for name in sorted(MODULES) if name.split(".")[0] in FLOORS]
    finished = run_python("-c", watch, *names)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return json.loads(finished.stdout)


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] in FLOORS))
def test_an_import_prints_nothing_reaches_nothing_and_sets_nothing(seen_while_importing, name):
    assert seen_while_importing[name.removesuffix(".__init__")] == []


def test_importing_gpt2_waits_for_no_library_that_a_local_checkpoint_does_not_need(run_python):
    code = "import sys, gpt2; print(*{'huggingface_hub', 'transformers', 'tokenizers', 'gradio'} & sys.modules.keys())"
    assert run_python("-c", code).stdout == "\n"


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_a_file_opens_by_saying_what_it_knows(path):
    assert ast.get_docstring(parse(path)), f"{path} has no docstring"


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring: what explains the code is asked for, and free."""
    tree, text = parse(path), path.read_text(encoding="utf-8").splitlines()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    free = {line for node in docstrings for line in range(node.lineno, node.end_lineno + 1)}
    return sum(bool(line.split("#")[0].strip()) and number not in free for number, line in enumerate(text, start=1))


def test_the_house_stays_small():
    lines = {name_of(path): lines_of_code(path) for path in HOUSE}
    assert sum(lines.values()) < MAX_LINES, sorted(lines.items(), key=lambda item: -item[1])


@pytest.mark.parametrize("path", HOUSE, ids=name_of)
def test_nothing_is_read_that_could_be_a_program(path):
    """SECURITY.md says so of PyTorch's open advisories: they are all of ways to read such files."""
    nodes = list(ast.walk(parse(path)))
    names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Name | ast.Attribute)} | imports(path)
    assert not names & {"torch.load", "torch.jit.load", "torch.export.load", "torch.package", "eval", "exec"}
    assert not {name.split(".")[0] for name in names} & {"pickle", "marshal", "shelve"}


@pytest.mark.parametrize("path", EVERYTHING, ids=name_of)
def test_text_is_opened_in_a_named_encoding(path):
    assert calls_that_guess_an_encoding(parse(path)) == []


@pytest.mark.parametrize(
    ("line", "guesses"),
    [
        ("open(p)", True),
        ("open(p, 'w')", True),
        ("open(p, mode='a')", True),
        ("p.open()", True),
        ("p.open('w')", True),
        ("io.open(p, 'r')", True),
        ("Path(p).read_text()", True),
        ("p.write_text(text)", True),
        ("p.write_text('b')", True),
        ("open(p, 'rb')", False),
        ("p.open('wb')", False),
        ("p.open(mode='rb')", False),
        ("open(p, encoding='utf-8')", False),
        ("p.write_text(text, encoding='utf-8')", False),
        ("p.write_text(text, 'utf-8')", False),
        ("p.read_text('utf-8')", False),
        ("os.open(p, os.O_RDONLY)", False),
        ("p.read_bytes()", False),
    ],
)
def test_the_rule_knows_text_from_bytes(line, guesses):
    assert bool(calls_that_guess_an_encoding(ast.parse(line))) is guesses
