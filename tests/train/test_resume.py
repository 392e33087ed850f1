"""A run that is stopped, or killed, is not lost."""

from __future__ import annotations

import errno
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest

import gpt2
from tests.bench import kills
from train import state, trainer
from train.__main__ import resumed
from train.journal import read_jsonl
from train.processes import Processes, Stopped
from train.trainer import fit

MOVING = ("seconds", "tokens_per_second")  # what a clock says differs from run to run


@pytest.fixture(scope="module")
def long(config):
    """40 steps with all there is to remember, logged as they go: whatever is forgotten shows."""
    everything = {"dropout": 0.1, "input_noise": 0.1, "bpe_dropout": 0.1, "renaming": 0.5, "echo": 0.5}
    everything |= {"optimizer": "muon", "schedule": "wsd", "ema": 0.9}
    return replace(config, max_steps=40, log_every=2, eval_every=10, **everything)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, corpus, long):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        run_dir = tmp_path_factory.mktemp("runs") / "rhymes"
        fit(long, corpus, run_dir, say=lambda _: None)
    return run_dir


def stop_after(batches: int):
    """A should_stop that says yes once it has been asked this often."""
    asked = []
    return lambda: asked.append(1) or len(asked) > batches


def facts(run_dir: Path) -> list[dict]:
    return [
        {key: value for key, value in entry.items() if key not in MOVING}
        for name in ("metrics.jsonl", "samples.jsonl")
        for entry in read_jsonl(run_dir / name)
    ]


def assert_same_run(run_dir: Path, expected: Path) -> None:
    """Equal weights, bit for bit, in the checkpoints and in the last state, and equal journals."""
    for name in ("best", "last"):
        ours, theirs = (gpt2.load(d / name, "cpu", "float32")[0].state_dict() for d in (run_dir, expected))
        assert all(ours[key].equal(theirs[key]) for key in theirs), name
    (ours, our_facts), (theirs, their_facts) = (state.load_state(d / "state") for d in (run_dir, expected))
    assert ours.keys() == theirs.keys()
    assert all(ours[key].equal(theirs[key]) for key in theirs)
    assert our_facts["stopper"] == their_facts["stopper"]
    assert facts(run_dir) == facts(expected)


@pytest.mark.parametrize("asked", [0, 1, 8, 15, 27, 60, 95])
def test_a_run_that_stops_anywhere_goes_on_to_the_same_end(tmp_path, corpus, long, undisturbed, asked):
    with pytest.raises(Stopped):
        fit(long, corpus, tmp_path / "run", processes=Processes(stop_after(asked)), say=lambda _: None)
    fit(long, corpus, tmp_path / "run", say=lambda _: None)
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_run_that_stops_many_times_goes_on_to_the_same_end(tmp_path, corpus, long, undisturbed):
    while (state.load_facts(tmp_path / "run" / "state") or {"step": 0})["step"] < long.max_steps:
        with pytest.raises(Stopped):
            fit(long, corpus, tmp_path / "run", processes=Processes(stop_after(23)), say=lambda _: None)
    fit(long, corpus, tmp_path / "run", say=lambda _: None)
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("doomed", [1, 4, 9, 16, 18, 23, 25, 30, 34, 39])
def test_an_end_inside_any_kind_of_save_leaves_a_run_that_goes_on_to_the_same_end(
    tmp_path, corpus, long, undisturbed, monkeypatch, doomed
):
    """The doomed-th file that the run puts into place is not, and the run ends there, as by a kill."""
    count = 0

    def failing(real):
        def put_in_place(*args):
            nonlocal count
            count += 1
            if count == doomed:
                raise KeyboardInterrupt
            return real(*args)

        return put_in_place

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "rename", failing(os.rename))
        patch.setattr(os, "replace", failing(os.replace))
        fit(long, corpus, run_dir, say=lambda _: None)
    fit(long, corpus, run_dir, say=lambda _: None)
    assert_same_run(run_dir, undisturbed)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.999])
def test_a_cut_off_state_gives_way_to_the_one_before(tmp_path, corpus, long, undisturbed, share):
    run_dir = tmp_path / "run"
    with pytest.raises(Stopped):
        fit(long, corpus, run_dir, processes=Processes(stop_after(60)), say=lambda _: None)
    newest = max((run_dir / "state").iterdir())
    newest.write_bytes(newest.read_bytes()[: int(newest.stat().st_size * share)])
    fit(long, corpus, run_dir, say=lambda _: None)
    assert_same_run(run_dir, undisturbed)


def test_a_second_training_of_a_folder_is_refused_and_touches_nothing(tmp_path, corpus, long, undisturbed):
    run_dir = tmp_path / "run"
    with pytest.raises(Stopped):
        fit(long, corpus, run_dir, processes=Processes(stop_after(30)), say=lambda _: None)
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    with state.only_writer(run_dir), pytest.raises(ValueError, match="another training is writing to .*run: "):
        fit(long, corpus, run_dir, say=lambda _: None)
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before
    fit(long, corpus, run_dir, say=lambda _: None)  # the folder is free again
    assert_same_run(run_dir, undisturbed)


