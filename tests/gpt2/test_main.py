"""python -m gpt2: the prompt and its continuation on standard output, everything else on standard error."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gpt2
from gpt2.__main__ import main, parser, write

STATS = re.compile(r"\[(\d+) tokens, \d+ tok/s, stopped: ([\w-]+), seed (\d+)(; .*)?\]")


@pytest.fixture
def say(capsys, tiny_checkpoint):
    """say("the", "--seed", "1") runs main() on the tiny checkpoint: (exit code, standard output, standard error)."""

    def run(*argv: str, checkpoint: Path | str = tiny_checkpoint) -> tuple[int, str, str]:
        try:
            code = main([*argv, "--checkpoint", str(checkpoint)])
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def continuation(model, tokenizer, prompt: str, **params) -> str:
    return "".join(gpt2.generate(model, tokenizer, prompt, gpt2.SamplingParams(**params)))


def test_as_a_program_it_prints_the_prompt_and_its_continuation(
    run_python, tiny_checkpoint, tiny_model, tiny_tokenizer
):
    prompt = "the \u65e5\u672c\U0001f642"
    argv = ["--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "9", "--seed", "4"]
    done = run_python("-m", "gpt2", prompt, *argv, PYTHONIOENCODING="ascii")  # a terminal that can show little
    assert done.returncode == 0
    assert done.stdout == prompt + continuation(tiny_model, tiny_tokenizer, prompt, max_new_tokens=9, seed=4) + "\n"
    assert STATS.fullmatch(done.stderr.strip()).groups() == ("9", "length", "4", None)


def test_as_a_program_it_fails_in_one_line(run_python, tmp_path):
    done = run_python("-m", "gpt2", "the", "--checkpoint", str(tmp_path))
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"error: .* has no config.json.*\n", done.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes close differently there")
def test_a_reader_that_leaves_early_is_no_traceback(tiny_checkpoint):
    """python -m gpt2 ... | head -1"""
    argv = [sys.executable, "-m", "gpt2", "the", "--checkpoint", str(tiny_checkpoint), "--max-new-tokens", "20000"]
    root = Path(gpt2.__file__).parent.parent
    process = subprocess.Popen(argv, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(3) == b"the"
    process.stdout.close()
    stderr = process.stderr.read().decode("utf-8")
    process.stderr.close()
    process.wait()
    assert "Traceback" not in stderr and "Exception ignored" not in stderr


def test_every_flag_reaches_the_sampler(say, tiny_model, tiny_tokenizer):
    flags = {
        "max_new_tokens": 30, "temperature": 1.5, "top_k": 60, "top_p": 0.95, "min_p": 0.1,
        "repetition_penalty": 1.3, "seed": 5,
    }  # fmt: skip
    argv = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    code, out, _ = say("the", *argv)
    assert code == 0
    assert out == "the" + continuation(tiny_model, tiny_tokenizer, "the", **flags) + "\n"
    for name in flags:
        rest = {k: v for k, v in flags.items() if k != name}
        argv = [part for k, v in rest.items() for part in (f"--{k.replace('_', '-')}", str(v))]
        assert say("the", *argv)[1] != out, f"{name} changes nothing"


def test_what_would_steer_a_terminal_reaches_none(capsys, monkeypatch, tiny_model, tiny_tokenizer):
    pieces = iter(["a\x1b]0;owned\x07b", "c\td\n\x9b2J"])
    monkeypatch.setattr(gpt2, "generate", lambda *_: pieces)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    write(tiny_model, tiny_tokenizer, "", gpt2.SamplingParams())
    assert capsys.readouterr().out == "a\ufffd]0;owned\ufffdbc\td\n\ufffd2J"


def test_the_same_seed_gives_the_same_output(say):
    assert say("the", "--seed", "3")[1] == say("the", "--seed", "3")[1] != say("the", "--seed", "4")[1]


def test_without_a_seed_the_one_it_took_is_printed(say):
    _, out, err = say("the")
    assert say("the", "--seed", STATS.fullmatch(err.strip())[3])[1] == out


def test_several_samples_have_seeds_in_a_row(say):
    code, out, err = say("the", "--seed", "3", "--num-samples", "3", "--max-new-tokens", "10")
    assert code == 0
    assert [STATS.fullmatch(line)[3] for line in err.splitlines()] == ["3", "4", "5"]
    alone = [say("the", "--seed", seed, "--max-new-tokens", "10")[1] for seed in "345"]
    assert out == ("\n" + "-" * 40 + "\n").join(alone)


def test_without_a_prompt_a_new_text_begins(say, tiny_model, tiny_tokenizer):
    code, out, _ = say("--seed", "3")
    assert (code, out) == (0, continuation(tiny_model, tiny_tokenizer, "", seed=3) + "\n")


def test_what_did_not_fit_of_the_prompt_is_said(say):
    _, out, err = say("x" * 20, "--seed", "3")
    assert out.startswith("x" * 20)
    assert STATS.fullmatch(err.strip())[4] == "; the first 4 tokens of the prompt did not fit"


def test_the_end_of_the_text_is_said(say, tiny_checkpoint, tmp_path, tiny_model, tiny_tokenizer):
    first = tiny_model(torch.tensor([tiny_tokenizer.encode("the")]))[0][0, -1].argmax().item()
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    config = json.loads((directory / "config.json").read_text(encoding="utf-8")) | {"eos_token_id": first}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, out, err = say("the", "--temperature", "0", checkpoint=directory)
    assert (code, out) == (0, "the\n")
    assert STATS.fullmatch(err.strip())[2] == "end-of-text"


@pytest.mark.parametrize(
    "argv",
    [
        ["--max-new-tokens", "0"],
        ["--max-new-tokens", "-1"],
        ["--max-new-tokens", "many"],
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-k", "-1"],
        ["--top-p", "0"],
        ["--top-p", "1.1"],
        ["--min-p", "2"],
        ["--repetition-penalty", "0"],
        ["--seed", "-1"],
        ["--seed", "9223372036854775807", "--num-samples", "2"],
        ["--num-samples", "0"],
        ["--dtype", "int3"],
        ["--device", "tpu"],
        ["--no-such-flag"],
        ["two", "prompts"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_exit_code_2_and_one_line_after_the_usage(say, argv):
    code, out, err = say("the", *argv)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("python -m gpt2: error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize("name", ["nowhere", "user/repo"])
def test_a_missing_checkpoint_is_exit_code_1_and_one_line(say, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = say("the", checkpoint=name)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_device_that_this_machine_lacks_is_exit_code_1_and_one_line(say, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = say("the", "--device", "cuda")
    assert (code, out) == (1, "")
    assert err.startswith("error: this machine") and err.count("\n") == 1


def test_a_damaged_model_is_exit_code_1_and_one_line(say, tiny_checkpoint, tmp_path):
    directory = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    tensors = load_file(directory / "model.safetensors")
    tensors["transformer.ln_f.bias"][0] = float("nan")
    save_file(tensors, directory / "model.safetensors")
    code, _, err = say("the", checkpoint=directory)
    assert code == 1
    assert err.strip().startswith("error: the model's output is not finite") and err.strip().count("\n") == 0


def test_ctrl_c_ends_it_quietly(say, monkeypatch):
    def interrupted(*args):
        yield " first piece"
        raise KeyboardInterrupt

    monkeypatch.setattr(gpt2, "generate", interrupted)
    assert say("the") == (0, "the first piece", "\n[stopped]\n")


def test_the_bundled_checkpoint_is_the_default():
    assert Path(parser().parse_args([]).checkpoint) == gpt2.BUNDLED


def test_help_explains_every_flag(say):
    code, out, _ = say("--help")
    assert code == 0
    for flag in (
        "--checkpoint --max-new-tokens --temperature --top-k --top-p --min-p --repetition-penalty --seed "
        "--num-samples --device --dtype"
    ).split():
        assert flag in out
