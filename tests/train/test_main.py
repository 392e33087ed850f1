"""python -m train as its user meets it."""

from __future__ import annotations

import shutil

import pytest

SMALL = ["--preset", "tiny", "--max-steps", "4", "--eval-every", "2", "--block-size", "32", "--tokenizer", "bpe:270"]
TEXT = "It was a bright cold day in April, and the clocks were striking thirteen.\n" * 60


@pytest.fixture
def train(run_python, tmp_path):
    """train(*flags) runs python -m train in an empty folder."""

    def run(*flags: str):
        cache = str(tmp_path / "cache")
        return run_python("-m", "train", "--device", "cpu", *flags, cwd=tmp_path, XDG_CACHE_HOME=cache)

    return run


def test_a_text_becomes_a_checkpoint_a_sample_and_the_next_command(train, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    done = train("my.txt", *SMALL)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints" / "my" / "best" / "model.safetensors").exists()
    assert (tmp_path / "checkpoints" / "my" / "best" / "README.md").exists()
    assert "held out bits per byte" in done.stdout
    assert 'python -m gpt2 "' in done.stdout and "--checkpoint checkpoints/my/best" in done.stdout
    assert "step" in done.stderr and "ETA" in done.stderr and "tok/s" in done.stderr


def test_several_files_and_folders_are_one_run(train, tmp_path):
    (tmp_path / "poems").mkdir()
    for name in ("a.txt", "poems/b.txt", "poems/c.md"):
        (tmp_path / name).write_text(TEXT + name, encoding="utf-8")
    done = train("a.txt", "poems", *SMALL, "--out", "run")
    assert done.returncode == 0, done.stderr
    record = (tmp_path / "run" / "best" / "training.json").read_text(encoding="utf-8")
    assert all(name in record for name in ("a.txt", "b.txt", "c.md"))


def test_an_existing_run_is_never_overwritten(train, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "checkpoints" / "my").mkdir(parents=True)
    (tmp_path / "checkpoints" / "my" / "precious").write_text("x", encoding="utf-8")
    done = train("my.txt", *SMALL)
    assert done.returncode == 1
    assert "--resume" in done.stderr and "--name" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in (tmp_path / "checkpoints" / "my").iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("content", "flags", "code", "says"),
    [
        (None, [], 1, "my.txt"),
        (b"", [], 1, "empty"),
        (b"To be", [], 1, "too short"),
        (b"fine so far \xff and on" * 50, [], 1, "0xff"),
        (TEXT.encode(), ["--preset", "huge"], 2, "unknown preset 'huge'"),
        (TEXT.encode(), ["--n-embd", "65"], 2, "divisible"),
        (TEXT.encode(), ["--learning-rate", "nan"], 2, "learning_rate"),
        (TEXT.encode(), ["--device", "cuda:99"], 1, "cuda:99"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing_behind(train, tmp_path, content, flags, code, says):
    if content is not None:
        (tmp_path / "my.txt").write_bytes(content)
    done = train("my.txt", *SMALL, *flags)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_that_died_before_it_saved_anything_is_begun_anew(train, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    died = train("my.txt", *SMALL, "--learning-rate", "1e30", "--max-steps", "40", "--eval-every", "40")
    assert died.returncode == 1
    assert "Try --learning-rate" in died.stderr and "Traceback" not in died.stderr
    assert train("my.txt", *SMALL).returncode == 0


def test_an_unknown_flag_is_answered_with_the_nearest(train):
    done = train("--max-step", "4")
    assert done.returncode == 2
    assert "--max-steps" in done.stderr + done.stdout


def test_a_run_that_could_save_no_state_is_begun_anew(train, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "checkpoints" / "my" / "state").mkdir(parents=True)
    (tmp_path / "checkpoints" / "my" / "state" / ".000002.safetensors.1.tmp").write_bytes(b"half")
    assert train("my.txt", *SMALL).returncode == 0


def test_resuming_may_ask_for_any_micro_batch_and_a_moved_base(train, tmp_path, tiny_checkpoint):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    shutil.copytree(tiny_checkpoint, tmp_path / "base")
    flags = ["--max-steps", "2", "--eval-every", "2", "--batch-size", "32", "--result", "last"]
    begun = train("my.txt", "--init-from", "base", *flags)
    assert begun.returncode == 0, begun.stderr
    (tmp_path / "base").rename(tmp_path / "moved")
    flags = ["--resume", "--max-steps", "3", "--micro-batch", "20", "--init-from", "moved"]
    again = train("my.txt", *flags)
    assert again.returncode == 0, again.stderr


def test_a_run_can_not_go_back(train, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    assert train("my.txt", *SMALL).returncode == 0
    back = train("my.txt", "--resume", "--max-steps", "1")
    assert back.returncode == 1
    assert "the run is at step 4 already" in back.stderr


def test_a_place_that_can_not_be_written_is_one_sentence_with_a_way_out(train, tmp_path):
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    failed = train("my.txt", *SMALL, "--out", "my.txt/run")
    assert failed.returncode == 1
    assert "my.txt" in failed.stderr and "--out" in failed.stderr and "Traceback" not in failed.stderr


def test_help_asks_nobody_for_a_checkpoint(train):
    assert train("--preset", "finetune", "--help").returncode == 0