def test_a_new_training_of_a_folder_where_one_has_just_begun_is_refused(tmp_path, start):
    first = start()
    wait_for(tmp_path / "checkpoints" / "my" / state.LOCK)
    first.send_signal(signal.SIGSTOP)
    second = start()
    said = second.communicate(timeout=120)[0]
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1, said
    assert re.search("^error: .*(another training is writing to|exists already)", said, re.MULTILINE), said


def test_a_disk_that_knows_no_locks_can_be_trained_on(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="Windows locks in another way")
    monkeypatch.setattr(fcntl, "flock", Mock(side_effect=OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))))
    for _ in range(2):  # the second time is after a kill: nothing was left that says that it still runs
        with state.only_writer(tmp_path / "run"):
            shutil.copytree(tmp_path / "run", tmp_path / "killed", dirs_exist_ok=True)
        with state.only_writer(tmp_path / "killed"):
            pass


def test_no_more_states_are_kept_than_a_resume_needs(undisturbed):
    assert [path.stem for path in sorted((undisturbed / "state").iterdir())] == ["000030", "000040"]


def test_a_state_is_saved_by_time_too_where_evaluations_are_far_apart(tmp_path, corpus, long, undisturbed, monkeypatch):
    """A clock that is two minutes further at every look makes ten minutes of five steps."""
    saved, save, clock = [], state.save_state, itertools.count(0, 120)
    monkeypatch.setattr(trainer.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(state, "save_state", lambda *args: (saved.append(args[1]), save(*args)))
    fit(long, corpus, tmp_path / "run", say=lambda _: None)
    between = [step for step in saved if step % long.eval_every]
    assert len(between) == len(set(between)) >= 2
    assert_same_run(tmp_path / "run", undisturbed)


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file sizes")
def test_a_disk_that_fills_up_ends_with_a_sentence_and_the_state_before_stays_whole(tmp_path, corpus, start):
    """The real write fails half-way: no file may grow beyond a limit that the second save does not fit in."""
    finished = start("my.txt", *FLAGS, "--max-steps", "3")
    assert finished.wait(timeout=120) == 0, finished.communicate()[0]
    run_dir = tmp_path / "checkpoints" / "my"
    before = state.load_state(run_dir / "state")[1]["step"]
    limit = max(path.stat().st_size for path in (run_dir / "state").iterdir()) // 2
    full = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); "
    full += "from train.__main__ import main; sys.exit(main('--resume --out checkpoints/my --max-steps 9'.split()))"
    ended = start(code=full)
    said = ended.communicate(timeout=120)[0]
    assert ended.returncode == 1
    assert "error: " in said and "Traceback" not in said
    assert state.load_state(run_dir / "state")[1]["step"] == before
    again = start("--resume", "--out", "checkpoints/my", "--max-steps", "9")
    assert again.wait(timeout=120) == 0, again.communicate()[0]


