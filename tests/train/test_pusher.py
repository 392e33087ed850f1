"""--push-to: what the training sends to the Hub, and what it does when the Hub is not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOKEN = "hf_write_4f6a"
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen.\n" * 60
SMALL = ["--preset", "tiny", "--block-size", "32", "--tokenizer", "bpe:270", "--device", "cpu", "--max-steps", "40"]


@pytest.fixture
def command(hub, tmp_path):
    """(words, environment) of a training that pushes to ada/clocks."""
    hub.add_token(TOKEN, "ada", "write")
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    env = {**os.environ, **hub.env(TOKEN, tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "train", "my.txt", *SMALL, "--eval-every", "10", "--push-to", "ada/clocks"]
    return words, env


def finish(command, tmp_path, hub, *more):
    """Run it to its end, which may be a refusal; the token is then in nothing that was said, written or sent."""
    words, env = command
    done = subprocess.run([*words, *more], cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", timeout=300)
    secret, written = env["HF_TOKEN"].encode(), [path for path in tmp_path.rglob("*") if path.is_file()]
    assert secret not in (done.stdout + done.stderr).encode()
    assert not [path for path in written if secret in path.read_bytes()]
    assert not [name for name, content in hub.repo("ada/clocks").files().items() if secret in content]
    return done


def test_the_result_is_on_the_hub_when_the_training_ends(command, hub, tmp_path):
    done = finish(command, tmp_path, hub)
    assert done.returncode == 0, done.stderr
    best = tmp_path / "checkpoints" / "my" / "best"
    files = hub.repo("ada/clocks").files()
    for name in ("model.safetensors", "training.json", "metrics.jsonl"):
        assert files[name] == (best / name).read_bytes()
    assert b"ada/clocks" not in files["training.json"]  # where it goes is no part of what it is
    assert not list((tmp_path / "checkpoints" / "my").glob(".push-*"))


def test_a_hub_that_is_down_does_not_hurt_the_training_and_the_command_to_push_is_said(command, hub, tmp_path):
    hub.fail("GET", ".", status=503, times=9999)
    words, env = command
    done = finish((words, env | {"HF_ENDPOINT": "http://127.0.0.1:9"}), tmp_path, hub)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints" / "my" / "best" / "model.safetensors").exists()
    assert "could not be reached" in done.stderr
    assert "python -m train.publish" in done.stderr and "ada/clocks" in done.stderr


def test_a_token_that_may_not_write_is_told_before_the_training_begins(command, hub, tmp_path):
    hub.add_token("hf_read", "ada", "read")
    words, env = command
    done = finish((words, env | {"HF_TOKEN": "hf_read"}), tmp_path, hub)
    assert done.returncode == 1 and "may not write" in done.stderr
    assert not (tmp_path / "checkpoints" / "my" / "metrics.jsonl").exists()


def test_ctrl_c_ends_the_push_too_and_says_how_to_push(command, hub, tmp_path):
    hub.fail("POST", "/preupload/", kind="silent", times=99)
    words, env = command
    words = [*words[:-2], "--max-steps", "100000", "--patience", "0", *words[-2:]]
    log = tmp_path / "log"
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(words, cwd=tmp_path, env=env, stdout=out, stderr=out)
    deadline = time.monotonic() + 120
    while not any("preupload" in path for _, path, *_ in hub.requests) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, log.read_text(encoding="utf-8")
    said = log.read_text(encoding="utf-8")
    assert "--resume" in said and "python -m train.publish" in said
