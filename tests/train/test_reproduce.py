"""tests/bench/reproduce.py: a run is held against the one this project began with, epoch by epoch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch

import gpt2

PATH = Path(__file__).resolve().parents[1] / "bench" / "reproduce.py"
spec = importlib.util.spec_from_file_location("reproduce", PATH)
reproduce = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reproduce)

SEED = json.loads(reproduce.SEED_EPOCHS.read_text(encoding="utf-8"))["epoch_means"]
CONFIG = {**reproduce.TASK, "preset": "seed"}
TRAINING = {"config": CONFIG, "data": [{"sha256": reproduce.TEXT_SHA256}], "figures": {}, "steps": 40}


def lines_of(means: list[float], every: int = 10) -> list[dict]:
    """What a run with these epoch means writes, its losses falling within each epoch."""
    lines = [{"step": 0, "validation_bits_per_byte": 4.0}]
    for step in range(every, 20 * len(means) + 1, every):
        within = (step - every) % 20 / every  # 0 for the first line of an epoch, then 1, ...
        lines.append({"step": step, "loss": means[(step - 1) // 20] * (1 + 0.1 * ((20 / every - 1) / 2 - within))})
        if step % 500 == 0:
            lines.append({"step": step, "validation_bits_per_byte": 3.0})
    return lines


def write(run_dir: Path, lines: list[dict], **training) -> Path:
    run_dir.mkdir(exist_ok=True)
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for place, record in training.items():
        (run_dir / place).mkdir(exist_ok=True)
        (run_dir / place / "training.json").write_text(json.dumps(record), encoding="utf-8")
    return run_dir


def run(run_dir: Path, *flags: str) -> int:
    return reproduce.main([str(run_dir), "--no-holdout", *flags])


def test_the_run_itself_lies_in_every_band(tmp_path, capsys):
    assert run(write(tmp_path, lines_of(SEED), last=TRAINING)) == 0
    printed = capsys.readouterr().out
    assert len(SEED) == 250
    assert "9 of 9 bands reached, 0 of them OUTSIDE" in printed
    assert printed.count(" inside\n") == 9


@pytest.mark.parametrize("step", reproduce.BANDS)
@pytest.mark.parametrize("side", [-1, 1])
def test_an_epoch_past_its_band_is_named_and_fails(tmp_path, capsys, step, side):
    mean, tolerance = reproduce.BANDS[step]
    means = [*SEED]
    means[step // 20] = mean + side * 1.01 * tolerance
    assert run(write(tmp_path, lines_of(means))) == 1
    outside = [line for line in capsys.readouterr().out.splitlines() if line.endswith("OUTSIDE")]
    assert [line.split("-")[0] for line in outside] == [str(step)]
    means[step // 20] = mean + side * 0.99 * tolerance
    assert run(write(tmp_path, lines_of(means))) == 0


def test_an_epoch_without_a_band_is_shown_and_never_judged(tmp_path, capsys):
    assert run(write(tmp_path, lines_of([100.0, 100.0, SEED[2]]))) == 0
    first = capsys.readouterr().out.splitlines()[1].split()
    assert first == ["0-19", "8.72784", "100.00000", "+91.27217", "-"]


def test_steps_40_to_59_are_the_lines_of_step_41_to_60():
    losses = [9.0] * 40 + [5.0] * 20 + [9.0] * 20  # line n is step n - 1
    lines = [{"step": n, "loss": loss} for n, loss in enumerate(losses, start=1)]
    assert reproduce.epoch_means(lines) == [9.0, 9.0, 5.0, 9.0]


@pytest.mark.parametrize("every", [1, 2, 5, 10, 20])
def test_every_log_interval_that_divides_an_epoch_gives_its_mean(every):
    assert reproduce.epoch_means(lines_of(SEED[:5], every)) == pytest.approx(SEED[:5])


def test_a_line_counts_as_many_steps_as_it_is_the_mean_of():
    assert reproduce.epoch_means([{"step": 5, "loss": 8.0}, {"step": 20, "loss": 4.0}]) == [5.0]


def test_a_log_interval_that_does_not_divide_an_epoch_is_answered_in_a_sentence(tmp_path, capsys):
    assert run(write(tmp_path, [{"step": step, "loss": 5.0} for step in (15, 30)])) == 2
    said = capsys.readouterr().err
    assert "line of step 30" in said
    assert "--log-every must divide" in said
    assert "Traceback" not in said


def test_a_run_that_is_not_over_is_judged_as_far_as_it_goes(tmp_path, capsys):
    lines = lines_of([SEED[0], SEED[1], SEED[2], SEED[3], 99.0])[:-1]  # epoch 80-99 lacks its second line
    assert run(write(tmp_path, lines)) == 0
    printed = capsys.readouterr().out
    assert "1 of 9 bands reached, 0 of them OUTSIDE" in printed
    assert "80-99" not in printed


def test_a_line_that_is_still_being_written_is_passed_over(tmp_path):
    write(tmp_path, lines_of(SEED[:3]))
    with (tmp_path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 70, "lo')
    assert run(tmp_path) == 0


def test_a_loss_that_is_not_finite_is_outside(tmp_path):
    assert run(write(tmp_path, lines_of([*SEED[:2], math.nan]))) == 1


@pytest.mark.parametrize("place", ["last", "best"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", "shuffled"),
        ("tokenizer", "bpe:2048"),
        ("batch_size", 8),
        ("block_size", 256),
        ("n_layer", 2),
        ("init_from", "user/repo"),
    ],
)
def test_a_run_of_another_task_is_refused_by_what_differs(tmp_path, capsys, place, name, value):
    other = {**TRAINING, "config": {**CONFIG, name: value}}
    assert run(write(tmp_path, lines_of(SEED[:3]), **{place: other})) == 2
    assert f"{name} {value!r}, not {CONFIG[name]!r}" in capsys.readouterr().err


def test_a_run_on_another_text_is_refused(tmp_path, capsys):
    assert run(write(tmp_path, lines_of(SEED[:3]), last={**TRAINING, "data": [{"sha256": "00"}]})) == 2
    assert "another text" in capsys.readouterr().err


def test_a_directory_without_a_run_is_answered_in_a_sentence(tmp_path, capsys):
    assert run(tmp_path) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


def test_everything_is_written_as_json(tmp_path):
    run(write(tmp_path, lines_of(SEED[:3])), "--json", str(tmp_path / "out.json"))
    result = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert (result["run"], result["held_out"]) == (tmp_path.name, None)
    assert [row["step"] for row in result["epochs"]] == [0, 20, 40]
    assert result["epochs"][2] == {"step": 40, "seed": SEED[2], "ours": SEED[2], "band": [5.92, 0.08], "inside": True}


# The end of the text


@pytest.fixture
def unfinished(tmp_path, tiny_checkpoint, monkeypatch) -> Path:
    """A run whose last/ has no held-out figure yet, and a small text whose last 40 tokens are held out."""
    text = tmp_path / "text.txt"
    text.write_text("the sand in the land, and out and in " * 3, encoding="utf-8")
    monkeypatch.setenv("TINYSHAKESPEARE", str(text))
    monkeypatch.setattr(reproduce, "TEXT_SHA256", hashlib.sha256(text.read_bytes()).hexdigest())
    monkeypatch.setattr(reproduce, "TAIL", 40)
    shutil.copytree(tiny_checkpoint, tmp_path / "run" / "last")
    training = {**TRAINING, "data": [{"sha256": reproduce.TEXT_SHA256}]}
    return write(tmp_path / "run", lines_of(SEED[:2]), last=training)


def test_the_end_of_the_text_is_scored_token_by_token(unfinished, tiny_model, tiny_tokenizer, tmp_path):
    figures, _ = reproduce.held_out(unfinished)
    ids = tiny_tokenizer.encode((tmp_path / "text.txt").read_text(encoding="utf-8"))[-40:]
    before, nats = [tiny_tokenizer.encode("\n")[0], *ids], 0.0
    for i, target in enumerate(ids):
        window = before[i // 16 * 16 : i + 1]  # tiny_model looks 16 tokens back, and windows do not overlap
        nats -= tiny_model(torch.tensor([window]))[0][0, -1].log_softmax(0)[target].item()
    assert figures["nats_per_token"] == pytest.approx(nats / 40, rel=1e-4)
    assert figures["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(tiny_tokenizer.decode(ids)), rel=1e-4)


def test_the_figure_is_printed_with_its_step(unfinished, capsys):
    assert reproduce.main([str(unfinished)]) == 0
    assert "Held out, 40 tokens: " in (printed := capsys.readouterr().out)
    assert "step 40; scored now" in printed


def test_a_finished_run_has_its_figure_in_training_json(tmp_path, monkeypatch):
    monkeypatch.setattr(gpt2, "load", lambda *args, **kwargs: pytest.fail("scored again"))
    figures = {"held_out_bits_per_byte": 3.5, "held_out_perplexity": math.e**2}
    found, source = reproduce.held_out(write(tmp_path, [], last={**TRAINING, "figures": figures}))
    assert source == "training.json"
    assert found == {"step": 40, "bits_per_byte": 3.5, "nats_per_token": pytest.approx(2.0)}


def test_without_the_text_nothing_is_scored_and_the_bands_still_are(unfinished, monkeypatch, capsys):
    monkeypatch.setenv("TINYSHAKESPEARE", str(unfinished / "nowhere.txt"))
    assert reproduce.main([str(unfinished)]) == 0
    assert "no figure" in capsys.readouterr().out


def test_without_a_checkpoint_nothing_is_scored(tmp_path, capsys):
    assert reproduce.main([str(write(tmp_path, lines_of(SEED[:1])))]) == 0
    assert "the run has no last/ yet" in capsys.readouterr().out
