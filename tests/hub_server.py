"""A Hugging Face Hub on this machine, as much of it as one repository's life needs, with faults on demand.

    with HubServer() as hub:
        hub.add_token("hf_w", user="ada", role="write")
        subprocess.run([...], env={**os.environ, **hub.env("hf_w", home=tmp_path)})
        assert hub.repo("ada/x").files()["README.md"] == b"..."

Knows the protocol that huggingface_hub speaks over plain HTTP, without Xet: the client is the real one, unmodified. The
Hub is one port, the store of large files (a CDN in real life) another, so that the client must not send its token
there. Knows nothing of models, nor of what the project puts into a repository.
"""

from __future__ import annotations

import base64
import codecs
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import yaml  # what huggingface_hub itself reads cards with

LFS_ABOVE = 10 * 2**20  # bytes; the Hub takes larger files only into its large file store
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".npz", ".npy", ".parquet", ".zip")
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES).encode()
DATE = "2026-01-01T00:00:00.000Z"
# Of the Hub's licence ids those that a text or a model of ours may have; "MIT License" is none of them.
LICENSES = {"apache-2.0", "bsd-3-clause", "cc", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0"}
LICENSES |= {"gpl-3.0", "lgpl-3.0", "mit", "odc-by", "openrail", "other", "pddl", "unknown", "unlicense"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KINDS = {"models": "model", "spaces": "space", "datasets": "dataset"}
FAULTS = {"silent", "slow", "drop", "close", "truncate", "cut", "stall", "flip", "lost"}


@dataclass(frozen=True)
class File:
    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself holds of a large file."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def blob_id(self) -> str:
        return git_sha1(self.pointer if self.lfs else self.content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    files: dict[str, File]
    description: str = ""


@dataclass
class Repo:
    """One repository; what tests read and change behind the client's back."""

    id: str
    kind: str
    private: bool
    gated: bool = False
    sdk: str | None = None
    hardware: str | None = None
    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    history: dict[str, Commit] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        files = {".gitattributes": GITATTRIBUTES}
        if self.kind == "space":
            self.hardware = self.hardware or "cpu-basic"
            card = f"---\ntitle: X\nemoji: X\ncolorFrom: red\ncolorTo: blue\nsdk: {self.sdk or 'gradio'}\n---\n"
            files["README.md"] = card.encode()
        self.commit(files, "initial commit")

    @property
    def head(self) -> str:
        return self.branches["main"]

    @property
    def commits(self) -> list[tuple[str, str]]:
        """(sha, title) from main's newest to its first."""
        return [(commit.sha, commit.title) for commit in self.log("main")]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: file.content for path, file in self.history[self.resolve(revision)].files.items()}

    def commit(self, changes: dict[str, bytes | None], title: str = "a change", branch: str = "main") -> str:
        """Write files, delete those that are None; returns the new head."""
        files = {p: content if content is None else File(content, is_lfs(p, content)) for p, content in changes.items()}
        return self.put(files, title, branch)

    def put(self, changes: dict[str, File | None], title: str, branch: str, description: str = "") -> str:
        with self.lock:
            parent = self.branches.get(branch)
            files = {**(self.history[parent].files if parent else {}), **changes}
            files = {path: file for path, file in sorted(files.items()) if file is not None}
            content = "".join(f"{path} {file.blob_id}\n" for path, file in files.items())
            sha = hashlib.sha1(f"{self.id} {len(self.history)} {parent} {title}\n{content}".encode()).hexdigest()
            self.history[sha] = Commit(sha, parent, title, files, description)
            self.branches[branch] = sha
            return sha

    def resolve(self, revision: str) -> str | None:
        """The sha of a branch, a tag, a sha or the first seven digits of one."""
        revision = revision.removeprefix("refs/heads/")
        for names in (self.branches, self.tags):
            if revision in names:
                return names[revision]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            return next((sha for sha in self.history if sha.startswith(revision)), None)
        return None

    def log(self, revision: str) -> Iterator[Commit]:
        sha = self.resolve(revision)
        while sha:
            yield self.history[sha]
            sha = self.history[sha].parent


@dataclass
class Token:
    user: str
    role: str
    orgs: tuple[str, ...]


@dataclass
class Fault:
    method: str
    path: re.Pattern
    status: int | None
    kind: str | None
    times: float
    after: int
    retry_after: int | None
    rate: float


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An answer that ends a request early."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.answer = json_answer({"error": message, **more}, status, headers)


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_lfs(path: str, sample: bytes, size: int | None = None) -> bool:
    """Whether the Hub keeps a file in its large file store: by its name, its size, or for being no text."""
    if path.endswith(LFS_SUFFIXES) or (len(sample) if size is None else size) > LFS_ABOVE:
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(sample[:512])
    except UnicodeDecodeError:
        return True
    return b"\0" in sample[:512]


def json_answer(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})


def card_errors(content: str, kind: str) -> tuple[list[str], list[str]]:
    """What the Hub says of a README's metadata: errors, warnings."""
    found = re.match(r"---\r?\n(.*?\n)?---\s*(\n|$)", content, re.DOTALL)
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[1] or "") or {}
    except yaml.YAMLError as error:
        return [f"YAML syntax: {error}"], []
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors = []
    licenses = data.get("license", [])
    for name in licenses if isinstance(licenses, list) else [licenses]:
        if name not in LICENSES:
            errors.append(f'"license" must be one of {sorted(LICENSES)}, not {name!r}')
    for index in data.get("model-index") or []:
        for result in index.get("results", [None]):
            if not {"task", "dataset", "metrics"} <= (result or {}).keys():
                errors.append('"model-index" results need task, dataset and metrics')
    if kind == "space":
        errors += [f'"{key}" must be one of {sorted(COLORS)}' for key in ("colorFrom", "colorTo")
                   if data.get(key, "red") not in COLORS]  # fmt: skip
        if data.get("sdk") not in ("gradio", "docker", "static"):
            errors.append('"sdk" must be one of gradio, docker, static')
        if not isinstance(data.get("sdk_version", ""), str):
            errors.append('"sdk_version" must be a string')
        if len(str(data.get("short_description", ""))) > 60:
            errors.append('"short_description" must be at most 60 characters')
    return errors, []


