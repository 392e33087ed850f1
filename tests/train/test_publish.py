"""python -m train.publish, the real client of the Hub, and a Hub of our own."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from tests import hub_server
from train import card, publish, space, upload
from train.config import preset
from train.trainer import fit

WRITE, READ = "hf_write_4f6a", "hf_read_91bc"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, config) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        run_dir = tmp_path_factory.mktemp("runs") / "rhymes"
        fit(config, corpus, run_dir, card.write, say=lambda sentence: None)
    return run_dir


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A finished run to do with as one likes: run/best, run/last, run/state."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def push(hub, tmp_path, monkeypatch, capsys) -> Iterator[Callable[..., Done]]:
    """push(directory, "ada/x", ...) is the command with a token that may write, or token=..., against hub. In this
    process, for speed: the client is the real one, told where the Hub is."""
    hub.add_token(WRITE, "ada", "write")
    hub.add_token(READ, "ada", "read")
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(upload, "time", SimpleNamespace(sleep=lambda seconds: None, monotonic=time.monotonic))

    def command(*args, token: str | None = WRITE) -> Done:
        monkeypatch.setenv("HF_TOKEN", token or "")
        capsys.readouterr()
        code = publish.main([str(arg) for arg in args])
        said = capsys.readouterr()
        assert WRITE not in said.out + said.err
        return Done(code, said.out, said.err)

    yield command
    set_client_factory(default_client_factory)


def test_a_run_becomes_one_commit_with_all_that_belongs_there_and_a_tag(push, hub, run):
    done = push(run, "ada/rhymes")
    assert done.returncode == 0, done.stderr
    repo = hub.repo("ada/rhymes")
    there = set(repo.files()) - {".gitattributes"}
    assert there == set(publish.FILES) & {path.name for path in (run / "best").iterdir()}
    assert {"model.safetensors", "config.json", "training.json", "metrics.jsonl", "loss.png", "README.md"} <= there
    assert repo.files()["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    assert len(repo.commits) == 2  # the Hub's own first one, and ours
    assert list(repo.tags.values()) == [repo.head] and list(repo.tags)[0].startswith("run-")
    assert hub.url + "/ada/rhymes" in done.stdout and repo.head[:8] in done.stdout
    assert not repo.private


def test_the_card_on_the_hub_names_the_repository(push, hub, run):
    push(run, "ada/rhymes")
    card = hub.repo("ada/rhymes").files()["README.md"].decode("utf-8")
    assert 'from_pretrained("ada/rhymes")' in card and "MODEL_ID=ada/rhymes" in card


def test_a_card_that_its_owner_edited_is_pushed_as_it_is(push, hub, run):
    (run / "best" / "README.md").write_text("---\nlicense: mit\n---\nMy own words.\n", encoding="utf-8")
    push(run, "ada/rhymes")
    assert hub.repo("ada/rhymes").files()["README.md"].decode("utf-8").endswith("My own words.\n")


def test_a_second_push_changes_nothing_and_says_so(push, hub, run):
    push(run, "ada/rhymes")
    commits = list(hub.repo("ada/rhymes").commits)
    again = push(run, "ada/rhymes")
    assert again.returncode == 0 and "Nothing has changed" in again.stdout
    assert hub.repo("ada/rhymes").commits == commits


def test_a_later_checkpoint_of_the_run_moves_its_tag_and_a_file_that_is_gone_goes(push, hub, run):
    push(run / "last", "ada/rhymes")
    record = json.loads((run / "last" / "training.json").read_text(encoding="utf-8"))
    (run / "last" / "training.json").write_text(json.dumps(record | {"steps": 99}), encoding="utf-8")
    (run / "last" / "loss.png").unlink()
    done = push(run / "last", "ada/rhymes")
    repo = hub.repo("ada/rhymes")
    assert done.returncode == 0, done.stderr
    assert list(repo.tags.values()) == [repo.head] and len(repo.commits) == 3
    assert "loss.png" not in repo.files()


def test_what_somebody_else_changed_is_not_overwritten_blindly(push, hub, run):
    push(run, "ada/rhymes")
    hub.repo("ada/rhymes").commit({"README.md": b"Edited on the web."})
    head = hub.repo("ada/rhymes").head
    refused = push(run, "ada/rhymes")
    assert refused.returncode == 1 and "somebody else" in refused.stderr and "--overwrite" in refused.stderr
    assert hub.repo("ada/rhymes").head == head
    assert push(run, "ada/rhymes", "--overwrite").returncode == 0
    assert hub.repo("ada/rhymes").files()["README.md"] != b"Edited on the web."


def test_a_repository_whose_history_somebody_squashed_is_not_overwritten_either(push, hub, run):
    push(run, "ada/rhymes")
    repo = hub.repo("ada/rhymes")
    files = {**repo.files(), "README.md": b"Edited on the web."}
    repo.branches.clear()
    repo.commit(files, "Super-squash branch 'main'")
    refused = push(run, "ada/rhymes")
    assert len(repo.commits) == 1 and refused.returncode == 1 and "somebody else" in refused.stderr


@pytest.mark.parametrize("method, path", [("POST", "/commit/"), ("DELETE", "/tag/")])
def test_what_was_done_and_not_answered_is_found_done(push, hub, run, method, path):
    push(run / "last", "ada/rhymes")
    (run / "last" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    (run / "last" / "loss.png").unlink()
    hub.fail(method, path, kind="lost")
    done = push(run / "last", "ada/rhymes")
    repo = hub.repo("ada/rhymes")
    assert done.returncode == 0 and "trying again" in done.stdout, done.stderr
    assert list(repo.tags.values()) == [repo.head] and len(repo.commits) == 3 and "loss.png" not in repo.files()


def test_what_the_hub_says_is_repeated_without_the_token(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", WRITE)
    response = httpx.Response(503, request=httpx.Request("POST", "https://huggingface.co/api"))
    error = HfHubHTTPError("no", response=response, server_message=f"Bearer {WRITE} is busy")
    assert upload._reason(error) == "503: Bearer (the token) is busy"


def test_a_tag_that_the_user_gave_stays_where_it_is(push, hub, run):
    assert push(run / "best", "ada/rhymes", "--tag", "v1").returncode == 0
    first = hub.repo("ada/rhymes").tags["v1"]
    (run / "best" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    refused = push(run / "best", "ada/rhymes", "--tag", "v1")
    assert refused.returncode == 1 and "another --tag" in refused.stderr
    assert hub.repo("ada/rhymes").tags["v1"] == first


def test_private_means_private(push, hub, run):
    assert push(run, "ada/secret", "--private").returncode == 0
    assert hub.repo("ada/secret").private
    assert push(run, "ada/open").returncode == 0
    refused = push(run, "ada/open", "--private")
    assert refused.returncode == 1 and "is public" in refused.stderr


def test_a_dry_run_lists_exactly_what_a_push_sends_and_opens_no_socket(push, hub, run, run_python):
    watched = """
