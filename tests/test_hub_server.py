"""tests/hub_server.py, seen by the real, unmodified huggingface_hub: what it keeps, whom it lets in, how it fails.

Each test is one Python of its own: the client reads its settings when it is first imported.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hub_server import HubServer

WEIGHTS = bytes(range(256)) * 20  # 5,120 bytes
FAULTS = ["silent", "drop", "close", "lost", "slow", "flip", "truncate", "cut", "stall"]

PRELUDE = """
import json, sys, time
from pathlib import Path
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx

api = HfApi()

def refused(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except (OSError, httpx.HTTPError, RuntimeError, ValueError) as error:
        response = getattr(error, "response", None)
        return [type(error).__name__, response.status_code if response is not None else str(error)[:200]]
    return None
"""


@pytest.fixture
def client(hub, run_python, tmp_path) -> Callable[..., object]:
    """client(code, token) runs code with the real client and returns what it printed, as JSON."""

    def run(code: str, token: str | None = "hf_w", **env: str) -> object:
        done = run_python("-c", PRELUDE + code, cwd=tmp_path, **{**hub.env(token, tmp_path / f"home-{token}"), **env})
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    hub.add_token("hf_w", "ada", "write")
    hub.add_token("hf_r", "ada", "read")
    hub.add_token("hf_other", "bob", "write")
    return run


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "loss.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "config.json").write_text("{}\n", encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# X\n", encoding="utf-8")
    return folder


def fill(hub: HubServer, **kwargs) -> None:
    hub.repo("ada/x", **kwargs).commit({"model.safetensors": WEIGHTS, "config.json": b'{"a": 1}\n'})


def test_a_folder_is_uploaded_tagged_and_comes_back_the_same(hub, client, folder):
    said = client(f"""
api.create_repo("ada/x")
first = api.upload_folder(repo_id="ada/x", folder_path={str(folder)!r}, commit_message="one")
api.create_tag("ada/x", tag="v1")
again = api.upload_folder(repo_id="ada/x", folder_path={str(folder)!r}, commit_message="two")
path = Path(snapshot_download("ada/x", revision="v1"))
info = api.model_info("ada/x", files_metadata=True)
print(json.dumps({{
    "oids": [first.oid, again.oid, info.sha, path.name], "me": api.whoami()["name"],
    "files": {{p.name: p.read_bytes().hex() for p in path.iterdir()}},
    "lfs": sorted(s.rfilename for s in info.siblings if s.lfs),
    "tree": sorted([f.path, f.size] for f in api.list_repo_tree("ada/x", expand=True)),
    "refs": [[t.name, t.target_commit] for t in api.list_repo_refs("ada/x").tags],
    "titles": [c.title for c in api.list_repo_commits("ada/x")],
    "paths": [f.path for f in api.get_paths_info("ada/x", ["config.json", "nothing"])],
}}))
""")
    repo = hub.repo("ada/x")
    ours = {path.name: path.read_bytes() for path in folder.iterdir()}
    theirs = {name: content for name, content in repo.files("v1").items() if name != ".gitattributes"}
    assert theirs == ours
    assert {name: bytes.fromhex(content) for name, content in said["files"].items()} == repo.files()
    assert set(said["oids"]) == {repo.head}  # an unchanged folder makes no commit
    assert said["lfs"] == ["loss.png", "model.safetensors"]
    assert said["tree"] == sorted([name, len(content)] for name, content in repo.files().items())
    assert said["refs"] == [["v1", repo.head]] and repo.tags == {"v1": repo.head}
    assert said["titles"] == [title for _, title in repo.commits] == ["one", "initial commit"]
    assert (said["me"], said["paths"]) == ("ada", ["config.json"])


def test_a_large_file_is_uploaded_in_parts(hub, client, folder):
    hub.part_size = 2000
    client(f"""
api.create_repo("ada/x")
api.upload_folder(repo_id="ada/x", folder_path={str(folder)!r})
print(0)
""")
    assert hub.repo("ada/x").files()["model.safetensors"] == WEIGHTS
    assert sum(method == "PUT" and "part=" in path for method, path, *_ in hub.requests) == 3


def test_commits_add_delete_and_notice_that_another_came_first(hub, client):
    fill(hub)
    old = hub.repo("ada/x").head
    hub.repo("ada/x").commit({"other.txt": b"behind your back"})
    said = client(f"""
add = lambda: [CommitOperationAdd("a.txt", b"a"), CommitOperationDelete("config.json")]
clash = refused(api.create_commit, "ada/x", add(), commit_message="m", parent_commit={old!r})
api.create_commit("ada/x", add(), commit_message="m", parent_commit=api.model_info("ada/x").sha)
api.create_branch("ada/x", branch="dev", revision={old!r})
api.create_commit("ada/x", [CommitOperationAdd("b.txt", b"b")], commit_message="on dev", revision="dev")
tag = lambda: api.create_tag("ada/x", tag="t", revision="dev")
tag()
print(json.dumps([clash, refused(tag), refused(api.create_repo, "ada/x"), refused(
    api.create_commit, "ada/x", [CommitOperationAdd("README.md", b"---\\nlicense: My Own\\n---\\n")], commit_message="m"
)]))
api.delete_tag("ada/x", tag="t")
""")
    assert said[:3] == [["HfHubHTTPError", 412], ["HfHubHTTPError", 409], ["HfHubHTTPError", 409]]
    assert "license" in said[3][1]
    repo = hub.repo("ada/x")
    assert set(repo.files()) == {".gitattributes", "a.txt", "model.safetensors", "other.txt"}
    assert set(repo.files("dev")) == {".gitattributes", "b.txt", "config.json", "model.safetensors"}
    assert repo.tags == {}


def test_a_token_opens_what_is_its_owners_and_a_read_token_writes_nothing(hub, client):
    fill(hub, private=True)
    add = 'api.upload_file(repo_id="ada/x", path_in_repo="a.txt", path_or_fileobj=b"a")'
    asked = f"""
print(json.dumps([refused(api.model_info, "ada/x"), refused(hf_hub_download, "ada/x", "config.json"),
    refused(api.auth_check, "ada/x", write=True), refused(lambda: {add}), refused(api.create_repo, "ada/y")]))
"""
    assert client(asked, "hf_w") == [None] * 5
    assert client(asked, "hf_r") == [None, None, *[["HfHubHTTPError", 403]] * 3]
    assert client(asked, "hf_other") == [*[["RepositoryNotFoundError", 404]] * 4, ["HfHubHTTPError", 403]]
    assert client(asked, None) == [*[["RepositoryNotFoundError", 401]] * 4, ["HfHubHTTPError", 401]]
    assert "a.txt" in hub.repo("ada/x").files() and ("model", "ada/y") in hub.repos


def test_a_wrong_token_opens_nothing_not_even_what_is_public(hub, client):
    fill(hub)
    asked = """
print(json.dumps([refused(api.model_info, "ada/x"), refused(hf_hub_download, "ada/x", "config.json"),
    refused(snapshot_download, "ada/x"), refused(snapshot_download, "ada/x", token=False)]))
"""
    assert client(asked, "hf_wrong") == [*[["HfHubHTTPError", 401]] * 3, None]


def test_a_gated_repository_shows_itself_and_keeps_its_files(hub, client):
    fill(hub)
    hub.repo("ada/x").gated = True
    asked = 'print(json.dumps([refused(api.model_info, "ada/x"), refused(hf_hub_download, "ada/x", "config.json")]))'
    assert client(asked, None) == [None, ["GatedRepoError", 401]]
    assert client(asked, "hf_other") == [None, ["GatedRepoError", 403]]
    assert client(asked, "hf_r") == [None, None]


def test_what_is_not_there_has_a_name(hub, client):
    fill(hub)
    assert client("""
print(json.dumps([refused(api.model_info, "ada/y"), refused(api.model_info, "ada/x", revision="v9"),
    refused(hf_hub_download, "ada/x", "nothing")]))
""") == [["RepositoryNotFoundError", 404], ["RevisionNotFoundError", 404], ["RemoteEntryNotFoundError", 404]]


def test_a_space_has_hardware_variables_and_secrets(hub, client):
    client("""
api.create_repo("ada/s", repo_type="space", space_sdk="gradio", space_hardware="zero-a10g", private=True,
                space_variables=[{"key": "MODEL_ID", "value": "ada/x"}])
api.add_space_variable("ada/s", "MODEL_REVISION", "v1")
api.add_space_secret("ada/s", "HF_TOKEN", "hf_r")
variables = {key: variable.value for key, variable in api.get_space_variables("ada/s").items()}
assert variables == {"MODEL_ID": "ada/x", "MODEL_REVISION": "v1"}, variables
assert api.get_space_runtime("ada/s").hardware == "zero-a10g"
assert api.request_space_hardware("ada/s", "cpu-basic").requested_hardware == "cpu-basic"
api.delete_space_variable("ada/s", "MODEL_REVISION")
api.upload_file(repo_id="ada/s", repo_type="space", path_in_repo="app.py", path_or_fileobj=b"print()")
api.upload_file(repo_id="ada/s", repo_type="space", path_in_repo="w.bin", path_or_fileobj=b"123")
assert Path(hf_hub_download("ada/s", "w.bin", repo_type="space")).read_bytes() == b"123"
assert refused(api.model_info, "ada/s") is not None
assert api.space_info("ada/s").sdk == "gradio"
api.update_repo_settings("ada/s", repo_type="space", private=False)
print(0)
""")
    space = hub.repo("ada/s", kind="space")
    assert (space.private, space.hardware, space.variables) == (False, "cpu-basic", {"MODEL_ID": "ada/x"})
    assert space.secrets == {"HF_TOKEN": "hf_r"} and set(space.files()) >= {"app.py", "README.md", "w.bin"}


def test_the_store_of_large_files_is_another_host_and_gets_no_token(hub, client):
    fill(hub)
    client('snapshot_download("ada/x"); print(0)')
    tokens = {token for method, path, _, token in hub.requests if path.startswith("/ada/x/") and "signature" in path}
    assert tokens == {None}
    assert {token for method, path, _, token in hub.requests if path.startswith("/api/")} == {"hf_w"}


def test_every_fault_befalls_the_request_that_it_names_once(hub, client):
    fill(hub)
    for kind in (dict(status=500), dict(status=429, retry_after=7), *map(lambda k: dict(kind=k), FAULTS[:3])):
        hub.fail("GET", "/api/models/ada/x$", **kind)
    hub.fail("POST", "/tag/main", kind="lost")
    for kind in FAULTS[4:]:
        hub.repo(f"ada/{kind}").commit({"model.safetensors": WEIGHTS})
        hub.fail("GET", f"/ada/{kind}/[0-9a-f]{{64}}", kind=kind, rate=5000)
    said = client(f"""
def attempt(kind):
    if kind in {FAULTS[4:]}:
        path = snapshot_download("ada/" + kind)
        return Path(path, "model.safetensors").read_bytes() == bytes(range(256)) * 20
    return api.create_tag("ada/x", tag="t") if kind == "lost" else api.model_info("ada/x", timeout=1).id

def timed(kind):
    started = time.perf_counter()
    try:
        answer = attempt(kind)
    except (OSError, httpx.HTTPError) as error:
        response = getattr(error, "response", None)
        answer = type(error).__name__ if response is None else response.status_code
        answer = [answer, response.headers["Retry-After"]] if answer == 429 else answer
    return answer, time.perf_counter() - started

print(json.dumps({{kind: timed(kind) for kind in ["500", "429", *{FAULTS}, "no more"]}}))
""", HF_HUB_DOWNLOAD_TIMEOUT="1")  # fmt: skip
    assert {kind: answer for kind, (answer, _) in said.items()} == {
        "500": 500,
        "429": [429, "7"],
        "silent": "ReadTimeout",
        "drop": "ReadError",
        "close": "RemoteProtocolError",
        "lost": "ReadError",
        "slow": True,
        "flip": False,  # the client does not notice
        "truncate": True,  # it goes on where it was cut off
        "cut": "ReadError",
        "stall": True,
        "no more": "ada/x",
    }
    assert said["slow"][1] > 1
    assert hub.repo("ada/x").tags.keys() == {"t"}  # carried out, though never answered


def test_after_lets_requests_pass_and_inf_lets_none(hub, client):
    fill(hub)
    hub.fail("GET", "/api/models", status=503, times=math.inf, after=2)
    answers = client('print(json.dumps([refused(api.model_info, "ada/x") for _ in range(5)]))')
    assert answers == [None, None, *[["HfHubHTTPError", 503]] * 3]
    assert [status for *_, status, _ in hub.requests] == [200, 200, 503, 503, 503]


def test_after_its_end_the_port_refuses(run_python, tmp_path):
    with HubServer() as hub:
        hub.fail("GET", "/", kind="silent")
    started = time.perf_counter()
    code = PRELUDE + 'print(refused(api.model_info, "ada/x", timeout=5)[0])'
    assert run_python("-c", code, **hub.env(None, tmp_path)).stdout == "ConnectError\n"
    assert time.perf_counter() - started < 5


def test_a_misspelt_fault_is_refused(hub):
    with pytest.raises(ValueError, match="one kind of"):
        hub.fail("GET", "/", kind="tired")