class HubServer:
    """The Hub. Use it in a with statement; on leaving, every connection is closed and its port refuses.

    Attributes:
        requests: (method, path with query, status, token or None) in the order of arrival; status 0 is no answer.
        part_size: larger files are uploaded in parts of this many bytes.
    """

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tokens: dict[str, Token] = {}
        self.store: dict[str, bytes] = {}  # sha256 -> large file
        self.parts: dict[tuple[str, int], bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, int, str | None]] = []
        self.part_size = 2**20
        self.lock = threading.RLock()
        self.closed = threading.Event()
        self.sockets: set[socket.socket] = set()
        self.servers: list[ThreadingHTTPServer] = []

    def __enter__(self) -> HubServer:
        for serve in (self.serve_hub, self.serve_store):
            handler = type("Handler", (_Handler,), {"hub": self, "serve": staticmethod(serve)})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.daemon_threads, server.block_on_close = True, False
            self.servers.append(server)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url, self.store_url = (f"http://127.0.0.1:{server.server_port}" for server in self.servers)
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        for server in self.servers:
            server.shutdown()
            server.server_close()
        for connection in list(self.sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def add_token(self, token: str, user: str, role: str = "write", orgs: tuple[str, ...] = ()) -> None:
        """Let a token act for user and, with role "write", write into what is theirs or their organisations'."""
        self.tokens[token] = Token(user, role, orgs)

    def env(self, token: str | None = None, home: Path | None = None) -> dict[str, str]:
        """Environment variables of a process that talks to this Hub and to no other."""
        variables = {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token or "",
            "HUGGING_FACE_HUB_TOKEN": "",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if home is not None:
            variables |= {"HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
        return variables

    def repo(self, id: str, kind: str = "model", private: bool = False) -> Repo:
        """The repository of that name; made, as the Hub makes it, where it does not exist."""
        with self.lock:
            if (kind, id) not in self.repos:
                self.repos[kind, id] = Repo(id, kind, private)
            return self.repos[kind, id]

    def fail(
        self,
        method: str,
        path_regex: str,
        status: int | None = None,
        kind: str | None = None,
        times: float = 1,
        after: int = 0,
        retry_after: int | None = None,
        rate: float = 2,
    ) -> None:
        """Answer the next requests that match badly.

        Args:
            method: "GET", "POST", ..., or "*".
            path_regex: searched for in the path with its query.
            status: answer with this code; nothing is carried out.
            kind: "silent" never answers; "drop" resets and "close" ends the connection in place of an answer; "lost"
                carries the request out and then resets; of the answer's body, "slow" sends rate bytes a second,
                "truncate" half and then ends the connection, "cut" half and then resets it, "stall" half and then
                nothing more, and "flip" one bit wrong.
            times: how many requests; math.inf for all.
            after: how many matching requests are first answered well.
        """
        if (status is None) == (kind is None) or (kind is not None and kind not in FAULTS):
            raise ValueError(f"give a status or one kind of {sorted(FAULTS)}")
        self.faults.append(Fault(method, re.compile(path_regex), status, kind, times, after, retry_after, rate))

    def fault(self, method: str, path: str) -> Fault | None:
        """The fault that befalls this request, if any; counted."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method in ("*", method) and fault.path.search(path):
                    if fault.after > 0:
                        fault.after -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None

    # ---- who may do what

    def token_of(self, request: _Handler) -> str | None:
        scheme, _, token = (request.headers.get("Authorization") or "").partition(" ")
        return token if scheme == "Bearer" and token else None

    def who(self, request: _Handler) -> Token | None:
        token = self.token_of(request)
        if token is not None and token not in self.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.tokens[token] if token is not None else None

    def readable(self, request: _Handler, kind: str, id: str) -> Repo:
        who, repo = self.who(request), self.repos.get((kind, id))
        if repo is None or (repo.private and (who is None or id.split("/")[0] not in (who.user, *who.orgs))):
            # The real Hub gives no code with 401; over https the client infers one, over http it must be told.
            raise Refusal(404 if who else 401, "Repository not found" if who else "Invalid username or password.",
                          "RepoNotFound")  # fmt: skip
        return repo

    def check_write(self, request: _Handler, namespace: str, message: str) -> None:
        who = self.who(request)
        if who is None:
            raise Refusal(401, "Invalid username or password.")
        if who.role != "write" or namespace not in (who.user, *who.orgs):
            raise Refusal(403, message)

    def writable(self, request: _Handler, kind: str, id: str) -> Repo:
        repo = self.readable(request, kind, id)
        message = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
        self.check_write(request, id.split("/")[0], message)
        return repo

    def sha(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # ---- the Hub

    def serve_hub(self, request: _Handler, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        for method, pattern, function in ROUTES:
            found = pattern.fullmatch(path)
            if found and request.command in method.split():
                arguments = {name: unquote(value or "") for name, value in found.groupdict().items()}
                if "kind" in arguments:
                    arguments["kind"] = KINDS[arguments["kind"].rstrip("/") or "models"]
                return function(self, request, query, body, **arguments)
        raise Refusal(404, f"this Hub has no {request.command} {path}")

    def serve_store(self, request: _Handler, path: str, query: dict[str, list[str]], body: bytes) -> Answer:
        """Signed addresses: they need no token, and S3 refuses one."""
        if request.headers.get("Authorization"):
            return Answer(400, b"Only one auth mechanism allowed")
        oid = path.rpartition("/")[2]
        if request.command == "PUT":
            if "part" in query:
                self.parts[oid, int(query["part"][0])] = body
            else:
                self.store[oid] = body
            return Answer(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if oid not in self.store:
            return Answer(404)
        return ranged(request, self.store[oid], {"ETag": f'"{oid}"'})


def whoami(hub: HubServer, request: _Handler, query: dict, body: bytes) -> Answer:
    who = hub.who(request)
    if who is None:
        raise Refusal(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name} for name in who.orgs]
    return json_answer({"type": "user", "name": who.user, "orgs": orgs, "auth": {"type": "access_token", "accessToken":
                        {"displayName": "test", "role": who.role}}})  # fmt: skip


def create(hub: HubServer, request: _Handler, query: dict, body: bytes) -> Answer:
    asked = json.loads(body)
    who, kind = hub.who(request), asked.get("type") or "model"
    namespace = asked.get("organization") or (who.user if who else "")
    refusal = f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"'
    hub.check_write(request, namespace, refusal)
    id = f"{namespace}/{asked['name']}"
    url = f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{id}"
    with hub.lock:
        if (kind, id) in hub.repos:
            raise Refusal(409, f"You already created this {kind} repo: {id}", url=url)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        repo = Repo(id, kind, private, sdk=asked.get("sdk"), hardware=asked.get("hardware"))
        hub.repos[kind, id] = repo
    for name in ("variables", "secrets"):
        getattr(repo, name).update({item["key"]: item["value"] for item in asked.get(name) or []})
    return json_answer({"url": url, "name": id, "id": id})


def delete(hub: HubServer, request: _Handler, query: dict, body: bytes) -> Answer:
    asked = json.loads(body)
    kind, id = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
    hub.writable(request, kind, id)
    del hub.repos[kind, id]
    return json_answer({})


def validate_yaml(hub: HubServer, request: _Handler, query: dict, body: bytes) -> Answer:
    hub.who(request)
    asked = json.loads(body)
    errors, warnings = card_errors(asked["content"], asked.get("repoType", "model"))
    report = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    return json_answer(report, 400 if errors else 200)


def repo_info(
    hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str = "main"
) -> Answer:
    repo = hub.readable(request, kind, id)
    sha = hub.sha(repo, rev or "main")
    siblings = []
    for path, file in repo.history[sha].files.items():
        row: dict[str, Any] = {"rfilename": path}
        if query.get("blobs", [""])[0].lower() in ("1", "true"):
            row |= {"size": file.size, "blobId": file.blob_id}
            if file.lfs:
                row["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        siblings.append(row)
    info = {"_id": "0", "id": id, "author": id.split("/")[0], "sha": sha, "private": repo.private, "disabled": False,
            "gated": "auto" if repo.gated else False, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
            "lastModified": DATE, "createdAt": DATE}  # fmt: skip
    if kind == "space":
        info |= {"sdk": repo.sdk, "runtime": runtime(repo)}
    return json_answer(info)


def rows(repo: Repo, sha: str, paths: Callable[[str], bool], expand: bool) -> list[dict]:
    """The Hub's lines on the files and folders that paths() wants."""
    files, found = repo.history[sha].files, []
    folders = {folder for path in files for folder in parents(path)}
    last = {"id": sha, "title": repo.history[sha].title, "date": DATE}
    for path in sorted({*files, *folders}):
        if not paths(path):
            continue
        if path in folders:
            row: dict[str, Any] = {"type": "directory", "oid": git_sha1(path.encode()), "size": 0, "path": path}
        else:
            file = files[path]
            row = {"type": "file", "oid": file.blob_id, "size": file.size, "path": path}
            if file.lfs:
                row["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
        found.append(row | ({"lastCommit": last} if expand else {}))
    return found


def parents(path: str) -> list[str]:
    """a/b/c -> a, a/b"""
    names = path.split("/")
    return ["/".join(names[:n]) for n in range(1, len(names))]


def tree(
    hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str, folder: str = ""
) -> Answer:
    repo = hub.readable(request, kind, id)
    recursive, expand = (query.get(name, [""])[0].lower() in ("1", "true") for name in ("recursive", "expand"))
    prefix = f"{folder}/" if folder else ""

    def wanted(path: str) -> bool:
        return path.startswith(prefix) and (recursive or "/" not in path[len(prefix) :])

    listed = rows(repo, hub.sha(repo, rev), wanted, expand)
    if folder and not listed:
        raise Refusal(404, f"{folder} does not exist on {rev}", "EntryNotFound")
    return json_answer(listed)


def paths_info(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str) -> Answer:
    repo, asked = hub.readable(request, kind, id), parse_qs(body.decode())
    wanted = set(asked.get("paths", []))
    expand = asked.get("expand", [""])[0].lower() == "true"
    return json_answer(rows(repo, hub.sha(repo, rev), wanted.__contains__, expand))


def refs(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str) -> Answer:
    repo = hub.readable(request, kind, id)

    def listed(names: dict[str, str], prefix: str) -> list[dict]:
        return [{"name": n, "ref": f"refs/{prefix}/{n}", "targetCommit": sha} for n, sha in names.items()]

    heads, tags = listed(repo.branches, "heads"), listed(repo.tags, "tags")
    return json_answer({"branches": heads, "tags": tags, "converts": [], "pullRequests": []})


def commits(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str) -> Answer:
    repo = hub.readable(request, kind, id)
    hub.sha(repo, rev)
    author = [{"user": id.split("/")[0]}]
    return json_answer([
        {"id": c.sha, "title": c.title, "message": c.description, "authors": author, "date": DATE}
        for c in repo.log(rev)
    ])


def auth_check(
    hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, write: str = ""
) -> Answer:
    repo = hub.writable(request, kind, id) if write else hub.readable(request, kind, id)
    check_gate(hub, request, repo)
    return json_answer({})


def preupload(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str) -> Answer:
    repo = hub.writable(request, kind, id)
    there = repo.history[hub.sha(repo, rev)].files
    files = []
    for asked in json.loads(body)["files"]:
        path = asked["path"]
        lfs = is_lfs(path, base64.b64decode(asked["sample"]), asked["size"])
        row = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        files.append(row | ({"oid": there[path].etag} if path in there else {}))
    return json_answer({"files": files, "commitOid": hub.sha(repo, rev)})


def lfs_batch(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str) -> Answer:
    hub.writable(request, kind, id)
    objects = []
    for asked in json.loads(body)["objects"]:
        oid, size = asked["oid"], asked["size"]
        row: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in hub.store:
            href, header = f"{hub.store_url}/{id}/{oid}", {}
            if size > hub.part_size:
                numbers = range(1, -(-size // hub.part_size) + 1)
                header = {f"{n:05d}": f"{href}?part={n}&signature=x" for n in numbers}
                header["chunk_size"] = str(hub.part_size)
                href = f"{hub.url}/api/complete_multipart?signature=x"
            else:
                href += "?signature=x"
            verify = {"href": hub.url + request.path.removesuffix("batch") + "verify"}
            row["actions"] = {"upload": {"href": href, "header": header}, "verify": verify}
        objects.append(row)
    return json_answer({"transfer": "basic", "objects": objects})


def complete_multipart(hub: HubServer, request: _Handler, query: dict, body: bytes) -> Answer:
    asked = json.loads(body)
    oid, parts = asked["oid"], []
    for part in sorted(asked["parts"], key=lambda part: part["partNumber"]):
        content = hub.parts.get((oid, part["partNumber"]))
        if content is None or part["etag"].strip('"') != hashlib.md5(content).hexdigest():
            raise Refusal(400, f"part {part['partNumber']} is missing or another")
        parts.append(content)
    hub.store[oid] = b"".join(parts)
    return json_answer({})


def lfs_verify(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str) -> Answer:
    hub.writable(request, kind, id)
    asked = json.loads(body)
    content = hub.store.get(asked["oid"])
    if content is None or (hashlib.sha256(content).hexdigest(), len(content)) != (asked["oid"], asked["size"]):
        hub.store.pop(asked["oid"], None)
        raise Refusal(400, "the uploaded object has another size or sha256")
    return json_answer({"message": "ok"})


def commit(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str) -> Answer:
    repo = hub.writable(request, kind, id)
    header, changes = {}, {}
    with repo.lock:
        if rev not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        there = repo.history[repo.branches[rev]].files
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            path = value.get("path")
            if key == "header":
                header = value
            elif key == "file":
                content = base64.b64decode(value["content"])
                if len(content) > LFS_ABOVE:
                    raise Refusal(400, f"{path} is too large for git: upload it to the large file store")
                changes[path] = File(content, False)
            elif key == "lfsFile":
                if value["oid"] not in hub.store:
                    raise Refusal(400, "Your push was rejected because an LFS pointer pointed to a file that does not "
                                  f"exist: {path}")  # fmt: skip
                changes[path] = File(hub.store[value["oid"]], True)
            elif key == "deletedFile":
                if path not in there:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                changes[path] = None
            elif key == "deletedFolder":
                changes |= {name: None for name in there if name.startswith(path.rstrip("/") + "/")}
        if header.get("parentCommit") not in (None, repo.branches[rev]):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        if "README.md" in changes and changes["README.md"] is not None:
            errors, _ = card_errors(changes["README.md"].content.decode(), kind)
            if errors:
                raise Refusal(400, f"Invalid metadata in README.md: {errors[0]}")
        sha = repo.put(changes, header["summary"], rev, header.get("description", ""))
    url = f"{hub.url}/{'' if kind == 'model' else kind + 's/'}{id}/commit/{sha}"
    return json_answer({"success": True, "commitOid": sha, "commitUrl": url})


def tag(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str) -> Answer:
    repo = hub.writable(request, kind, id)
    if request.command == "DELETE":
        if repo.tags.pop(rev, None) is None:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return json_answer({})
    name = json.loads(body)["tag"]
    if name in repo.tags:
        raise Refusal(409, "Tag reference exists already")
    repo.tags[name] = hub.sha(repo, rev)
    return json_answer({})


def branch(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str) -> Answer:
    repo = hub.writable(request, kind, id)
    if request.command == "DELETE":
        if rev == "main" or repo.branches.pop(rev, None) is None:
            raise Refusal(403 if rev == "main" else 404, f"can not delete the branch {rev}")
        return json_answer({})
    if rev in repo.branches:
        raise Refusal(409, "Reference already exists")
    repo.branches[rev] = hub.sha(repo, json.loads(body or b"{}").get("startingPoint", "main"))
    return json_answer({})


def settings(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str) -> Answer:
    repo, asked = hub.writable(request, kind, id), json.loads(body)
    if "visibility" in asked:
        repo.private = asked["visibility"] == "private"
    if "gated" in asked:
        repo.gated = bool(asked["gated"])
    return json_answer({"private": repo.private})


# ---- Spaces


def runtime(repo: Repo) -> dict:
    return {"stage": "RUNNING", "hardware": {"current": repo.hardware, "requested": repo.hardware}, "gcTimeout": None}


def space_runtime(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str) -> Answer:
    return json_answer(runtime(hub.readable(request, kind, id)))


def space_hardware(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str) -> Answer:
    repo = hub.writable(request, kind, id)
    repo.hardware = json.loads(body)["flavor"]
    return json_answer(runtime(repo))


def space_restart(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str) -> Answer:
    return json_answer(runtime(hub.writable(request, kind, id)))


def space_values(hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, what: str) -> Answer:
    """Variables and secrets: listed, set, deleted. A secret's value never comes back."""
    repo = hub.writable(request, kind, id)
    values = getattr(repo, what)
    if request.command == "POST":
        asked = json.loads(body)
        values[asked["key"]] = asked["value"]
    elif request.command == "DELETE":
        values.pop(json.loads(body)["key"], None)
    shown = {"variables": lambda value: {"value": value, "updatedAt": DATE}, "secrets": lambda _: {"updatedAt": DATE}}
    return json_answer({key: shown[what](value) for key, value in values.items()})


# ---- downloads


def check_gate(hub: HubServer, request: _Handler, repo: Repo) -> None:
    who = hub.who(request)
    if repo.gated and (who is None or repo.id.split("/")[0] not in (who.user, *who.orgs)):
        way_out = "ask for access on its page" if who else "You must be authenticated to access it"
        raise Refusal(403 if who else 401, f"Access to {repo.kind} {repo.id} is restricted. {way_out}.", "GatedRepo")


def at(hub: HubServer, request: _Handler, kind: str, id: str, rev: str, path: str) -> tuple[str, File, dict[str, str]]:
    """A file at a revision, and the headers that go with it."""
    repo = hub.readable(request, kind, id)
    check_gate(hub, request, repo)
    sha = hub.sha(repo, rev)
    file = repo.history[sha].files.get(path)
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    return sha, file, {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}


def resolve(
    hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str, path: str
) -> Answer:
    sha, file, headers = at(hub, request, kind, id, rev, path)
    if not file.lfs:
        location = f"/api/resolve-cache/{kind}s/{id}/{sha}/{quote(path, safe='')}?etag={file.etag}"
        return Answer(307, b"Temporary Redirect", {**headers, "Location": location})
    hub.store.setdefault(file.sha256, file.content)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size), "ETag": f'"{file.blob_id}"'}
    return Answer(302, b"Found", {**headers, "Location": f"{hub.store_url}/{id}/{file.sha256}?signature=x"})


def resolve_cache(
    hub: HubServer, request: _Handler, query: dict, body: bytes, kind: str, id: str, rev: str, path: str
) -> Answer:
    _, file, headers = at(hub, request, kind, id, rev, path)
    return ranged(request, file.content, {**headers, "ETag": f'"{file.etag}"', "Content-Type": "text/plain"})


def ranged(request: _Handler, content: bytes, headers: dict[str, str]) -> Answer:
    """All of content, or the range of it that was asked for."""
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if not asked:
        return Answer(200, content, headers)
    start, end = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
    if start >= len(content):
        return Answer(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
    return Answer(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})


_REPO = r"/api/(?P<kind>models|spaces|datasets)/(?P<id>[^/]+/[^/]+)"
_SPACE = r"/api/(?P<kind>spaces)/(?P<id>[^/]+/[^/]+)"
_GIT = r"/(?P<kind>spaces/|datasets/)?(?P<id>[^/]+/[^/]+)"
_REV = r"/(?P<rev>[^/]+)"
ROUTES: list[tuple[str, re.Pattern, Callable[..., Answer]]] = [
    (method, re.compile(pattern), function)
    for method, pattern, function in [
        ("GET", "/api/whoami-v2", whoami),
        ("POST", "/api/repos/create", create),
        ("DELETE", "/api/repos/delete", delete),
        ("POST", "/api/validate-yaml", validate_yaml),
        ("POST", "/api/complete_multipart", complete_multipart),
        ("GET", rf"{_REPO}(/revision{_REV})?", repo_info),
        ("GET", rf"{_REPO}/tree{_REV}(/(?P<folder>.+))?", tree),
        ("POST", rf"{_REPO}/paths-info{_REV}", paths_info),
        ("GET", rf"{_REPO}/refs", refs),
        ("GET", rf"{_REPO}/commits{_REV}", commits),
        ("GET", rf"{_REPO}/auth-check(?P<write>/write)?", auth_check),
        ("POST", rf"{_REPO}/preupload{_REV}", preupload),
        ("POST", rf"{_REPO}/commit{_REV}", commit),
        ("POST DELETE", rf"{_REPO}/tag{_REV}", tag),
        ("POST DELETE", rf"{_REPO}/branch{_REV}", branch),
        ("PUT", rf"{_REPO}/settings", settings),
        ("GET", rf"{_SPACE}/runtime", space_runtime),
        ("POST", rf"{_SPACE}/hardware", space_hardware),
        ("POST", rf"{_SPACE}/(restart|pause|sleeptime)", space_restart),
        ("GET POST DELETE", rf"{_SPACE}/(?P<what>variables|secrets)", space_values),
        ("GET HEAD", rf"/api/resolve-cache/(?P<kind>models|spaces|datasets)/(?P<id>[^/]+/[^/]+){_REV}/(?P<path>.+)",
         resolve_cache),
        ("POST", rf"{_GIT}\.git/info/lfs/objects/batch", lfs_batch),
        ("POST", rf"{_GIT}\.git/info/lfs/objects/verify", lfs_verify),
        ("GET HEAD", rf"{_GIT}/resolve{_REV}/(?P<path>.+)", resolve),
    ]
]  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads a request, has it answered, sends the answer as well or badly as it was asked to."""

    hub: HubServer
    serve: Callable[..., Answer]
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.hub.sockets.add(self.connection)

    def finish(self) -> None:
        self.hub.sockets.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with suppress(OSError):  # the client went away, or the test is over
            super().handle()

    def log_message(self, *_: object) -> None:
        pass

    def read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer_request(self) -> None:
        body = self.read_body()
        fault = self.hub.fault(self.command, self.path)
        kind = fault.kind if fault else None
        if kind in ("silent", "drop", "close"):
            answer = Answer(0)
        elif fault and fault.status:
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            answer = json_answer({"error": "a fault on demand"}, fault.status, headers)
        else:
            path, _, query = self.path.partition("?")
            try:
                answer = self.serve(self, path, parse_qs(query), body)
            except Refusal as refusal:
                answer = refusal.answer
        status = 0 if kind == "lost" else answer.status
        self.hub.requests.append((self.command, self.path, status, self.hub.token_of(self)))
        if kind == "silent":
            self.hub.closed.wait()
            kind = "close"
        if kind in ("drop", "lost"):
            self.reset()
        elif kind == "close":
            self.close_connection = True
        else:
            self.send(answer, kind, fault.rate if fault else 0)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_request

    def send(self, answer: Answer, kind: str | None, rate: float) -> None:
        body = answer.body
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(body) // 2
        if kind == "flip" and body:
            body = body[:half] + bytes([body[half] ^ 1]) + body[half + 1 :]
        if kind in ("truncate", "cut", "stall"):
            body = body[:half]
        if kind == "slow":
            step = max(1, int(rate / 10))
            for start in range(0, len(body), step):
                self.wfile.write(body[start : start + step])
                if self.hub.closed.wait(step / rate):
                    return
            return
        self.wfile.write(body)
        if kind == "cut":
            time.sleep(0.1)  # let the client read what it got before the reset discards it
            self.reset()
        if kind == "stall":
            self.hub.closed.wait()
        if kind in ("truncate", "stall"):
            self.close_connection = True

    def reset(self) -> None:
        """End the connection with an RST."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for end in (self.rfile, self.wfile, self.connection):
            end.close()
        raise ConnectionResetError