import os, sys
sys.addaudithook(lambda event, args: os._exit(9) if event in ("socket.connect", "socket.getaddrinfo") else None)
from train.publish import main
sys.exit(main(sys.argv[1:]))
"""
    listed = run_python("-c", watched, str(run), "ada/rhymes", "--dry-run", "--space", "ada/page")
    assert listed.returncode == 0, listed.stderr
    listed = push(run, "ada/rhymes", "--dry-run", token=None)
    assert hub.requests == []
    rows = [line.split() for line in listed.stdout.splitlines() if line.startswith(" ")]
    sizes = {name: int(size.replace(",", "")) for size, name, *rest in rows if not rest}
    push(run, "ada/rhymes")
    files = {k: len(v) for k, v in hub.repo("ada/rhymes").files().items() if k != ".gitattributes"}
    assert sizes == files


@pytest.mark.parametrize(
    ("token", "says"), [(None, "no token"), ("hf_wrong", "does not accept the token"), (READ, "may not write")]
)
def test_a_token_that_can_not_write_is_told_so(push, hub, run, token, says):
    refused = push(run, "ada/rhymes", token=token)
    assert refused.returncode == 1 and says in refused.stderr
    assert "https://huggingface.co/settings/tokens" in refused.stderr
    assert (token or "hf_") not in refused.stderr


@pytest.mark.parametrize("status", [400, 402, 403, 404, 409, 412, 413, 500])
def test_every_refusal_of_a_commit_is_a_sentence_and_changes_nothing(push, hub, run, status):
    push(run / "last", "ada/rhymes")
    head = hub.repo("ada/rhymes").head
    hub.fail("POST", r"/commit/", status=status, times=99)
    (run / "best" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n', encoding="utf-8")
    refused = push(run / "best", "ada/rhymes")
    assert refused.returncode == 1
    assert len(refused.stderr.strip().splitlines()[-1]) > 20
    assert hub.repo("ada/rhymes").head == head


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/auth-check"),
        ("POST", "/api/repos/create"),
        ("GET", "/api/models/ada/rhymes"),
        ("POST", "/preupload/"),
        ("POST", "/objects/batch"),
        ("PUT", "."),
        ("POST", "/commit/"),
        ("POST", "/tag/"),
    ],
)
@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429, "retry_after": 1}, {"kind": "drop"}])
def test_one_hiccup_of_the_hub_is_waited_out(push, hub, run, method, path, fault):
    hub.fail(method, path, **fault, times=1)
    done = push(run, "ada/rhymes")
    assert done.returncode == 0, done.stderr
    assert hub.repo("ada/rhymes").files()["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()
    assert len(hub.repo("ada/rhymes").commits) == 2


@pytest.mark.parametrize("path", ["/api/models/ada/rhymes", "/preupload/", "/commit/"])
def test_an_answer_that_makes_no_sense_is_asked_for_again(push, hub, run, path):
    hub.fail("*", path, kind="flip", times=1)
    done = push(run, "ada/rhymes")
    assert done.returncode == 0, done.stderr
    assert hub.repo("ada/rhymes").files()["model.safetensors"] == (run / "best" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("answer", [{}, [], {"siblings": 1}, {"sha": []}, "text", None, 1, b"<html>", b"\xff", b""])
def test_a_hub_that_never_makes_sense_is_told_in_a_sentence(push, hub, run, monkeypatch, answer):
    head = hub.repo("ada/rhymes").commit({".gitattributes": b""})
    body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    monkeypatch.setattr(hub_server, "json_answer", lambda *_: hub_server.Answer(200, body))
    refused = push(run, "ada/rhymes")
    assert refused.returncode == 1 and "the Hub" in refused.stderr.splitlines()[-1], refused
    assert hub.repo("ada/rhymes").head == head


def test_while_the_hub_is_silent_it_is_said_what_is_waited_for(push, hub, run, monkeypatch):
    monkeypatch.setattr(upload, "SILENCE", 0.5)
    monkeypatch.setattr(upload, "TELL", 0.1)
    hub.fail("POST", r"/commit/", kind="silent", times=1)
    done = push(run, "ada/rhymes")
    assert done.returncode == 0, done.stderr
    assert "Waiting for the Hub" in done.stdout
    assert "did not take it" in done.stdout.split("Waiting for the Hub", 1)[1]  # the wait was told before its end


def test_a_hub_that_stays_silent_is_given_up_when_the_patience_for_all_attempts_is_over(push, hub, run, monkeypatch):
    monkeypatch.setattr(upload, "SILENCE", 0.3)
    clock = itertools.count(step=0.7 * upload.GIVE_UP)  # read as an attempt begins, and as it fails
    monkeypatch.setattr(upload.time, "monotonic", lambda: next(clock))
    hub.fail("POST", r"/commit/", kind="silent", times=99)
    done = push(run, "ada/rhymes")
    assert done.returncode == 1 and "did not answer" in done.stderr
    assert sum(path.startswith("/api/models/ada/rhymes/commit/") for _, path, *_ in hub.requests) == 2


def test_a_checkpoint_that_is_not_whole_never_leaves(push, hub, run):
    weights = run / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused = push(run, "ada/rhymes")
    assert refused.returncode == 1 and "truncated or damaged" in refused.stderr
    assert hub.requests == []


def test_a_link_to_a_file_elsewhere_never_leaves(push, hub, run, tmp_path):
    (tmp_path / "secret").write_text("for nobody", encoding="utf-8")
    (run / "best" / "loss.png").unlink()
    (run / "best" / "loss.png").symlink_to(tmp_path / "secret")
    done = push(run / "best", "ada/rhymes")
    assert done.returncode == 1 and "loss.png is a link that leads out" in done.stderr
    assert not hub.repo("ada/rhymes").files().keys() & {"loss.png", "model.safetensors"}


def test_the_space_holds_what_the_page_needs_and_shows_the_pushed_model(push, hub, run):
    done = push(run, "ada/rhymes", "--space", "ada/page")
    assert done.returncode == 0, done.stderr
    page = hub.repo("ada/page", kind="space")
    assert set(space.contents("ada/rhymes", None)) <= set(page.files())
    assert page.variables == {"MODEL_ID": "ada/rhymes", "MODEL_REVISION": hub.repo("ada/rhymes").head}
    assert page.hardware == "zero-a10g"
    assert "/spaces/ada/page" in done.stdout
    again = push(run, "ada/rhymes", "--space", "ada/page", "--hardware", "cpu-basic")
    assert "have not changed" not in again.stdout and page.hardware == "cpu-basic"


def test_the_presets_push_nowhere(config):
    assert config.push_to is None and preset("mini").push_to is None


def test_the_readme_of_a_space_has_the_pinned_gradio_and_the_model():
    import gradio
    from huggingface_hub import SpaceCard

    card = SpaceCard(space.readme("ada/rhymes", "cpu-basic"))
    assert card.data.sdk == "gradio" and card.data.sdk_version == gradio.__version__
    assert card.data.models == ["ada/rhymes"] and card.data.suggested_hardware == "cpu-basic"
    assert card.data.app_file == "app.py" and (Path(space.PROJECT) / card.data.app_file).exists()


def test_pushed_then_loaded_it_writes_the_same_text_byte_for_byte(hub, run, run_python, tmp_path):
    """The commands as they are typed, each in a process of its own."""
    hub.add_token(WRITE, "ada", "write")
    hub.add_token(READ, "ada", "read")
    words = ["-m", "train.publish", str(run), "ada/rhymes", "--private", "--tag", "v1"]
    pushed = run_python(*words, **hub.env(WRITE, tmp_path / "home"))
    assert pushed.returncode == 0 and "Traceback" not in pushed.stderr, pushed.stderr
    words = ["-m", "gpt2", "The ", "--seed", "3", "--max-new-tokens", "40", "--checkpoint"]
    here = run_python(*words, str(run))
    there = run_python(*words, "ada/rhymes@v1", **hub.env(READ, tmp_path / "another-home"))
    assert here.returncode == there.returncode == 0, there.stderr
    assert there.stdout == here.stdout and len(here.stdout) > 40


def test_a_gguf_file_needs_no_repository_and_no_token(push, hub, run, tmp_path):
    done = push(run, "--gguf", tmp_path / "rhymes.gguf", token=None)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rhymes.gguf").read_bytes().startswith(b"GGUF") and hub.requests == []
