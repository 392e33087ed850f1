"""gpt2/hub.py against the Hub of tests/hub_server.py: what is fetched, what is refused, and how long a Hub may say
nothing.

Most tests talk to it in this process, whose client is turned to it; those that leave threads
behind for long use another.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

import gpt2
from gpt2 import hub as loading
from gpt2 import patience
from gpt2.files import WEIGHTS
from gpt2.hub import ESSENTIAL, WELCOME
from tests.conftest import ROOT
from tests.hub_server import HubServer, Repo

LARGE = "/ada/x/[0-9a-f]{64}"  # a large file's address, below the store's own
INFO = "/api/models/ada/x"


@pytest.fixture
def repo(hub, tiny_checkpoint) -> Repo:
    """ada/x on the Hub: tiny_checkpoint, tagged v1."""
    repo = hub.repo("ada/x")
    repo.commit({path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()})
    repo.tags["v1"] = repo.head
    hub.add_token("hf_w", "ada", "write")
    hub.add_token("hf_other", "bob", "write")
    return repo


@pytest.fixture
def cache(hub, repo, tmp_path, monkeypatch) -> Iterator[Path]:
    """This process, turned to the hub, with an empty cache."""
    url = hub.url
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    settings = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(tmp_path / "hub")}
    settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_TOKEN_PATH": str(tmp_path / "token")}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    for name, value in hub.env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    huggingface_hub.close_session()
    yield tmp_path / "hub"
    for thread in threading.enumerate():  # left behind by a failed fetch: they share the client with the next test
        if isinstance(thread, patience._Worker):
            thread.join(30)
    huggingface_hub.close_session()


def refusal(source: str = "ada/x") -> str:
    """The sentence with which find() refuses."""
    with pytest.raises(gpt2.CheckpointError) as error:
        gpt2.find(source)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 500
    return sentence


def fetched(hub: HubServer) -> list[str]:
    """The files that were asked for since the last call."""
    names = [path.partition("?")[0].rpartition("/")[2] for _, path, *_ in hub.requests if "/resolve/" in path]
    hub.requests.clear()
    return sorted(names)


# What is fetched


def test_a_hub_id_is_fetched_and_its_commit_known(cache, repo, tiny_model):
    found = gpt2.find("ada/x")
    assert (found.name, found.sha, found.directory.name) == ("ada/x", repo.head, repo.head)
    model, _ = gpt2.load("ada/x")
    assert all(a.equal(b) for a, b in zip(model.parameters(), tiny_model.parameters(), strict=True))


def test_a_revision_is_a_branch_a_tag_or_a_commit(cache, repo, monkeypatch):
    v1 = repo.head
    repo.branches["dev"] = v1
    dev = repo.commit({"training.json": b"{}"}, branch="dev")
    main = repo.commit({"training.json": b"[]"})
    expected = {"ada/x": main, "ada/x@main": main, "ada/x@v1": v1, "ada/x@dev": dev, f"ada/x@{v1}": v1}
    assert {name: gpt2.find(name).sha for name in expected} == expected
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert {name: gpt2.find(name).sha for name in expected} == expected
    assert gpt2.find("ada/x@dev").directory.joinpath("training.json").read_bytes() == b"{}"


def test_only_what_is_read_is_fetched(cache, hub, repo):
    repo.commit({"pytorch_model.bin": b"a pickle", "code.py": b"print()", "loss.png": b"\x89", "README.md": b"# x"})
    there = {path.name for path in gpt2.find("ada/x").directory.iterdir()}
    assert there == set(fetched(hub)) == (ESSENTIAL.keys() | WELCOME.keys()) & repo.files().keys()


def test_what_is_in_the_cache_is_not_fetched_again(cache, hub, repo):
    gpt2.find("ada/x")
    fetched(hub)
    gpt2.find("ada/x")
    assert [path for _, path, *_ in hub.requests] == [INFO + "?blobs=true"]
    repo.commit({"training.json": b"{}"})
    gpt2.find("ada/x")
    assert sum(method == "GET" and "resolve-cache" in path for method, path, *_ in hub.requests) == 1


def test_a_hub_id_writes_what_the_directory_writes(run_python, hub, repo, tiny_checkpoint, tmp_path):
    ask = ("-m", "gpt2", "the ", "--max-new-tokens", "12", "--seed", "3", "--checkpoint")
    here, there = (run_python(*ask, name, **hub.env(None, tmp_path)) for name in (str(tiny_checkpoint), "ada/x@v1"))
    assert there.stdout == here.stdout != ""
    assert there.stderr.splitlines()[0] == f"[ada/x@v1, commit {repo.head[:8]}]"
    assert "error" not in there.stderr and "Traceback" not in there.stderr


# What is refused, before anything is fetched


@pytest.mark.parametrize(
    ("there", "sentence"),
    [
        (["config.json", "pytorch_model.bin"], "only a pickle, which could run any code and is never opened"),
        (["config.json", f"{WEIGHTS}.index.json"], "it is cut into shards"),
        (["README.md"], f"has no {WEIGHTS}"),
        ([WEIGHTS, "vocab.json", "merges.txt"], "has no config.json"),
        ([WEIGHTS, "config.json", "vocab.json", "spiece.model"], "only byte-level BPE"),
    ],
)
def test_a_repository_that_is_no_checkpoint_is_refused_unfetched(cache, hub, there, sentence):
    hub.repo("ada/y").commit({name: b"{}" for name in there})
    assert sentence in refusal("ada/y")
    assert refusal("ada/y").startswith("ada/y on the Hub has")
    assert fetched(hub) == []


@pytest.mark.parametrize("name", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_file_too_large_is_refused_unfetched(cache, hub, monkeypatch, name):
    monkeypatch.setitem(ESSENTIAL, name, 100)
    assert f"has a {name} of" in refusal()
    assert fetched(hub) == []


def test_a_large_file_that_loading_can_do_without_is_left_there(cache, hub, monkeypatch):
    monkeypatch.setitem(WELCOME, "training.json", 10)
    gpt2.find("ada/x")
    assert "training.json" not in fetched(hub)


def test_the_largest_weights_are_those_of_the_largest_model():
    assert ESSENTIAL[WEIGHTS] == 4 * 3_000_000_000


@pytest.mark.parametrize("name", ["ada/.x--y", "ada/x@../../up"])
def test_a_name_that_the_hub_can_not_have_is_refused_unasked(cache, hub, name):
    assert "Hub id" in refusal(name)
    assert hub.requests == []


# The Hub, its cache, or a sentence


WAYS_OUT = {
    401: "set HF_TOKEN to a token that may read it",
    403: "set HF_TOKEN to a token that may read it",
    404: "check the name",
    429: "try again in a few minutes",
    500: "a problem of its own (500): try again later",
    503: "a problem of its own (503): try again later",
}


@pytest.mark.parametrize("status", WAYS_OUT)
def test_a_hub_that_refuses_is_quoted_with_a_way_out(cache, hub, status):
    hub.fail("GET", INFO, status=status)
    sentence = refusal()
    assert WAYS_OUT[status] in sentence
    assert sentence.startswith("no directory 'ada/x' here, no whole copy of it in the Hub's cache on this disk, and ")


@pytest.mark.parametrize("fault", [{"status": 401}, {"status": 429}, {"status": 503}, {"kind": "drop"}])
def test_a_hub_that_refuses_is_replaced_by_its_cache_and_a_warning(cache, hub, repo, caplog, fault):
    old = gpt2.find("ada/x").sha
    repo.commit({"training.json": b"{}"})
    hub.fail("GET", INFO, **fault)
    assert gpt2.find("ada/x").sha == old
    assert len(caplog.messages) == 1 and "\n" not in caplog.text.rstrip("\n")
    assert caplog.messages[0].endswith(f"Using the copy in the Hub's cache, commit {old[:8]}.")


def test_the_old_copy_serves_while_a_new_commit_can_not_be_fetched(cache, hub, repo):
    old = gpt2.find("ada/x").sha
    new = repo.commit({WEIGHTS: b"larger weights" * 100_000, "training.json": b"{}"})
    hub.fail("GET", LARGE, kind="cut", times=2)
    assert gpt2.find("ada/x").sha == old
    assert gpt2.find("ada/x").sha == new


def test_what_the_hub_does_not_have_is_never_replaced_by_another(cache):
    gpt2.find("ada/x")
    assert "the Hub shows no ada/y to strangers" in refusal("ada/y")
    assert "ada/x has no revision 'v2' on the Hub" in refusal("ada/x@v2")


def test_an_answer_that_is_not_the_hubs_is_not_believed(cache, hub):
    hub.fail("GET", INFO, status=200)  # as the sign-in page of a train's network is
    assert "what the Hub has did not arrive" in refusal()


def test_a_gated_repository_names_the_page_to_ask_on(cache, hub, repo):
    repo.gated = True
    assert f"ask for access at {hub.url}/ada/x" in refusal()


def test_half_a_copy_is_none(cache, repo, monkeypatch):
    (gpt2.find("ada/x").directory / "merges.txt").unlink()
    (gpt2.find("ada/x").directory / "tokenizer.json").unlink()
    (gpt2.find("ada/x").directory / WEIGHTS).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "no whole copy" in refusal()


def test_offline_no_connection_is_tried(cache, hub, monkeypatch):
    gpt2.find("ada/x")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a look-up"))
    assert gpt2.find("ada/x").sha
    assert "HF_HUB_OFFLINE is set" in refusal("ada/y")
    assert hub.requests == []


def test_the_copy_of_another_tool_serves_offline(cache, repo, monkeypatch):
    huggingface_hub.snapshot_download("ada/x")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert gpt2.find("ada/x").sha == repo.head
    gpt2.load("ada/x")


def test_a_directory_here_comes_before_the_hub(cache, hub, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "ada" / "x")
    assert gpt2.find("ada/x").sha is None
    assert hub.requests == []


def test_a_cache_that_may_only_be_read_is_enough(cache, monkeypatch):
    sha = gpt2.find("ada/x").sha

    def deny(*_, **__):
        raise PermissionError("read-only")

    for name in ("mkdir", "write_text", "unlink"):
        monkeypatch.setattr(Path, name, deny)
    assert gpt2.find("ada/x").sha == sha


# Tokens


@pytest.mark.parametrize("token", ["hf_wrong", "hf_wröng", "hf_\x01wrong", "hf_ wrong"])
def test_a_bad_token_does_not_close_what_is_public(cache, hub, repo, monkeypatch, caplog, token):
    monkeypatch.setenv("HF_TOKEN", token)
    assert gpt2.find("ada/x").sha == repo.head
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "does not accept the token" in caplog.text
    assert token not in caplog.text
    hub.fail("GET", INFO, status=500, times=math.inf)
    shutil.rmtree(cache)
    assert token not in refusal()


def test_a_private_repository_opens_to_its_owners_token_alone(cache, repo, monkeypatch):
    repo.private = True
    assert "the Hub shows no ada/x to strangers" in refusal()
    for token, whom in (("hf_other", "the token that was sent"), ("hf_wrong", "the token that was sent")):
        monkeypatch.setenv("HF_TOKEN", token)
        assert f"the Hub shows no ada/x to {whom}" in refusal()
        assert token not in refusal()
    monkeypatch.setenv("HF_TOKEN", "hf_w")
    assert gpt2.find("ada/x").sha == repo.head


# Damage


@pytest.mark.parametrize("where", [LARGE, "resolve-cache.*config.json", "resolve-cache.*merges.txt"])
@pytest.mark.parametrize("kind", ["flip", "cut", "truncate"])
def test_what_arrives_damaged_is_fetched_again(cache, hub, repo, where, kind):
    hub.fail("GET", where, kind=kind)
    directory = gpt2.find("ada/x").directory
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == {
        name: content for name, content in repo.files().items() if name in ESSENTIAL | WELCOME
    }


@pytest.mark.parametrize(("where", "name"), [(LARGE, WEIGHTS), ("resolve-cache.*config.json", "config.json")])
def test_what_arrives_damaged_twice_is_refused_and_not_kept(cache, hub, where, name):
    hub.fail("GET", where, kind="flip", times=2)
    assert f"{name} came damaged, twice" in refusal()
    assert not list(cache.rglob(name))
    assert gpt2.find("ada/x")


def test_a_cached_file_that_lost_its_end_is_fetched_again(cache, repo):
    weights = gpt2.find("ada/x").directory / WEIGHTS
    weights.resolve().write_bytes(b"half")
    gpt2.find("ada/x")
    assert weights.read_bytes() == repo.files()[WEIGHTS]


def test_what_dead_processes_left_half_fetched_is_swept(cache, repo):
    blobs = cache / "models--ada--x" / "blobs"
    blobs.mkdir(parents=True)
    dead, living = blobs / "a.1.incomplete", blobs / "b.2.incomplete"
    for path in (dead, living):
        path.write_bytes(b"half")
    os.utime(dead, (0, 0))
    gpt2.find("ada/x")
    assert living.exists() and not dead.exists()


def test_an_interrupted_fetch_leaves_nothing_unchecked(cache, hub, monkeypatch):
    def interrupted(*args, **kwargs):
        patience.patiently(*args, **kwargs)
        if len(args) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loading, "patiently", lambda *a, **k: interrupted(*a, **k) or patience.patiently(*a, **k))
    hub.fail("GET", "resolve-cache.*config.json", kind="flip")
    with pytest.raises(KeyboardInterrupt):
        gpt2.find("ada/x")
    assert list(cache.rglob(WEIGHTS)) and not list(cache.rglob("config.json"))


# Silence


@pytest.fixture
def impatient(monkeypatch) -> float:
    for module in (patience, loading):
        monkeypatch.setattr(module, "PATIENCE", 1.0)
    return 1.0


def test_a_slow_download_may_take_its_time(cache, hub, repo, impatient, monkeypatch):
    monkeypatch.setattr(loading, "NEWS", 2**11)
    rate = len(repo.files()[WEIGHTS]) / 4
    assert rate > 2 * loading.NEWS
    hub.fail("GET", LARGE, kind="slow", rate=rate)
    started = time.monotonic()
    gpt2.find("ada/x")
    assert time.monotonic() - started > 3 * impatient


def test_a_download_that_has_come_far_may_stall_for_longer(cache, hub, impatient, monkeypatch):
    monkeypatch.setattr(loading, "MUCH", 2**12)
    monkeypatch.setattr(loading, "NEWS", 2**11)
    monkeypatch.setattr(loading, "LONG_PATIENCE", 3.0)
    hub.fail("GET", LARGE, kind="stall")
    started = time.monotonic()
    assert "said nothing for 3 seconds" in refusal()
    assert time.monotonic() - started < 6


def test_what_another_process_fetches_is_waited_for(cache, repo, impatient):
    """Its progress is seen on the disk; ours only waits for its lock."""
    file = repo.history[repo.head].files[WEIGHTS]
    lock = cache / ".locks" / "models--ada--x" / f"{file.sha256}.lock"
    blob = cache / "models--ada--x" / "blobs" / file.sha256
    for path in (lock, blob):
        path.parent.mkdir(parents=True)
    ready = threading.Event()

    def other() -> None:
        with WeakFileLock(lock), blob.with_suffix(".incomplete").open("wb", 0) as out:
            ready.set()
            for part in range(12):
                out.write(file.content[part::12])
                time.sleep(0.25 * impatient)
            blob.write_bytes(file.content)

    thread = threading.Thread(target=other)
    thread.start()
    ready.wait()
    started = time.monotonic()
    gpt2.find("ada/x")
    assert time.monotonic() - started > 2 * impatient
    thread.join()


SILENCES = {  # REPO stands for the repository's name
    "silent info": dict(method="GET", path_regex="/api/models/REPO", kind="silent"),
    "dripping info": dict(method="GET", path_regex="/api/models/REPO", kind="slow", rate=10),
    "silent HEAD": dict(method="HEAD", path_regex="/REPO/resolve/", kind="silent"),
    "silent GET": dict(method="GET", path_regex="/REPO/[0-9a-f]{40}", kind="silent"),
    "GET that stalls": dict(method="GET", path_regex="/REPO/[0-9a-f]{64}", kind="stall"),
    "dripping GET": dict(method="GET", path_regex="/REPO/[0-9a-f]{64}", kind="slow", rate=1000),
    "503 at HEAD": dict(method="HEAD", path_regex="/REPO/resolve/", status=503),
    "429 at GET": dict(method="GET", path_regex="/REPO/[0-9a-f]{64}", status=429, retry_after=60),
    "HEAD that drops": dict(method="HEAD", path_regex="/REPO/resolve/", kind="drop"),
}


@pytest.fixture
def timed(run_python, hub, tmp_path) -> Callable[..., list]:
    """timed([name, ...]) finds these in a process of its own: [(sha or sentence, seconds), ...], and its errors."""

    def run(names: list[str], seconds: float | None = None, **env: str) -> tuple[list, str]:
        code = f"""
