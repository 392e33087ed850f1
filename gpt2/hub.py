"""A checkpoint on the Hugging Face Hub: brought into the Hub's cache on this disk and checked, or found there.

Talks to the Hub through its own client, but keeps the time itself: left alone with a silent Hub, the client waits for
minutes or for ever, and over plain HTTP it notices no damage. Knows nothing of what the files say.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2 import overlap
from gpt2.config import MAX_PARAMETERS
from gpt2.files import MAX_JSON, WEIGHTS, CheckpointError, Found, lack
from gpt2.patience import PATIENCE, Silence, patiently

if TYPE_CHECKING:  # else only where it is needed: a local checkpoint need not wait half a second for it
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

# All that we read, and how many bytes it may have.
ESSENTIAL = {
    "config.json": MAX_JSON,
    "vocab.json": MAX_JSON,
    "merges.txt": MAX_JSON,
    "tokenizer.json": MAX_JSON,
    WEIGHTS: 4 * MAX_PARAMETERS,
}
WELCOME = {
    "README.md": MAX_JSON,
    "training.json": MAX_JSON,
    "metrics.jsonl": MAX_JSON,
    "samples.jsonl": MAX_JSON,
    overlap.FILE: overlap.MAX_FILE,
}
QUESTION = 0.75  # of PATIENCE for the first question: its answer has a few kB, and the page's visitors wait for it
MUCH = 10 * 2**20  # bytes of a download after which to begin again costs more than to sit out a stall:
LONG_PATIENCE = 7.5  # seconds of silence are borne from there on
NEWS = 2**15  # bytes of a file that are news: what drips in by fewer a PATIENCE, 8 kB/s, is as good as silent
LEFT_BEHIND = 3600  # seconds since anything was written to a download that nobody goes on with
TOKENS = "https://huggingface.co/settings/tokens"

_log = logging.getLogger(__name__)


def find_on_hub(name: str) -> Found:
    """Locate "user/repo" or "user/repo@revision": on the Hub, or else in the Hub's cache on this disk.

    The Hub's word on the revision counts. Where it can not be had within PATIENCE seconds of silence, a whole copy of
    the same name in the cache is used, and a warning says so.

    Raises:
        CheckpointError: where it is in neither place, or what the Hub has is no checkpoint that may be opened.
    """
    from huggingface_hub import get_token, is_offline_mode
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    repo_id, _, revision = name.partition("@")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is not a valid Hub id: {error}") from error
    reason, offline = "HF_HUB_OFFLINE is set, so that the Hub was not asked", is_offline_mode()
    if not offline:
        try:
            return _fetch(repo_id, revision, name)
        except CheckpointError:
            raise
        except Exception as error:  # whatever an unknown server, or a proxy in its place, makes the client raise
            reason = _reason(error, repo_id, revision).replace(get_token() or "\0", "(the token)")
    directory = _cached(repo_id, revision)
    if directory is None:
        raise CheckpointError(
            f"no directory {name!r} here, no whole copy of it in the Hub's cache on this disk, and {reason}."
        )
    if not offline:
        _log.warning("%s: %s. Using the copy in the Hub's cache, commit %s.", name, reason, directory.name[:8])
    return Found(directory, name, directory.name)


def _fetch(repo_id: str, revision: str, name: str) -> Found:
    """Bring the revision's files into the cache; a file that was brought is used only once its checksum is seen."""
    from huggingface_hub import constants

    info, token = _ask(repo_id, revision)
    if not re.fullmatch("[0-9a-f]{40}", info.sha):
        raise OSError(f"the Hub names no commit, but {info.sha[:80]!r}")
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}"
    directory = folder / "snapshots" / info.sha
    missing = [file for file in _choose(info.siblings, name) if not _has_size(directory / file.rfilename, file.size)]
    for is_last in (False, True):
        failure: BaseException | None = None
        try:
            _download(missing, repo_id, info.sha, token, folder)
        except BaseException as error:  # Ctrl-C too: what has come by now is not to stay unchecked
            failure = error
        missing = [file for file in missing if not _is_intact(directory / file.rfilename, file)]
        if not isinstance(failure, Exception | None):
            raise failure
        if not missing:
            break
        if is_last or isinstance(failure, Silence):
            raise failure or OSError(f"{missing[0].rfilename} came damaged, twice")
    if revision != info.sha:
        _remember(folder / "refs" / (revision or "main"), info.sha)
    return Found(directory, name, info.sha)


