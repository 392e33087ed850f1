"""--push-to: every new best checkpoint goes to the Hugging Face Hub while the training goes on.

Each push is `python -m train.publish` in a process of its own, at low priority, from a copy that the next checkpoint
can not change: the Hub can be slow, down or full, and the training never waits for it. Knows nothing of the Hub's
protocol.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from train.upload import Repository, Unreachable

PROJECT = Path(__file__).resolve().parent.parent


class Pusher:
    """Pushes checkpoints of one run, one at a time; a newer one takes the place of one that still waits.

    Args:
        repo_id: "user/name".
        private: for the owner's eyes only.
        result: which of the run's checkpoints is pushed: "best" or "last".
        say: told, in a sentence, what did not work.
    """

    def __init__(self, repo_id: str, private: bool, result: str, say: Callable[[str], None]):
        self._repo_id, self._private, self._result, self._say = repo_id, private, result, say
        self._lock = threading.Lock()
        self._waiting: Path | None = None  # the copy to push next
        self._child: subprocess.Popen | None = None
        self._thread: threading.Thread | None = None
        self._unpushed: Path | None = None  # the newest checkpoint, until the Hub has it
        self._abandoned = False

    def check(self) -> None:
        """See, before hours of training, that the repository is there and may be written to.

        Raises:
            HubError: where it is not, or may not. A Hub that can not be reached is no reason to wait.
        """
        try:
            Repository(self._repo_id, private=self._private, waits=())
        except Unreachable as error:
            self._say(f"{error} The training goes on, and each new best checkpoint is tried anyway.")

    def __call__(self, directory: Path) -> None:
        """A checkpoint is complete: push it once the one before is through."""
        if directory.name != self._result:
            return
        copy = _copy(directory)
        with self._lock:
            self._drop()
            self._waiting, self._unpushed = copy, directory
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()

    def finish(self, directory: Path) -> None:
        """The run is over: wait for what is on its way, then push the result with its final figures."""
        with self._lock:
            self._drop()
            thread = self._thread
        if thread is not None:
            self._say("Waiting for the push that is on its way ...")
            thread.join()
        if subprocess.call([sys.executable, *self._words(directory)], cwd=PROJECT, env=_environment()):
            self._say(f"The training is complete and safe; push it later with:  {self._by_hand(directory)}")

    def abandon(self) -> None:
        """The run was stopped: end what is on its way, and say how to push what is not there."""
        with self._lock:
            self._drop()
            self._abandoned, thread = True, self._thread
            if self._child is not None and self._child.poll() is None:
                self._child.terminate()
        if thread is not None:
            thread.join(timeout=5)
        if self._unpushed is not None:
            self._say(f"The newest checkpoint is not on the Hub; push it with:  {self._by_hand(self._unpushed)}")

    def _work(self) -> None:
        while True:
            with self._lock:
                copy, self._waiting = self._waiting, None
                if copy is None:
                    self._thread = None
                    return
                low = ["nice", "-n", "15"] if shutil.which("nice") else []
                self._child = subprocess.Popen(
                    [*low, sys.executable, *self._words(copy)],
                    cwd=PROJECT,
                    env=_environment(OMP_NUM_THREADS="1", HF_HUB_DISABLE_PROGRESS_BARS="1"),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    encoding="utf-8",
                    errors="replace",
                    start_new_session=True,  # Ctrl-C is the training's to answer
                )
            said = self._child.communicate()[0].strip().splitlines()
            if self._child.returncode and not self._abandoned:
                reason = said[-1].removeprefix("error: ") if said else f"exit code {self._child.returncode}."
                self._say(f"Not pushed: {reason} The training goes on; the next best checkpoint is tried again.")
            with self._lock:
                if self._child.returncode == 0 and self._waiting is None:
                    self._unpushed = None
            shutil.rmtree(copy, ignore_errors=True)

    def _drop(self) -> None:
        if self._waiting is not None:
            shutil.rmtree(self._waiting, ignore_errors=True)
            self._waiting = None

    def _words(self, directory: Path) -> list[str]:
        """What follows python on the command line of a push."""
        private = ["--private"] if self._private else []
        return ["-m", "train.publish", str(directory.absolute()), self._repo_id, *private]

    def _by_hand(self, directory: Path) -> str:
        return shlex.join(["python", *self._words(directory)])


def _copy(directory: Path) -> Path:
    """The checkpoint as it is now, beside it under a temporary name that the next run would sweep away. Its files are
    never written in place but replaced, so the large ones need no second copy on the disk."""
    copy = Path(tempfile.mkdtemp(prefix=".push-", suffix=".tmp", dir=directory.parent))
    for path in directory.iterdir():
        if path.suffix == ".safetensors":
            try:
                os.link(path, copy / path.name)
                continue
            except OSError:  # a file system without links
                pass
        shutil.copyfile(path, copy / path.name)
    return copy


def _environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **more}
