"""What a run leaves to read."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
from matplotlib.figure import Figure

from train.journal import Journal, draw_losses, read_jsonl


@pytest.fixture
def begin(tmp_path):
    """begin(max_steps=200, log_every=10, ...) is a journal that has begun with nothing."""
    journals = []

    def build(**options) -> Journal:
        options = {"max_steps": 200, "tokens_per_step": 100, "log_every": 10} | options
        journals.append(Journal(tmp_path, **options))
        journals[-1].restart()
        return journals[-1]

    yield build
    for journal in journals:
        journal.close()


def take(journal: Journal, losses, first: int = 1, grad_norm: float = 0.5) -> None:
    """Tell the journal of one step after the other."""
    for step, loss in enumerate(losses, start=first):
        journal.step(step, torch.tensor(loss), torch.tensor(grad_norm), 0.1)


def noisy(steps: int, level: float = 3.0) -> list[float]:
    return [level + 0.1 * math.sin(step) for step in range(steps)]


def spikes(tmp_path) -> list[int]:
    return [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl") if "spike" in line]


def test_a_line_holds_the_mean_since_the_last(tmp_path):
    journal = Journal(tmp_path, max_steps=5, tokens_per_step=100, log_every=2)
    journal.restart()
    for step, loss in enumerate([1.0, 3.0, 5.0, 7.0, 9.0], start=1):
        journal.step(step, torch.tensor(loss), torch.tensor(0.5), 0.1)
    journal.close()
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"], line["tokens"]) for line in lines] == [(2, 2, 200), (4, 6, 400), (5, 9, 500)]


def test_samples_keep_every_character(tmp_path):
    journal = Journal(tmp_path, max_steps=1, tokens_per_step=1, log_every=1)
    journal.restart()
    text = 'A "quote",\u2028 a line\nand \U0001f431 and \u0000'
    journal.sample(1, "\u00e9", 7, text)
    journal.close()
    assert read_jsonl(tmp_path / "samples.jsonl") == [{"step": 1, "prompt": "\u00e9", "seed": 7, "text": text}]


def test_the_picture_is_drawn_from_whatever_there_is(tmp_path):
    entries = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "validation_bits_per_byte": 2.5}]
    for number, some in enumerate([entries, entries[:2], entries[2:], []]):
        path = tmp_path / f"{number}.png"
        draw_losses(some, path, "title")
        assert path.read_bytes().startswith(b"\x89PNG")


def test_a_missing_journal_is_an_empty_one(tmp_path):
    assert read_jsonl(tmp_path / "none.jsonl") == []


def test_a_restored_journal_has_no_gap_and_no_double_line(tmp_path):
    journal = Journal(tmp_path, max_steps=8, tokens_per_step=100, log_every=4)
    journal.restart()

    def take(steps):
        for step in steps:
            journal.step(step, torch.tensor(float(step)), torch.tensor(0.5), 0.1)

    take(range(1, 7))
    kept = journal.state()
    take(range(7, 9))
    journal.close()
    journal = Journal(tmp_path, max_steps=8, tokens_per_step=100, log_every=4)
    journal.restore(kept)
    take(range(7, 9))
    journal.close()
    assert [(line["step"], line["loss"]) for line in read_jsonl(tmp_path / "metrics.jsonl")] == [(4, 2.5), (8, 6.5)]


def test_a_journal_that_lost_its_end_in_a_power_cut_is_not_filled_up_with_zeros(tmp_path):
    journal = Journal(tmp_path, max_steps=8, tokens_per_step=100, log_every=4)
    journal.restart()
    journal.evaluation(0, validation_bits_per_byte=3.0)
    kept = journal.state()
    (tmp_path / "metrics.jsonl").write_bytes(b"")
    journal.restore(kept)
    journal.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_speed_counts_only_the_steps_since_the_clock_was_reset(tmp_path, monkeypatch):
    now = iter(range(1000))
    monkeypatch.setattr("train.journal.time.perf_counter", lambda: float(next(now)))
    journal = Journal(tmp_path, max_steps=4, tokens_per_step=100, log_every=4)
    journal.restart()
    for step in range(1, 4):
        journal.step(step, torch.tensor(1.0), torch.tensor(1.0), 0.1)
    journal.resume_clock()
    journal.step(4, torch.tensor(1.0), torch.tensor(1.0), 0.1)
    journal.close()
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["tokens_per_second"] == 100


def test_a_loss_that_jumps_is_noted_at_its_step_and_said(tmp_path, begin, capsys):
    take(begin(), [*noisy(62), 9.0, *noisy(7)])
    lines = [(line["step"], line.get("spike")) for line in read_jsonl(tmp_path / "metrics.jsonl")][-2:]
    assert lines == [(63, pytest.approx(84, abs=2)), (70, None)]
    assert capsys.readouterr().err.count("step 63: the loss jumped to 9.000; its mean was 3.0") == 1


@pytest.mark.parametrize(
    ("before", "then"),
    [
        (noisy(49), 9.0),  # too few to know what is usual
        (noisy(60), 3.4),  # within what is usual
        (noisy(60), 0.0),  # better is no accident
        ([3.0] * 60, 3.05),  # no deviation at all, and still nothing to speak of
    ],
)
def test_there_is_no_alarm_without_a_reason(tmp_path, begin, before, then):
    take(begin(log_every=1), [*before, then])
    assert spikes(tmp_path) == []


def test_a_loss_on_a_new_level_sets_off_three_alarms(tmp_path, begin):
    take(begin(), [*[3.0] * 110, *[9.0] * 90])
    assert spikes(tmp_path) == [111, 112, 113]


def test_a_loss_that_is_not_finite_hides_no_spike(tmp_path, begin):
    take(begin(), [*noisy(55), math.nan, math.inf, *noisy(5), 9.0, *noisy(7)])
    assert spikes(tmp_path) == [63]


def test_skipped_steps_are_counted_and_said(tmp_path, begin, capsys):
    journal = begin()
    journal.skipped(3, torch.tensor(2.5), torch.tensor(math.inf))
    journal.skipped(8, torch.tensor(math.nan), torch.tensor(math.nan))
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 3, "skipped": 1}, {"step": 8, "skipped": 2}]
    assert "step 3: loss 2.5, gradient norm inf; step skipped.\n" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [0, 5, 49, 60, 61, 66, 68, 70, 140, 199])
def test_a_run_that_was_stopped_leaves_the_lines_of_an_undisturbed_one(tmp_path, begin, stop):
    losses = 2 + torch.rand(200, generator=torch.Generator().manual_seed(1)) / 3
    losses[60] = losses[150] = 7.0
    losses[66] = math.nan
    norms = losses.exp()

    def train(journal, after, until):
        for i in range(after, until):
            if not losses[i].isfinite():
                journal.skipped(i + 1, losses[i], norms[i])
            journal.step(i + 1, losses[i], norms[i], 0.1)
            if (i + 1) % 50 == 0:
                journal.evaluation(i + 1, validation_bits_per_byte=2.0, validation_bits_per_byte_ema=1.9)

    def lines():
        text = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
        return re.sub(r'"(tokens_per_)?seconds?": [\d.]+', "", text)  # what a clock says differs from run to run

    train(begin(), 0, 200)
    undisturbed = lines()
    assert spikes(tmp_path) == [61, 151]

    journal = begin()
    train(journal, 0, stop)
    kept = json.dumps(journal.state())  # as it lies on the disk
    train(journal, stop, min(stop + 15, 200))  # lost in the kill
    journal = Journal(tmp_path, max_steps=200, tokens_per_step=100, log_every=10)
    journal.restore(json.loads(kept))
    train(journal, stop, 200)
    journal.close()
    assert lines() == undisturbed


def test_the_share_of_the_peak_is_told_where_both_are_known(tmp_path, begin, monkeypatch):
    for known in ({}, {"flops_per_token": 1e9}, {"peak_flops": 1e12}):
        journal = begin(max_steps=1, **known)
        take(journal, [3.0])
        assert "mfu" not in read_jsonl(tmp_path / "metrics.jsonl")[0]
        assert "MFU" not in str(journal._bar)
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr("train.journal.time.perf_counter", lambda: float(next(now)))
    journal = begin(max_steps=1, flops_per_token=8.24e9, peak_flops=1e12)  # 100 tokens in 2 seconds
    take(journal, [3.0])
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["mfu"] == 0.412
    assert "| MFU 41% |" in str(journal._bar)


class Recorder:
    """A tracker that keeps what it is sent, and fails where it is told to."""

    def __init__(self, fails: str = ""):
        self.entries, self.finished, self.fails = [], 0, fails

    def log(self, entry):
        self.entries.append(entry)
        if self.fails == "log":
            raise RuntimeError("no space left")

    def finish(self):
        self.finished += 1
        if self.fails == "finish":
            raise RuntimeError("no space left")


def test_a_tracker_is_sent_every_line_of_the_metrics_and_told_the_end_once(tmp_path, begin):
    tracker = Recorder()
    journal = begin(tracker=tracker)
    journal.evaluation(0, validation_bits_per_byte=3.0)
    journal.sample(0, "prompt", 1, "text")
    journal.skipped(4, 1.0, math.inf)
    take(journal, noisy(20))
    journal.close()
    journal.close()
    assert tracker.entries == read_jsonl(tmp_path / "metrics.jsonl")
    assert len(tracker.entries) == 4
    assert tracker.finished == 1


@pytest.mark.parametrize(("fails", "sent"), [("log", 1), ("finish", 3)])
def test_a_tracker_that_fails_hurts_no_training_and_is_heard_of_once(tmp_path, begin, capsys, fails, sent):
    tracker = Recorder(fails)
    journal = begin(tracker=tracker)
    take(journal, noisy(30))
    journal.close()
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 3
    assert len(tracker.entries) == sent
    assert capsys.readouterr().err.count("The tracker failed") == 1


def test_another_process_counts_along_in_silence(tmp_path, capfd):
    tracker = Recorder()
    journal = Journal(tmp_path, 200, 100, 10, tracker=tracker, writes=False)
    journal.restart()
    journal.evaluation(0, validation_bits_per_byte=3.0)
    journal.sample(0, "prompt", 1, "text")
    journal.skipped(4, 1.0, math.inf)
    take(journal, [*noisy(62), 9.0, *noisy(7)])
    journal.say("a sentence")
    kept = journal.state()
    journal.close()
    again = Journal(tmp_path, 200, 100, 10, writes=False)
    again.restore(kept)
    again.close()
    state = again.state()
    assert state.pop("seconds") >= kept.pop("seconds") > 0
    assert state == kept
    assert (kept["step"], kept["skipped"], again.validation) == (70, 1, 3.0)
    assert list(tmp_path.iterdir()) == tracker.entries == []
    assert tracker.finished == 0
    assert capfd.readouterr() == ("", "")


def test_another_process_takes_up_the_state_of_the_first(tmp_path, begin):
    first = begin()
    take(first, noisy(15))
    state = first.state()
    second = Journal(tmp_path / "elsewhere", 200, 100, 10, writes=False)
    second.restore(state)
    assert second.state()["pending"] == state["pending"]
    second.close()


@pytest.mark.parametrize(
    ("figures", "better"),
    [
        ({"validation_bits_per_byte": 2.0}, 2.0),
        ({"validation_bits_per_byte": 2.0, "validation_bits_per_byte_ema": 1.5}, 1.5),
        ({"validation_bits_per_byte": 2.0, "validation_bits_per_byte_ema": 2.5}, 2.0),
        ({}, None),
    ],
)
def test_the_bar_shows_the_better_of_the_weights_and_their_average(begin, figures, better):
    journal = begin(log_every=1)
    journal.evaluation(0, **figures)
    take(journal, [3.0])
    assert journal.validation == better
    assert ("val" in str(journal._bar)) is (better is not None)
    assert better is None or f"| val {better:.3f} bpb |" in str(journal._bar)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(entries) is the picture's axes, and its lines by name."""

    def draw(entries):
        figures = []
        monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: figures.append(self))
        draw_losses(entries, tmp_path / "loss.png", "title")
        return figures[0].axes, {line.get_label(): line for axes in figures[0].axes for line in axes.get_lines()}

    return draw


