"""One step: what changes the weights, and what never does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from gpt2.device import Precision
from train.dataset import Batches, prepare
from train.learner import Learner
from train.processes import Lost, Processes, Stopped
from train.setup import batches, new_model

CPU = torch.device("cpu")


@pytest.fixture
def make(corpus, config):
    """make(**changes) is (learner, its batches)."""

    def learner(**changes) -> tuple[Learner, Batches]:
        changed = replace(config, **changes)
        data = prepare(corpus, changed)
        model = new_model(changed, data, CPU)
        precision = Precision(torch.float32, "as asked")
        return Learner(changed, model, CPU, precision, Processes()), batches(changed, data)

    return learner


def weights(learner: Learner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in learner.model.parameters()]


def test_the_average_trails_the_weights_and_takes_their_place_only_while_asked(make):
    learner, batches = make(ema=0.99)
    expected = weights(learner)
    for step in range(5):
        learner.step(step, *batches.at(step), 1e-2)
        memory = min(0.99, (1 + step) / (10 + step))
        expected = [memory * old + (1 - memory) * new for old, new in zip(expected, weights(learner), strict=True)]
    raw = weights(learner)
    with learner.averaged():
        for mean, want in zip(weights(learner), expected, strict=True):
            torch.testing.assert_close(mean, want)
    assert all(a.equal(b) for a, b in zip(weights(learner), raw, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_it_saves_is_all_that_the_next_steps_depend_on(make, optimizer):
    changes = {"optimizer": optimizer, "ema": 0.9, "dropout": 0.2}
    (one, batches), (other, _) = make(**changes), make(**changes)
    for step in range(4):
        one.step(step, *batches.at(step), 1e-2)
    saved = {name: t.clone() for name, t in one.tensors().items()}
    other.load(saved, one.scaler.state_dict())
    for learner in (one, other):
        for step in range(4, 7):
            learner.step(step, *batches.at(step), 1e-2)
    ours, theirs = one.tensors(), other.tensors()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_gradient_that_is_not_finite_changes_nothing(make, bad, optimizer):
    learner, batches = make(ema=0.9, optimizer=optimizer)
    learner.step(0, *batches.at(0), 1e-2)
    before = {name: t.clone() for name, t in learner.tensors().items()}
    learner.model.transformer.ln_f.bias.register_hook(lambda grad: grad * bad)
    assert learner.step(1, *batches.at(1), 1e-2)[2] is False
    after = learner.tensors()
    assert all(after[name].equal(before[name]) for name in before)


def test_the_average_remembers_no_gradients(make):
    """It would hold on to the graph of every step so far."""
    learner, batches = make(ema=0.9)
    learner.step(0, *batches.at(0), 1e-2)
    assert not any(mean.requires_grad for mean in learner.average)


def test_what_is_compiled_first_is_what_the_steps_run(make, monkeypatch):
    learner, batches = make(compile=True)
    seen = []

    class Compiled(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, idx, targets):
            seen.append((self.model.training, tuple(idx.shape)))
            return self.model(idx, targets)

    monkeypatch.setattr(torch, "compile", Compiled)
    learner.model.eval()  # as sampling leaves it
    learner.prepare_network(batches.at(0), say=lambda sentence: None)
    learner.step(0, *batches.at(0), 1e-2)
    assert seen == [(True, (4, 32))] * 2


@pytest.mark.parametrize("error", [RuntimeError(""), RuntimeError("no compiler\nand more"), Exception()])
def test_a_compiler_that_fails_without_words_is_one_sentence_too(make, monkeypatch, error):
    learner, batches = make(compile=True)

    class Broken(torch.nn.Module):
        def forward(self, *_):
            raise error

    monkeypatch.setattr(torch, "compile", lambda model: Broken())
    said = []
    learner.prepare_network(batches.at(0), said.append)
    assert learner.network is learner.model
    assert "does not work here" in said[-1] and "\n" not in said[-1]


def test_a_process_lost_while_compiling_is_no_fault_of_the_compiler(make, monkeypatch):
    learner, batches = make(compile=True)

    class Gone(torch.nn.Module):
        def forward(self, *_):
            raise RuntimeError("[gloo] Connection closed by peer")

    monkeypatch.setattr(torch, "compile", lambda model: Gone())
    with pytest.raises(Lost):
        learner.prepare_network(batches.at(0), say=lambda sentence: None)


def test_too_little_memory_names_the_flag_that_helps(make, monkeypatch):
    learner, batches = make(micro_batch=4)

    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")

    learner.network = full
    with pytest.raises(MemoryError, match=r"4 x 32 tokens at once: add --micro-batch 2 \(a step stays 4 sequences"):
        learner.backward(*batches.at(0))
    learner.config = replace(learner.config, micro_batch=1)
    with pytest.raises(MemoryError, match="--block-size 16"):
        learner.backward(*batches.at(0))


def test_another_error_is_not_taken_for_too_little_memory(make):
    learner, batches = make()

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    learner.network = broken
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learner.backward(*batches.at(0))


def test_a_stop_comes_between_two_micro_batches_and_leaves_the_weights_alone(make):
    learner, batches = make(micro_batch=1)
    asked = []
    learner.processes.should_stop = lambda: asked.append(1) or len(asked) == 3
    before = weights(learner)
    with pytest.raises(Stopped):
        learner.step(0, *batches.at(0), 1e-2)
    assert len(asked) == 3
    assert all(a.equal(b) for a, b in zip(weights(learner), before, strict=True))


@pytest.mark.parametrize("asked_before", range(1, 6))
def test_where_a_sequence_takes_long_a_stop_comes_between_two_layers_and_leaves_the_weights_alone(make, asked_before):
    """Asked before the sequence, before each of two layers, and before each of them on the way back."""
    learner, batches = make(n_layer=2)
    undisturbed, _ = make(n_layer=2)
    learner.stop_between_layers()
    asked = []
    learner.processes.should_stop = lambda: asked.append(1) or len(asked) == asked_before
    before = weights(learner)
    with pytest.raises(Stopped):
        learner.step(0, *batches.at(0), 1e-2)
    assert len(asked) == asked_before
    assert all(a.equal(b) for a, b in zip(weights(learner), before, strict=True))
    for one in (learner, undisturbed):
        one.step(0, *batches.at(0), 1e-2)
    assert all(a.equal(b) for a, b in zip(weights(learner), weights(undisturbed), strict=True))
