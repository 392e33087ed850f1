"""A Space: exactly the files that are sent there are enough to run the page with a model of the Hub."""

from __future__ import annotations

import importlib.metadata
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from gradio_client import Client

from train import space


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder that holds what a Space would."""
    for name, content in space.contents("ada/tiny", None).items():
        path = tmp_path / "space" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    return tmp_path / "space"


@pytest.fixture
def pushed(hub, tiny_checkpoint) -> str:
    """The id of a model on the Hub."""
    repo = hub.repo("ada/tiny")
    repo.commit({path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()})
    return "ada/tiny"


@contextmanager
def page(python: str, folder: Path, **env: str) -> Iterator[Client]:
    """The page as a Space starts it: its app.py, in its folder, with nothing of this project beside it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    log = folder.parent / "page.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [python, "app.py"], cwd=folder, env={**inherited, "PORT": str(port), **env}, stdout=out, stderr=out
        )
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text(encoding="utf-8")
                time.sleep(0.1)
        yield Client(f"http://127.0.0.1:{port}", verbose=False)
    finally:
        process.terminate()
        process.wait(30)


def check(python: str, files: Path, hub, pushed: str, home: Path) -> None:
    env = hub.env(None, home) | {"MODEL_ID": pushed, "MODEL_REVISION": hub.repo(pushed).head, "SYSTEM": "spaces"}
    with page(python, files, **env) as client:
        info = client.predict(api_name="/model_info")
        assert (info["name"], info["sha"], info["fallback"]) == (
            f"{pushed}@{hub.repo(pushed).head}",
            hub.repo(pushed).head,
            False,
        )
        assert client.predict("the ", 5, 50, api_name="/generate")


def test_its_files_run_the_page_with_the_pushed_model(files, hub, pushed, tmp_path):
    check(sys.executable, files, hub, pushed, tmp_path / "home")


@pytest.mark.network
@pytest.mark.slow
def test_its_files_and_its_requirements_are_all_that_it_needs(files, hub, pushed, tmp_path):
    """In a fresh environment, with the PyTorch that runs these tests and what requirements.txt asks for."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=120)
    python = str(tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    torch = "torch==" + importlib.metadata.version("torch").partition("+")[0]
    install = [python, "-m", "pip", "install", "-q", torch, "-r", str(files / "requirements.txt")]
    subprocess.run(install, check=True, timeout=1200)
    check(python, files, hub, pushed, tmp_path / "home")
