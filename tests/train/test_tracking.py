"""train/tracking.py: trackers are opened on this machine only, and never hurt a training; trackio here is a fake."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from train.tracking import Guarded, open_tracker


@pytest.fixture
def trackio(monkeypatch):
    """A fake of the package, which notes how it is called."""
    calls = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(("init", options)),
        log=lambda metrics, step=None: calls.append(("log", metrics, step)),
        finish=lambda: calls.append(("finish",)),
        calls=calls,
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    return fake


@pytest.mark.parametrize(("resume", "how"), [(True, "allow"), (False, "never")])
def test_a_run_goes_on_under_its_name_and_on_this_machine(trackio, resume, how):
    open_tracker("trackio", "gpt2", "rhymes", {"seed": 1}, resume)
    assert trackio.calls == [("init", {"project": "gpt2", "name": "rhymes", "config": {"seed": 1}, "resume": how})]


def test_a_line_is_sent_as_figures_of_its_step(trackio):
    tracker = open_tracker("trackio", "gpt2", "rhymes", {})
    entry = {"step": 10, "loss": 3.0, "tokens": 1000}
    tracker.log(entry)
    tracker.finish()
    assert trackio.calls[1:] == [("log", {"loss": 3.0, "tokens": 1000}, 10), ("finish",)]
    assert entry["step"] == 10  # what was handed in is untouched


def test_a_missing_package_is_answered_with_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match="pip install trackio") as error:
        open_tracker("trackio", "gpt2", "rhymes", {})
    assert "\n" not in str(error.value)


def test_a_tracker_that_does_not_start_is_one_sentence(trackio):
    def init(**options):
        raise PermissionError("can not write")

    trackio.init = init
    with pytest.raises(ValueError, match=r"trackio did not start \(can not write\); train without --track"):
        open_tracker("trackio", "gpt2", "rhymes", {})


def test_an_unknown_tracker_is_answered_with_the_known_one():
    with pytest.raises(ValueError, match="unknown tracker 'wandb'; there is trackio"):
        open_tracker("wandb", "gpt2", "rhymes", {})


def test_what_fails_once_is_not_asked_again():
    class Failing:
        def log(self, entry):
            asked.append(entry)
            raise OSError("no space left")

        finish = None

    asked, said = [], []
    guarded = Guarded(Failing(), said.append)
    for step in range(3):
        guarded.log({"step": step})
    guarded.finish()
    assert asked == [{"step": 0}]
    assert len(said) == 1
    assert "no space left" in said[0]


def test_no_tracker_is_no_failure():
    said = []
    guarded = Guarded(None, said.append)
    guarded.log({"step": 1})
    guarded.finish()
    assert said == []


def test_being_interrupted_is_no_failure_of_the_tracker():
    def interrupt(entry):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded(SimpleNamespace(log=interrupt), print).log({"step": 1})
