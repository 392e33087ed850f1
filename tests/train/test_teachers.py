"""A run that learns from other runs: what it takes from them, and whom it does not take for a teacher."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from gpt2.checkpoint import read_json
from gpt2.device import Precision
from gpt2.model import IGNORE
from train.corpus import Document
from train.dataset import Batches, prepare
from train.learner import Learner
from train.processes import Processes
from train.setup import new_model
from train.teachers import Teachers
from train.trainer import fit

CPU = torch.device("cpu")


@pytest.fixture
def models(corpus, config):
    """Three models with weights of their own."""
    data = prepare(corpus, config)
    return [new_model(replace(config, seed=seed), data, CPU).eval() for seed in range(3)]


@pytest.fixture
def batch(corpus, config):
    idx, targets = Batches(prepare(corpus, config).train.ids, 32, 4, 1, "shuffled").at(0)
    targets[0, 5:9] = IGNORE
    return idx, targets


def test_the_target_is_the_teachers_mean_and_the_text_in_the_shares_asked_for(models, batch):
    network, *teachers = models
    idx, targets = batch
    scored = targets != IGNORE
    with torch.no_grad():
        mean = torch.stack([model(idx)[0].softmax(-1) for model in teachers]).mean(0)
        logits = network(idx)[0]
        soft, hard = cross_entropy(logits[scored], mean[scored]), cross_entropy(logits[scored], targets[scored])
        for share in (1.0, 0.3):
            found = Teachers(teachers, share).loss(network, idx, targets)
            torch.testing.assert_close(found, share * soft + (1 - share) * hard)


def test_a_model_has_nothing_to_learn_from_itself(corpus, config, models, batch):
    precision = Precision(torch.float32, "as asked")
    learner = Learner(config, models[0], CPU, precision, Processes(), Teachers([models[0]], 1.0))
    _, grad_norm, _ = learner.step(0, *batch, 1e-3)
    assert grad_norm < 1e-5


def test_a_run_comes_nearer_to_its_teachers(tmp_path, corpus, config):
    longer = replace(config, max_steps=60, eval_every=30)
    fit(longer, corpus, tmp_path / "teacher", say=lambda _: None)
    taught = replace(config, seed=5, distill_from=(str(tmp_path / "teacher"),), distill_share=1.0)
    fit(taught, corpus, tmp_path / "taught", say=lambda _: None)
    losses = [json.loads(line).get("loss") for line in (tmp_path / "taught" / "metrics.jsonl").open(encoding="utf-8")]
    losses = [loss for loss in losses if loss]
    assert losses[-1] < losses[0] and all(map(math.isfinite, losses))
    record = read_json(tmp_path / "taught" / "best" / "training.json")
    assert "--distill-from teacher --distill-share 1.0" in record["command"]
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizer": "bpe:280"}, "another vocabulary"),
        ({"block_size": 16}, "looks back 16 tokens"),
        ({"holdout": 0.2}, "worth nothing"),
    ],
)
def test_who_knows_what_will_be_tested_or_speaks_otherwise_is_no_teacher(tmp_path, corpus, config, changes, words):
    config = replace(config, tokenizer="char")
    fit(replace(config, **changes), corpus, tmp_path / "teacher", say=lambda _: None)
    taught = replace(config, distill_from=(str(tmp_path / "teacher"),))
    with pytest.raises(ValueError, match=words):
        fit(taught, corpus, tmp_path / "run", say=lambda _: None)


def test_a_teacher_of_another_text_or_of_none_that_it_names_is_refused(tmp_path, corpus, config):
    other = replace(corpus, documents=(*corpus.documents, Document("three", "The end, they said. " * 20)))
    config = replace(config, tokenizer="char")
    fit(config, other, tmp_path / "teacher", say=lambda _: None)
    taught = replace(config, distill_from=(str(tmp_path / "teacher"),))
    with pytest.raises(ValueError, match="another text"):
        fit(taught, corpus, tmp_path / "run", say=lambda _: None)
    (tmp_path / "teacher" / "best" / "training.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="worth nothing"):
        fit(taught, other, tmp_path / "run", say=lambda _: None)
