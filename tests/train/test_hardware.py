"""Training on the fastest device there is: CUDA where a GPU is, else the same promises on the CPU.

All other tests of train/ stay on the CPU, whose results are the same everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import gpt2
from train import state
from train.journal import read_jsonl
from train.processes import Processes, Stopped
from train.trainer import fit

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = ["float32", "bfloat16", pytest.param("float16", marks=pytest.mark.skipif(DEVICE == "cpu", reason="no GPU"))]


@pytest.fixture
def here(config, monkeypatch):
    """40 steps on DEVICE, each in the journal."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: DEVICE == "cuda")
    return replace(config, device=DEVICE, max_steps=40, log_every=1, optimizer="muon", ema=0.9)


@pytest.fixture
def compiler(monkeypatch):
    """On a GPU the real one. On a CPU, where nobody promises that there is one, all of torch.compile but that."""
    if DEVICE == "cpu":
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def losses(run_dir: Path) -> list[float]:
    return [entry["loss"] for entry in read_jsonl(run_dir / "metrics.jsonl") if "loss" in entry]


@pytest.mark.parametrize("dtype", FORMATS)
def test_a_run_learns_in_every_number_format(tmp_path, corpus, here, dtype):
    said = []
    fit(replace(here, dtype=dtype), corpus, tmp_path / "run", say=said.append)
    assert any(f"in {dtype} (as asked)" in sentence for sentence in said)
    found = losses(tmp_path / "run")
    assert found[-1] < 0.7 * found[0]


def test_half_precision_costs_little_of_the_loss(tmp_path, corpus, here):
    for dtype in ("float32", "bfloat16"):
        fit(replace(here, dtype=dtype), corpus, tmp_path / dtype, say=lambda _: None)
    assert losses(tmp_path / "bfloat16") == pytest.approx(losses(tmp_path / "float32"), rel=0.05)


def test_a_compiled_run_has_the_losses_of_a_plain_one_and_leaves_no_trace_on_the_disk(tmp_path, corpus, here, compiler):
    said = []
    fit(here, corpus, tmp_path / "plain", say=lambda _: None)
    fit(replace(here, compile=True), corpus, tmp_path / "compiled", say=said.append)
    assert not any("does not work here" in sentence for sentence in said)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-2)
    written = list((tmp_path / "compiled").rglob("*.safetensors"))
    assert {path.parent.name for path in written} == {"best", "last", "state"}
    for path in written:
        with safe_open(path, "pt") as file:
            assert not any("_orig_mod" in name for name in file.keys()), path  # noqa: SIM118 (not a dict)


def test_a_compiled_run_that_was_stopped_goes_on(tmp_path, corpus, here, compiler):
    config = replace(here, compile=True)
    fit(config, corpus, tmp_path / "whole", say=lambda _: None)
    asked = []
    with pytest.raises(Stopped):
        stop = Processes(lambda: asked.append(1) or len(asked) > 30)
        fit(config, corpus, tmp_path / "run", processes=stop, say=lambda _: None)
    assert 0 < state.load_facts(tmp_path / "run" / "state")["step"] < 40
    fit(config, corpus, tmp_path / "run", say=lambda _: None)
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=1e-2)


def test_a_run_goes_on_on_the_cpu(tmp_path, corpus, here):
    fit(replace(here, max_steps=20), corpus, tmp_path / "run", say=lambda _: None)
    said = []
    fit(replace(here, max_steps=23, device="cpu"), corpus, tmp_path / "run", say=said.append)
    assert "Going on from step 20." in said
    found = losses(tmp_path / "run")
    assert max(found[20:]) < found[10]
    assert gpt2.load(tmp_path / "run", "cpu")[0].config.n_embd == here.n_embd