def _ask(repo_id: str, revision: str) -> tuple[ModelInfo, bool | None]:
    """The Hub's description of a revision, and what to send as a token from now on: None for the user's own."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import httpx

    def ask(token: bool | None) -> ModelInfo:
        seconds = 2 * PATIENCE  # patiently's end first, also where the name of the Hub's machine is looked up
        what = {"revision": revision or None, "timeout": seconds, "files_metadata": True, "token": token}
        return patiently([lambda: HfApi().model_info(repo_id, **what)], patience=lambda: QUESTION * PATIENCE)[0]

    try:
        return ask(None), None
    except (HfHubHTTPError, httpx.LocalProtocolError, UnicodeError) as error:  # the last two: no header can hold it
        refused = not isinstance(error, HfHubHTTPError) or error.response.status_code == 401
        if get_token() is None or not refused:
            raise
    _log.warning("The Hub does not accept the token of HF_TOKEN or `hf auth login`; trying without it. See %s.", TOKENS)
    return ask(False), False


def _choose(siblings: Sequence[RepoSibling] | None, name: str) -> list[RepoSibling]:
    """Those of a repository's files that are read.

    Raises:
        CheckpointError: where they are no checkpoint, or one too large.
    """
    files = {file.rfilename: file for file in siblings or ()}
    if what := lack(files):
        raise CheckpointError(f"{name} on the Hub {what}")
    chosen = []
    for limits in (ESSENTIAL, WELCOME):
        for file in (files[n] for n in limits if n in files):
            if file.size is not None and file.size <= limits[file.rfilename]:
                chosen.append(file)
            elif limits is ESSENTIAL:
                size = "nobody knows how many" if file.size is None else f"{file.size / 1e6:,.0f}"
                raise CheckpointError(
                    f"{name} on the Hub has a {file.rfilename} of {size} MB; at most "
                    f"{limits[file.rfilename] / 1e6:,.0f} MB are taken."
                )
    return chosen


def _download(files: Sequence[RepoSibling], repo_id: str, sha: str, token: bool | None, folder: Path) -> None:
    """Have the client fetch files into the cache, with one progress bar for all.

    Raises:
        Silence: where nothing comes any more.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils import tqdm

    given_up, moved, total = threading.Event(), 0, sum(file.size for file in files)

    class Mute(tqdm):
        """The client's own bar for each file: shows nothing, and ends a download that nobody waits for any more."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> None:
            nonlocal moved
            moved += n or 0
            if given_up.is_set():
                raise OSError("nobody waits for this file any more")
            if moved > 4 * total + MUCH:  # it is begun again after a failure, but not for ever
                raise OSError("more came than the files have")

    def fetch(file: RepoSibling) -> None:
        how = {"revision": sha, "token": token, "etag_timeout": PATIENCE, "tqdm_class": Mute}
        # Checked at once: this process may be killed while others still come.
        _is_intact(Path(hf_hub_download(repo_id, file.rfilename, **how)), file)

    def on_disk() -> int:
        total = 0
        for path in folder.glob("blobs/*"):
            with contextlib.suppress(OSError):  # finished and renamed just now
                total += path.stat().st_size
        return total

    def news() -> tuple[int, int]:
        """What comes over the network, and what is on the disk: perhaps by another process, for which ours waits."""
        arrived = on_disk() - before
        bar.update(arrived - bar.n)
        return moved // NEWS, arrived

    for left in folder.glob("blobs/*.incomplete"):  # by a process that ended, with our thread or another's in it
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_BEHIND:
                left.unlink()
    # By itself the client writes, and so shows progress, every 10 MiB: at 1 MB/s that looks like silence.
    constants.DOWNLOAD_CHUNK_SIZE = NEWS
    before = on_disk()
    bar = tqdm(total=total, desc=repo_id, unit="B", unit_scale=True, delay=1, disable=None)
    try:
        with bar:
            works = [partial(fetch, file) for file in files]
            patiently(works, news, lambda: LONG_PATIENCE if moved > MUCH else PATIENCE)
    finally:
        given_up.set()


def _remember(ref: Path, sha: str) -> None:
    """Note in the cache, as the client would, which commit a name stands for. Only once that is there as a whole: this
    is how the copy is found when the Hub is not."""
    with contextlib.suppress(OSError):  # a cache that others filled, and we may only read
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.{os.getpid()}")
        new.write_text(sha, encoding="ascii")
        new.replace(ref)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _is_intact(path: Path, file: RepoSibling) -> bool:
    """Whether a file of the cache has the checksum that the Hub names. Where not, it is removed."""
    if path.is_file():
        # The Hub names a large file's sha256, and git's own checksum of a small one.
        start = hashlib.sha256() if file.lfs else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
        with path.open("rb") as opened:
            checksum = hashlib.file_digest(opened, lambda: start).hexdigest()
        if checksum == (file.lfs.sha256 if file.lfs else file.blob_id):
            return True
    for each in (path.resolve(), path):  # what the snapshot's link leads to, then the link
        each.unlink(missing_ok=True)
    return False


def _cached(repo_id: str, revision: str) -> Path | None:
    """The directory of a whole copy in the cache."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo_id, "config.json", revision=revision or None)
    if not isinstance(path, str):
        return None
    directory = Path(path).parent
    return directory if lack([path.name for path in directory.iterdir() if path.is_file()]) is None else None


def _reason(error: BaseException, repo_id: str, revision: str) -> str:
    """Why the Hub did not help, and the way out."""
    from huggingface_hub import constants, errors, get_token
    from huggingface_hub.utils import httpx

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    page = f"{constants.ENDPOINT}/{repo_id}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, Silence):
        status = error.status
    if isinstance(error, errors.GatedRepoError):
        return f"{repo_id} is gated: ask for access at {page} and set HF_TOKEN to a token of yours"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the Hub: choose one of {page}/tree/main"
    if status in (401, 404):
        whom = "the token that was sent" if get_token() else "strangers"
        return (
            f"the Hub shows no {repo_id} to {whom}: check the name; where it is private, set HF_TOKEN to a token that "
            "may read it"
        )
    if status == 403:
        return f"the Hub forbids reading {repo_id} (403): set HF_TOKEN to a token that may read it, see {TOKENS}"
    if status == 429:
        return "the Hub asks for fewer requests (429): try again in a few minutes; with HF_TOKEN set it allows more"
    if status:
        return f"the Hub has a problem of its own ({status}): try again later"
    if isinstance(error, Silence):
        return f"the Hub said nothing for {error.seconds:g} seconds: check the network, or try again later"
    said = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    if isinstance(error, (httpx.TransportError, ConnectionError)):
        return f"the Hub could not be reached ({said}): check the network"
    return f"what the Hub has did not arrive ({said})"