def test_a_full_disk_is_one_error_and_leaves_the_state_before_it(tmp_path, corpus, long, undisturbed, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half a sta")
        raise OSError(28, "No space left on device")

    real = state.write_tensors
    monkeypatch.setattr(state, "write_tensors", lambda *args: (full if "000020" in str(args[1]) else real)(*args))
    with pytest.raises(OSError, match="No space"):
        fit(long, corpus, tmp_path / "run", say=lambda _: None)
    assert [path.name for path in (tmp_path / "run" / "state").iterdir()] == ["000010.safetensors"]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fit(long, corpus, tmp_path / "run", say=lambda _: None)
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_resumed_run_may_change_its_micro_batches(tmp_path, corpus, long):
    plain = replace(long, dropout=0.0, input_noise=0.0, optimizer="adamw", log_every=1)
    with pytest.raises(Stopped):
        fit(plain, corpus, tmp_path / "run", processes=Processes(stop_after(40)), say=lambda _: None)
    fit(replace(plain, micro_batch=1), corpus, tmp_path / "run", say=lambda _: None)
    fit(plain, corpus, tmp_path / "whole", say=lambda _: None)
    ours, theirs = ([e["loss"] for e in facts(tmp_path / name) if "loss" in e] for name in ("run", "whole"))
    assert len(ours) == 40
    assert ours == pytest.approx(theirs, abs=1.01e-5)  # they are logged to five places


def test_with_another_vocabulary_nothing_is_resumed(tmp_path, corpus, long):
    with pytest.raises(Stopped):
        fit(long, corpus, tmp_path / "run", processes=Processes(stop_after(30)), say=lambda _: None)
    tensors, facts = state.load_state(tmp_path / "run" / "state")
    state.save_state(tmp_path / "run" / "state", facts["step"], tensors, facts | {"vocabulary": "of another release"})
    with pytest.raises(ValueError, match="another vocabulary was learned"):
        fit(long, corpus, tmp_path / "run", say=lambda _: None)


def test_another_text_is_not_resumed(tmp_path, corpus, long):
    with pytest.raises(Stopped):
        fit(long, corpus, tmp_path / "run", processes=Processes(stop_after(30)), say=lambda _: None)
    changed = replace(corpus, documents=corpus.documents[:1])
    with pytest.raises(ValueError, match="text has changed"):
        fit(long, changed, tmp_path / "run", say=lambda _: None)


def test_resuming_takes_every_setting_from_the_run(tmp_path, corpus, long):
    with pytest.raises(Stopped):
        fit(long, corpus, tmp_path / "run", processes=Processes(stop_after(30)), say=lambda _: None)
    config = resumed(["--resume", "--max-steps", "50", "--micro-batch", "2"], tmp_path / "run")
    assert config == replace(long, resume=True, max_steps=50, micro_batch=2)
    with pytest.raises(ValueError, match=r"--learning-rate .* another run"):
        resumed(["--resume", "--learning-rate", "0.5"], tmp_path / "run")
    with pytest.raises(ValueError, match="no state to resume"):
        resumed(["--resume"], tmp_path / "elsewhere")


FLAGS = "--preset tiny --device cpu --dtype float32 --eval-every 3 --max-steps 100000 --patience 0".split()


@pytest.fixture
def start(tmp_path):
    """start(*flags) starts python -m train on a small text in an empty folder; start(code=...) any other program."""
    env, started = kills.Runs(tmp_path).env, []

    def run(*more: str, code: str = "") -> subprocess.Popen:
        command = [sys.executable, *(("-c", code) if code else ("-m", "train", *(more or ("my.txt", *FLAGS))))]
        started.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
            )
        )
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def wait_for(path: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to answer")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_says_how_to_go_on_and_ends_with_0(tmp_path, start, number):
    process = start()
    wait_for(tmp_path / "checkpoints" / "my" / "best")
    sent = time.monotonic()
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert time.monotonic() - sent < 10
    assert "Traceback" not in said
    flags = re.search(r"python -m train (--resume .*)", said)[1].split()
    step = state.load_state(tmp_path / "checkpoints" / "my" / "state")[1]["step"]
    again = start(*flags, "--max-steps", str(step + 2))
    said = again.communicate(timeout=120)[0]
    assert again.returncode == 0, said
    assert f"Going on from step {step:,}" in said


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to answer")
def test_a_run_stopped_by_sigterm_after_step_15_ends_as_an_undisturbed_one(tmp_path, start):
    flags = "my.txt --preset tiny --device cpu --dtype float32 --batch-size 128 --dropout 0.1 --max-steps 40".split()
    flags += "--log-every 1 --eval-every 20 --prompts The".split()
    assert start(*flags, "--out", "whole").wait(timeout=120) == 0
    process, journal = start(*flags, "--out", "cut"), tmp_path / "cut" / "metrics.jsonl"
    wait_for(journal)
    while max((entry["step"] for entry in read_jsonl(journal)), default=0) < 15:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "Stopped and saved" in said, said
    assert 15 <= state.load_facts(tmp_path / "cut" / "state")["step"] < 40
    again = start("--resume", "--out", "cut")
    assert again.wait(timeout=120) == 0, again.communicate()[0]
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_a_signal_before_the_first_step_of_a_resumed_run_is_answered_alike(tmp_path, corpus, start):
    assert start("my.txt", *FLAGS, "--max-steps", "3").wait(timeout=120) == 0
    late = "import os, signal, sys; from train import __main__, trainer; real = trainer.prepare; "
    late += "trainer.prepare = lambda *args: (os.kill(os.getpid(), signal.SIGINT), real(*args))[1]; "
    late += "sys.exit(__main__.main('--resume --out checkpoints/my --max-steps 9'.split()))"
    process = start(code=late)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert "-m train --resume --out checkpoints/my" in said and "nothing to save" not in said


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_thirty_kills_at_any_moment_leave_a_run_that_goes_on_as_an_undisturbed_one(tmp_path):
    found = kills.kill(tmp_path, 30, random.Random(1))
    print(found)
    assert found["inside a save"] >= 10
    assert found["journal without gap or double line"] and found["journal as undisturbed"]
    assert found["weights as undisturbed"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to answer")
def test_a_stop_at_any_moment_ends_with_0_within_ten_seconds(tmp_path):
    found = kills.stop(tmp_path, 4, random.Random(2))
    assert found["ended with code 0"] == found["without a traceback"] == 4 and found["slowest, s"] < 10
