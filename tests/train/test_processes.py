"""The same trainer on several processes and, as far as one machine can tell, on several machines."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from train import state
from train.journal import read_jsonl

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = "--preset tiny --device cpu --dtype float32 --log-every 1 --eval-every 10 --prompts The --dropout 0".split()
pytestmark = pytest.mark.skipif(os.name == "nt", reason="torchrun over Gloo is not tried on Windows")


@pytest.fixture
def launch(tmp_path):
    """launch(2, *flags) starts python -m train on a small text under torchrun, launch(1, ...) plainly; all end with
    the test."""
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog, again and again.\n" * 400, "utf-8")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    started = []

    def run(
        processes: int,
        *flags: str,
        launcher: tuple[str, ...] = ("--standalone",),
        program: tuple[str, ...] = ("-m", "train"),
    ) -> subprocess.Popen:
        torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(processes), *launcher)
        command = [sys.executable, *(torchrun if processes > 1 or len(launcher) > 1 else ()), *program, *flags]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def finished(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    return said


def losses(run_dir: Path) -> list[float]:
    return [entry["loss"] for entry in read_jsonl(run_dir / "metrics.jsonl") if "loss" in entry]


def wait_for_step(run_dir: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() or len(losses(run_dir)) < step:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ranks_of(launcher: subprocess.Popen) -> dict[int, int]:
    """rank -> process id, of the launcher's children."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1]) == launcher.pid:
                variables = (path.parent / "environ").read_bytes().split(b"\0")
                ranks = [int(v.partition(b"=")[2]) for v in variables if v.startswith(b"RANK=")]
                found |= {rank: int(path.parent.name) for rank in ranks}
        except (OSError, ValueError):
            continue
    return found


def test_two_processes_have_the_losses_of_one_and_only_the_first_writes_and_prints(tmp_path, launch):
    finished(launch(1, "my.txt", *FLAGS, "--max-steps", "20", "--out", "one"))
    said = finished(launch(2, "my.txt", *FLAGS, "--max-steps", "20", "--out", "two"))
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(two) == 20
    assert two == pytest.approx(one, abs=1.01e-5)
    assert said.count("Training a GPT-2") == said.count("Checkpoint: two") == 1
    assert not list((tmp_path / "two").rglob("*.tmp"))


def test_two_launchers_as_on_two_machines_have_the_losses_of_one(tmp_path, launch):
    finished(launch(1, "my.txt", *FLAGS, "--max-steps", "10", "--out", "one"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port), "--node-rank")
    command = ("my.txt", *FLAGS, "--max-steps", "10", "--out", "two")
    both = [launch(1, *command, launcher=(*nodes, str(number))) for number in (0, 1)]
    assert [finished(process).count("Training a GPT-2") for process in both] == [1, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1.01e-5)


def test_one_of_several_processes_ends_before_its_threads_can_abort_it():
    script = "import atexit, os; from train.processes import leave; atexit.register(os.abort); print('said'); leave(3)"
    env = {**os.environ, "WORLD_SIZE": "2"}
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=env, capture_output=True, timeout=120)
    assert (ended.returncode, ended.stdout.split()) == (3, [b"said"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_stop_reaches_all_and_another_number_of_processes_goes_on_to_the_same_end(tmp_path, launch):
    schedule = ("--optimizer", "muon", "--ema", "0.9", "--patience", "0")
    finished(launch(1, "my.txt", *FLAGS, *schedule, "--max-steps", "60", "--out", "undisturbed"))
    process = launch(2, "my.txt", *FLAGS, *schedule, "--max-steps", "60", "--out", "stopped")
    wait_for_step(tmp_path / "stopped", 12)
    os.kill(ranks_of(process)[1], signal.SIGTERM)  # any of them is enough
    said = process.communicate(timeout=60)[0]
    assert said.count("Stopped and saved") == 1, said
    assert "Traceback" not in said
    step = state.load_state(tmp_path / "stopped" / "state")[1]["step"]
    assert 12 <= step < 60
    for processes in (2, 1):
        until = str(step + 3) if processes == 2 else "60"
        said = finished(launch(processes, "--resume", "--out", "stopped", "--max-steps", until))
        assert "Going on from step" in said
    # max-steps moves the cosine's end for three steps, so only what came before is equal.
    ours, theirs = losses(tmp_path / "stopped"), losses(tmp_path / "undisturbed")
    assert len(ours) == 60
    assert ours[: step + 1] == pytest.approx(theirs[: step + 1], abs=1.01e-5)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("doomed", [0, 1])
def test_a_process_that_dies_ends_the_run_with_a_sentence_and_a_state(tmp_path, launch, doomed):
    process = launch(2, "my.txt", *FLAGS, "--max-steps", "100000", "--patience", "0", "--out", "run")
    wait_for_step(tmp_path / "run", 15)
    os.kill(ranks_of(process)[doomed], signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert process.returncode != 0
    assert re.search(rf"error: process {1 - doomed} of 2 lost the others: .* --resume --out run", said), said
    step = state.load_state(tmp_path / "run" / "state")[1]["step"]
    assert step >= (10 if doomed == 0 else 15)
    finished(launch(1, "--resume", "--out", "run", "--max-steps", str(step + 2)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_process_that_falls_silent_is_not_waited_for_without_end(tmp_path, launch):
    """As when a machine loses its power or its network: nobody closes the connection."""
    code = """
import sys
from datetime import timedelta
from train import processes
from train.__main__ import main
processes.PATIENCE_IN_STEPS = timedelta(seconds=20)
sys.exit(main())
"""
    (tmp_path / "hasty.py").write_text(code, encoding="utf-8")
    flags = ("my.txt", *FLAGS, "--max-steps", "100000", "--patience", "0", "--out", "run")
    process = launch(2, *flags, program=("hasty.py",))
    wait_for_step(tmp_path / "run", 3)
    os.kill(ranks_of(process)[1], signal.SIGSTOP)
    said = process.communicate(timeout=180)[0]  # torchrun gives the silent one half a minute more
    assert process.returncode != 0
    assert "error: process 0 of 2 lost the others" in said, said
    assert state.load_facts(tmp_path / "run" / "state")["step"] >= 3


def test_machines_with_different_texts_do_not_train_together(tmp_path, launch):
    """The first process finds one text under the name, the second another."""
    code = """
import os, pathlib, sys
mine = pathlib.Path(os.environ["RANK"]); mine.mkdir(); os.environ["XDG_CACHE_HOME"] = str(mine.resolve())
(mine / "my.txt").write_text(f"Machine {os.environ['RANK']} has a text of its own. " * 400, encoding="utf-8")
os.environ["LOCAL_RANK"] = "0"; os.chdir(mine)
from train.__main__ import main
sys.exit(main(["my.txt", "--preset", "tiny", "--device", "cpu", "--max-steps", "2", "--out", "../run"]))
"""
    (tmp_path / "own.py").write_text(code, encoding="utf-8")
    process = launch(2, program=("own.py",))
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert "error: the text on this machine is not the first one's" in said


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("my.txt", "--device", "cpu", "--dtype", "float16"), "float16 training needs a CUDA device"),
        (("my.txt", "--batch-size", "3"), "--batch-size 3 can not be shared evenly by 2 processes"),
        (("missing.txt",), "cannot read missing.txt"),
        (("my.txt", "--dropout", "2"), "dropout=2.0 must be"),
    ],
)
def test_what_can_not_work_is_said_once(launch, flags, sentence):
    process = launch(2, *flags)
    said = process.communicate(timeout=120)[0]
    assert process.returncode != 0
    assert said.count(sentence) == 1, said
    assert "lost the others" not in said
