"""Write to the Hugging Face Hub: one commit that is whole or not there, and a sentence for whatever goes wrong.

Knows repositories, commits, tags and tokens through huggingface_hub. Knows nothing of what the files are.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.utils import get_session, httpx, set_client_factory

from gpt2.patience import telling

SILENCE = 30  # seconds without a byte after which a request counts as failed
TELL = 10  # seconds between sentences while the Hub takes its time
WAITS = (1, 4, 15)  # seconds between attempts where the Hub may only be busy
MAX_WAIT = 60  # seconds that we wait when the Hub asks for more
GIVE_UP = 120  # seconds after which there is no other attempt: the client has some of its own for each
PASSING = (408, 429, 500, 502, 503, 504)  # answers that may be others a moment later
NETWORK = (httpx.TransportError, ConnectionError, TimeoutError)  # httpx: also what breaks off in mid-answer
GARBLED = (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError)  # over any other answer
MARK = "Pushed by python -m train.publish"  # in the description of our commits: what is ours may be replaced
FRESH = {".gitattributes", "README.md"}  # all that a repository has when the Hub has made it
TOKENS = "https://huggingface.co/settings/tokens"


class HubError(OSError):
    """What the Hub did not allow: one sentence with the way out."""


class Unreachable(HubError):
    """The Hub is down, busy, or not to be reached; later it may be."""


@dataclass(frozen=True)
class Pushed:
    """What a commit came to."""

    sha: str
    changed: bool  # False where the repository had exactly these files already


class Repository:
    """A repository to write to; made where it is missing.

    Args:
        repo_id: "user/name".
        kind: "model" or "space".
        private: make it so; one that is there already must be.
        say: told what is being waited for.
        waits: seconds between attempts where the Hub may only be busy.
        new: more arguments of HfApi.create_repo, for one that is made.

    Raises:
        HubError: where there is no token, or it may not write there.
    """

    def __init__(
        self,
        repo_id: str,
        kind: str = "model",
        private: bool = False,
        say: Callable[[str], None] = print,
        waits: tuple[int, ...] = WAITS,
        **new: Any,
    ):
        self.repo_id, self.kind, self._say, self._waits = repo_id, kind, say, waits
        _be_impatient()
        self.api = HfApi()
        self.url = f"{self.api.endpoint}/{'spaces/' * (kind == 'space')}{repo_id}"
        self.created = False
        if get_token() is None:
            raise HubError(f"no token for the Hugging Face Hub: set HF_TOKEN, or run `hf auth login` ({TOKENS}).")
        with self.in_words():
            try:
                self.call(self.api.auth_check, repo_id, repo_type=kind, write=True)
            except RepositoryNotFoundError:
                self.call(self.api.create_repo, repo_id, repo_type=kind, private=private, exist_ok=True, **new)
                self.created = True
            self.private = self.call(self._info).private
        if private and not self.private:
            raise HubError(f"{repo_id} is public: make it private at {self.url}/settings, or leave out --private.")

    def commit(
        self, files: dict[str, Path | bytes], owned: Callable[[str], bool], title: str, overwrite: bool = False
    ) -> Pushed:
        """Put files into the repository, all or none.

        Args:
            files: by their name in the repository.
            owned: whether a name there is ours to remove where files lacks it.
            overwrite: also where somebody else has changed the repository since the last push.

        Raises:
            HubError: where it was not done; the repository is then as it was.
        """
        seen: list[str] = []  # the head at each attempt

        def attempt() -> Pushed:
            # Looked at each time: the attempt before may have been done, and only its answer lost.
            head = self._info()
            seen.append(head.sha)
            stale = {file.rfilename for file in head.siblings or []} - set(files)
            if not overwrite:
                self._check_ours(head)
            operations = [CommitOperationAdd(name, content) for name, content in files.items()]
            operations += [CommitOperationDelete(name) for name in sorted(stale) if owned(name)]
            done = self.api.create_commit(
                self.repo_id,
                operations,
                repo_type=self.kind,
                commit_message=title,
                commit_description=MARK,
                parent_commit=head.sha,
            )
            return Pushed(done.oid, done.oid != seen[0])

        with self.in_words():
            return self.call(attempt)

    def tag(self, name: str, sha: str, moves: bool) -> None:
        """Give a commit a name.

        Args:
            moves: take it from another commit that has it.

        Raises:
            HubError: where another has it and it does not move.
        """
        with self.in_words():
            refs = self.call(self.api.list_repo_refs, self.repo_id, repo_type=self.kind)
            there = {ref.name: ref.target_commit for ref in refs.tags}
            if there.get(name) == sha:
                return
            if name in there and not moves:
                raise HubError(
                    f"the tag {name} of {self.repo_id} names commit {there[name][:8]} already and was left there; the "
                    f"files are in commit {sha[:8]}. Choose another --tag."
                )
            if name in there:
                try:
                    self.call(self.api.delete_tag, self.repo_id, tag=name, repo_type=self.kind)
                except HfHubHTTPError as error:
                    if _status(error)[0] != 404:  # done by an attempt whose answer was lost
                        raise
            make = self.api.create_tag
            self.call(make, self.repo_id, tag=name, revision=sha, repo_type=self.kind, exist_ok=True)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of the Hub's client, again where the Hub may only be busy. Those that write can be repeated:
        what was done and not answered is found done."""
        started = time.monotonic()
        for wait in (*self._waits, None):
            try:
                with telling(lambda seconds: self._say(f"Waiting for the Hub, {seconds:.0f} s now ..."), TELL):
                    return function(*args, **kwargs)
            except Exception as error:  # whatever an unknown server makes the client raise
                if wait is None or time.monotonic() - started > GIVE_UP or not _is_passing(error):
                    raise
                asked = _status(error)[1].get("Retry-After", "")
                wait = min(MAX_WAIT, max(wait, int(asked) if asked.isdigit() else 0))
                self._say(f"The Hub did not take it ({_reason(error)}); trying again in {wait} s ...")
                time.sleep(wait)

    @contextlib.contextmanager
    def in_words(self) -> Iterator[None]:
        """Turn what the client raises into a HubError."""
        try:
            yield
        except HubError:
            raise
        except Exception as error:
            kind = Unreachable if _is_passing(error) else HubError
            raise kind(_sentence(error, self.repo_id, self.kind)) from None

    def _info(self) -> Any:
        return self.api.repo_info(self.repo_id, repo_type=self.kind, timeout=SILENCE)

    def _check_ours(self, head: Any) -> None:
        commits = self.api.list_repo_commits(self.repo_id, repo_type=self.kind, revision=head.sha)
        fresh = len(commits) <= 1 and {file.rfilename for file in head.siblings or []} <= FRESH
        if not fresh and MARK not in commits[0].message:
            raise HubError(
                f"{self.repo_id} was changed by somebody else since the last push (commit {head.sha[:8]}, "
                f"{commits[0].title!r}): look at it first. --overwrite replaces the files; the Hub keeps the old ones "
                "in its history."
            )