def test_the_picture_has_a_line_for_each_figure_and_marks_the_best_of_all(drawn):
    entries = [
        {"step": 1, "loss": 3.0},
        {"step": 1, "validation_bits_per_byte": 2.5, "validation_bits_per_byte_ema": 2.9},
        {"step": 2, "validation_bits_per_byte": 2.4, "validation_bits_per_byte_ema": 2.2},
        {"step": 3, "validation_bits_per_byte": 2.3, "validation_bits_per_byte_ema": 2.6},
    ]
    axes, lines = drawn(entries)
    assert [a.get_ylabel() for a in axes] == ["training loss (nats per token)", "validation (bits per byte)"]
    assert axes[0].get_xlabel() == "step"
    assert list(lines) == ["training loss", "validation", "validation, averaged weights", "best: 2.200 at step 2"]
    assert list(lines["validation, averaged weights"].get_ydata()) == [2.9, 2.2, 2.6]


def test_the_picture_knows_losses_from_spikes_and_skipped_steps(drawn):
    entries = [{"step": 1, "loss": 3.0}, {"step": 2, "spike": 7.1}, {"step": 3, "skipped": 1}, {"step": 4, "loss": 2.0}]
    _, lines = drawn(entries)
    assert list(lines) == ["training loss"]
    assert list(lines["training loss"].get_xdata()) == [1, 4]


def test_after_a_resume_the_time_left_follows_from_the_steps_since_and_counts_evaluations(begin, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: clock[0])
    monkeypatch.delenv("COLUMNS", raising=False)  # the bar is cut off there
    journal = begin(max_steps=1000)
    journal.restore(journal.state() | {"step": 800})
    for step in range(801, 901):
        clock[0] += 1
        take(journal, [3.0], first=step)
        if step % 20 == 0:
            clock[0] += 10
    # 100 steps to go, and 5 evaluations.
    assert "step 900/1000" in str(journal._bar)
    assert str(journal._bar).endswith("elapsed 02:30 | ETA 02:30")
