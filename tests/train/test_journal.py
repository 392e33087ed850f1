"""What a run leaves to read."""

from __future__ import annotations

import torch

from train.journal import Journal, draw_losses, read_jsonl


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
