"""A run that learns from other runs: what it takes from them, and whom it does not take for a teacher."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import gpt2
from gpt2.device import Precision
from gpt2.files import WEIGHTS, read_json
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
            found = Teachers(teachers, share, []).loss(network, idx, targets)
            torch.testing.assert_close(found, share * soft + (1 - share) * hard)


def test_a_model_has_nothing_to_learn_from_itself(corpus, config, models, batch):
    precision = Precision(torch.float32, "as asked")
    learner = Learner(config, models[0], CPU, precision, Processes(), Teachers([models[0]], 1.0, []))
    _, grad_norm, _ = learner.step(0, *batch, 1e-3)
    assert grad_norm < 1e-5


def test_a_taught_run_learns_what_its_teacher_expects_and_no_other(tmp_path, corpus, config, batch):
    config, idx = replace(config, max_steps=60, eval_every=30), batch[0]
    fit(config, corpus, tmp_path / "teacher", say=lambda _: None)
    teacher, tokenizer = gpt2.load(tmp_path / "teacher", "cpu", "float32")
    order = torch.randperm(tokenizer.vocab_size, generator=torch.Generator().manual_seed(1))
    teacher.transformer.wte.weight.copy_(teacher.transformer.wte.weight[order])  # now it expects things of its own
    directory = tmp_path / "teacher" / "best"
    gpt2.save(directory, teacher, tokenizer, **read_json(directory / "training.json"))
    alone = replace(config, seed=5, result="last")
    taught = replace(alone, distill_from=(str(directory),), distill_share=1.0)
    log_p = {"teacher": teacher(idx)[0].log_softmax(-1).flatten(0, 1)}
    for name, how in (("alone", alone), ("taught", taught)):
        fit(how, corpus, tmp_path / name, say=lambda _: None)
        log_p[name] = gpt2.load(tmp_path / name / "last", "cpu", "float32")[0](idx)[0].log_softmax(-1).flatten(0, 1)
    away = {name: kl_div(log_p[name], log_p["teacher"], log_target=True, reduction="batchmean") for name in log_p}
    assert away["taught"] < 0.5 * away["alone"]


def test_a_taught_run_says_who_taught_it_and_goes_on_with_nobody_else(tmp_path, corpus, config):
    for name, seed in (("one", 1), ("two", 2)):
        fit(replace(config, seed=seed), corpus, tmp_path / name, say=lambda _: None)
    taught = replace(config, distill_from=(str(tmp_path / "one"),), distill_share=0.25)
    fit(taught, corpus, tmp_path / "run", say=lambda _: None)
    record = read_json(tmp_path / "run" / "best" / "training.json")
    assert "--distill-from one --distill-share 0.25" in record["command"] and str(tmp_path) not in json.dumps(record)
    assert record["teachers"] == [sha256((tmp_path / "one" / "best" / WEIGHTS).read_bytes()).hexdigest()]
    shutil.move(tmp_path / "one", tmp_path / "moved")
    assert str(tmp_path) not in str(taught.public())
    longer = replace(taught, max_steps=25)
    for others in ((str(tmp_path / "two"),), (), (str(tmp_path / "moved"), str(tmp_path / "two"))):
        with pytest.raises(ValueError, match="not the weights that taught"):
            fit(replace(longer, distill_from=others), corpus, tmp_path / "run", say=lambda _: None)
    said = []
    fit(replace(longer, distill_from=(str(tmp_path / "moved"),)), corpus, tmp_path / "run", say=said.append)
    assert "Going on from step 20." in said


def test_a_dry_run_with_a_teacher_trains_nothing(tmp_path, corpus, config):
    fit(config, corpus, tmp_path / "teacher", say=lambda _: None)
    said = []
    taught = replace(config, dry_run=True, distill_from=(str(tmp_path / "teacher"),))
    fit(taught, corpus, tmp_path / "run", say=said.append)
    assert "Nothing was trained." in said[-1] and not (tmp_path / "run" / "state").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizer": "bpe:280"}, "another vocabulary"),
        ({"block_size": 16}, "looks back 16 tokens"),
        ({"holdout": 0.2}, "may know what is held out"),
        ({"validation": 0, "result": "last"}, "may know what is held out"),
        ({"validation": 0.1}, None),  # it knows less
    ],
)
def test_who_knows_what_will_be_tested_or_speaks_otherwise_is_no_teacher(tmp_path, corpus, config, changes, words):
    config = replace(config, tokenizer="char")
    fit(replace(config, **changes), corpus, tmp_path / "teacher", say=lambda _: None)
    taught = replace(config, distill_from=(str(tmp_path / "teacher" / changes.get("result", "best")),))
    with pytest.raises(ValueError, match=words) if words else nullcontext():
        fit(taught, corpus, tmp_path / "run", say=lambda _: None)


def test_a_teacher_of_another_text_or_of_none_that_it_names_is_refused(tmp_path, corpus, config):
    other = replace(corpus, documents=(*corpus.documents, Document("three", "The end, they said. " * 20)))
    config = replace(config, tokenizer="char")
    fit(config, other, tmp_path / "teacher", say=lambda _: None)
    taught = replace(config, distill_from=(str(tmp_path / "teacher"),))
    with pytest.raises(ValueError, match="may know what is held out"):
        fit(taught, corpus, tmp_path / "run", say=lambda _: None)
    path = tmp_path / "teacher" / "best" / "training.json"
    record = read_json(path)
    record["config"]["init_from"] = "openai-community/gpt2"
    for damaged in (json.dumps(record), "{}", '{"config": 5, "data": [[]]}', None):
        path.write_text(damaged, encoding="utf-8") if damaged else path.unlink()
        with pytest.raises(ValueError, match="may know what is held out"):
            fit(taught, other, tmp_path / "run", say=lambda _: None)