import json, time, huggingface_hub, gpt2, gpt2.hub, gpt2.patience
if {seconds}: gpt2.hub.PATIENCE = gpt2.patience.PATIENCE = {seconds}
found = []
for name in {names}:
    started = time.perf_counter()
    try: answer = gpt2.find(name).sha
    except gpt2.CheckpointError as error: answer = str(error)
    found.append((answer, time.perf_counter() - started))
print(json.dumps(found))
"""
        done = run_python("-c", code, **{**hub.env(None, tmp_path / "home"), **env})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout), done.stderr

    return run


@pytest.mark.slow
def test_a_hub_that_falls_silent_at_any_request_is_given_up(hub, timed, tiny_checkpoint):
    """At the first: with nothing in the cache. At the second: with an older commit there."""
    names = {f"ada/{number}": fault for number, fault in enumerate(SILENCES.values())}
    for name in names:
        hub.repo(name).commit({path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()})
    for name, fault in names.items():
        hub.fail(**{**fault, "path_regex": fault["path_regex"].replace("REPO", name), "times": math.inf})
    answers, said = timed(list(names), seconds=1.5)
    for (sentence, seconds), title in zip(answers, SILENCES, strict=True):
        assert seconds < 4, (title, seconds)
        reason = {"503 at HEAD": "(503)", "429 at GET": "(429)", "HEAD that drops": ""}.get(
            title, "said nothing for 1."
        )
        assert reason in sentence, title
    assert said == ""  # the client's retries are nobody's concern

    hub.faults, faults = [], hub.faults
    old = {name: hub.repo(name).head for name in names}
    assert [sha for sha, _ in timed(list(names))[0]] == list(old.values())
    for name in names:
        hub.repo(name).commit({WEIGHTS: b"other weights" * 9999, "training.json": b"{}"})
    hub.faults = faults
    answers, said = timed(list(names), seconds=1.5)
    assert [sha for sha, _ in answers] == list(old.values())
    assert max(seconds for _, seconds in answers) < 4
    assert said.count("Using the copy in the Hub's cache") == len(said.splitlines()) == len(names)


@pytest.mark.slow
def test_an_unreachable_hub_is_given_up_within_eight_seconds(hub, timed, repo):
    """With the patience that users meet: silent, refusing, with a name that nobody knows."""
    hub.fail("GET", INFO, kind="silent", times=math.inf)
    [[sentence, seconds]], _ = timed(["ada/x"])
    assert "said nothing for 3 seconds" in sentence
    assert 3 < seconds < 8
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        [[sentence, seconds]], _ = timed(["ada/x"], HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert "could not be reached" in sentence
    assert seconds < 8
    [[sentence, seconds]], _ = timed(["ada/x"], HF_ENDPOINT="http://no-such-name.invalid")
    assert "could not be reached" in sentence or "said nothing" in sentence  # a resolver may be silent too
    assert seconds < 8


@pytest.mark.skipif(sys.platform == "win32", reason="a terminal of its own is POSIX's")
def test_a_terminal_sees_the_progress_and_a_log_does_not(hub, repo, tmp_path):
    hub.fail("GET", LARGE, kind="slow", rate=len(repo.files()[WEIGHTS]) / 3, times=math.inf)
    code = "import gpt2.hub; gpt2.hub.NEWS = 2**10; gpt2.find('ada/x')"

    def stderr(descriptor: int, home: str) -> None:
        env = {**os.environ, **hub.env(None, tmp_path / home)}
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, stderr=descriptor, check=True, timeout=120)

    import pty
    import termios

    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    stderr(terminal, "one")
    os.close(terminal)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "ada/x:" in shown and "%" in shown
    log = tmp_path / "log"
    with log.open("wb") as file:
        stderr(file.fileno(), "two")
    assert log.read_bytes() == b""