def _sentence(error: Exception, repo_id: str, kind: str) -> str:
    """What went wrong, and the way out."""
    status, _ = _status(error)
    reason = _reason(error)
    return {
        400: f"the Hub did not accept what was sent ({reason}).",
        401: "the Hub does not accept the token (HF_TOKEN, or the one that `hf auth login` saved): make one that may "
        f"write at {TOKENS}.",
        402: f"the Hub wants a paid plan for {repo_id} ({reason}); for a Space, --hardware zero-a10g is free.",
        403: f"the token may not write to {repo_id}: check the name, and at {TOKENS} that the token may write there.",
        404: f"there is no {kind} {repo_id} on the Hub that the token may see: check the name.",
        409: f"{repo_id} was changed at the same moment by somebody else; nothing was pushed. Run the command again.",
        412: f"{repo_id} was changed at the same moment by somebody else; nothing was pushed. Run the command again.",
        413: f"the Hub says that a file is too large for {repo_id} ({reason}).",
        429: "the Hub asks for fewer requests; nothing is lost. Run the command again in a few minutes.",
    }.get(status) or _other(error, status, reason)


def _other(error: Exception, status: int | None, reason: str) -> str:
    if status:
        return f"the Hub has a problem of its own ({reason}); nothing is lost. Run the command again later."
    if _has(error, NETWORK):
        return f"the Hub could not be reached, or did not answer ({reason}). Check the network and run it again."
    if _has(error, GARBLED):
        return f"the Hub's answer makes no sense ({reason}). Is it a proxy's? Run the command again later."
    return f"the Hub's client refused: {reason}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and its causes: what fails in an upload comes wrapped."""
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: Exception) -> tuple[int | None, Any]:
    """(status, headers) of the Hub's answer; (None, {}) where there was none."""
    for cause in _chain(error):
        if isinstance(cause, HfHubHTTPError):
            return cause.response.status_code, cause.response.headers
    return None, {}


def _is_passing(error: Exception) -> bool:
    status, _ = _status(error)
    return status in PASSING if status else _has(error, NETWORK + GARBLED)


def _has(error: Exception, kinds: tuple[type[Exception], ...]) -> bool:
    return any(isinstance(cause, kinds) for cause in _chain(error))


def _reason(error: Exception) -> str:
    """In a few words: the Hub's own, where it has some. Whatever answers may repeat the token, which is left out."""
    *_, cause = _chain(error)
    status, _ = _status(error)
    said = next((e.server_message for e in _chain(error) if isinstance(e, HfHubHTTPError) and e.server_message), "")
    said = said or ("" if status else str(cause).strip() or type(cause).__name__)
    said = said.replace(get_token() or "\0", "(the token)")
    return ": ".join(filter(None, [str(status or ""), said.splitlines()[0][:200] if said else ""]))


def _be_impatient() -> None:
    """Let no request wait for ever: the Hub's client asks for no limit at most of them. Holds for this process."""
    own = get_session().event_hooks["request"]

    def limit(request: httpx.Request) -> None:
        asked = request.extensions.get("timeout") or {}
        phases = ("connect", "read", "write", "pool")
        request.extensions["timeout"] = {phase: min(asked.get(phase) or SILENCE, SILENCE) for phase in phases}

    set_client_factory(lambda: httpx.Client(event_hooks={"request": [*own, limit]}, follow_redirects=True))
