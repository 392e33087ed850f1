"""Whole or not there."""

from __future__ import annotations

import os

import pytest

from train import state


def test_a_staged_directory_takes_the_place_of_the_old_one_as_a_whole(tmp_path):
    target = tmp_path / "best"
    for content in ("first", "second"):
        with state.staged_directory(target) as stage:
            (stage / content).write_text(content, encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_an_error_while_filling_leaves_the_old_directory_and_no_rest(tmp_path):
    target = tmp_path / "best"
    with state.staged_directory(target) as stage:
        (stage / "weights").write_text("good", encoding="utf-8")
    with pytest.raises(OSError, match="disk full"), state.staged_directory(target) as stage:
        (stage / "weights").write_text("half", encoding="utf-8")
        raise OSError("disk full")
    assert (target / "weights").read_text(encoding="utf-8") == "good"
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "note"
    state.write_file(path, "old")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        state.write_file(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
