"""The loop: text in, a checkpoint out."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

import gpt2
from gpt2.device import Precision
from train import learner, memory, state, trainer
from train.journal import read_jsonl
from train.trainer import Stopper, fit


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, config):
    """(run directory, result, what was said) of one undisturbed run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        run_dir, said = tmp_path_factory.mktemp("runs") / "rhymes", []
        result = fit(replace(config, max_steps=60), corpus, run_dir, say=said.append)
    return run_dir, result, said


def weights(directory) -> dict[str, torch.Tensor]:
    return gpt2.load(directory, "cpu", "float32")[0].state_dict()


def test_more_texts_than_a_checkpoint_can_name_are_refused_before_anything_is_done(
    corpus, config, tmp_path, monkeypatch
):
    monkeypatch.setattr(trainer, "MAX_DOCUMENTS", 1)
    with pytest.raises(ValueError, match="2 texts are more than the 1 .* join them"):
        fit(config, corpus, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_ends_with_a_checkpoint_that_beats_knowing_nothing(finished):
    run_dir, result, _ = finished
    assert result.directory == run_dir / "best"
    assert result.figures["held_out_bits_per_byte"] < 0.5 * math.log2(300)
    model, tokenizer = gpt2.load(result.directory, "cpu")
    assert "".join(gpt2.generate(model, tokenizer, "The ", gpt2.SamplingParams(seed=1, max_new_tokens=20)))


def test_a_checkpoint_is_complete_in_itself(finished):
    run_dir, _, _ = finished
    expected = {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    expected |= {"vocab.json", "merges.txt", "training.json", "metrics.jsonl", "samples.jsonl", "loss.png"}
    expected |= {"overlap.safetensors"}
    for name in ("best", "last"):
        assert {path.name for path in (run_dir / name).iterdir()} == expected
    journals = {"run.json", "metrics.jsonl", "samples.jsonl"}
    assert {path.name for path in run_dir.iterdir()} == {"best", "last", "state", state.LOCK} | journals


def test_the_record_says_what_it_was_trained_on_and_how_long(finished, corpus):
    trained = json.loads((finished[0] / "best" / "training.json").read_text(encoding="utf-8"))
    assert trained["data"] == [
        {"name": d.name, "sha256": d.sha256, "bytes": len(d.text.encode())} for d in corpus.documents
    ]
    assert trained["tokens_seen"] == trained["steps"] * 4 * 32
    assert trained["config"]["seed"] == 1337
    assert trained["seconds"] > 0
    assert {"python", "torch"} <= set(trained["versions"])


def test_the_figures_are_those_of_the_exported_file(finished, corpus, config):
    from train import scoring
    from train.dataset import prepare

    _, result, _ = finished
    model, _ = gpt2.load(result.directory, "cpu", "float32")
    score = scoring.score(model, prepare(corpus, config).holdout)
    assert result.figures["held_out_bits_per_byte"] == round(score.bits_per_byte, 4)


def test_the_exports_know_the_training_part_again_and_it_alone(finished, corpus, config):
    from train import tokens

    parts = ["", "", ""]
    for number, text in tokens.parts_of(corpus.documents[0], config):
        parts[number] += text
    for name in ("best", "last"):
        found = gpt2.Overlap.from_directory(finished[0] / name)
        assert found.spans(parts[0]) == [(0, len(parts[0].rstrip(".\n ")))]
        assert found.share(parts[0].replace("birds", "mice").replace("tree", "bush")) == 0
        tokenizer = gpt2.Tokenizer.from_directory(finished[0] / name)
        assert all(map(found.saw, tokenizer.encode(parts[0])))
        assert not any(map(found.saw, tokenizer.encode("\u00df")))  # two bytes that stand nowhere in the text


def test_the_record_says_what_was_learned_by_heart(finished, corpus):
    trained = json.loads((finished[0] / "best" / "training.json").read_text(encoding="utf-8"))
    found = trained["memorisation"]
    assert set(found) == {"extraction", "sampling", "novelty", "copied", "longest_copy"}
    assert found["longest_copy"]["held_out"]["document"] == corpus.documents[0].name
    assert found["copied"]["held_out"] > 0.5  # rhymes repeat themselves
    assert "memorisation" not in json.loads((finished[0] / "last" / "training.json").read_text(encoding="utf-8"))


def test_no_overlap_keeps_the_hashes_of_a_private_text_out(tmp_path, corpus, config):
    result = fit(
        replace(config, max_steps=2, eval_every=2, overlap=False), corpus, tmp_path / "run", say=lambda _: None
    )
    assert not list((tmp_path / "run").rglob("overlap.safetensors"))
    assert gpt2.Overlap.from_directory(result.directory) is None


def test_a_large_text_gets_no_hashes(tmp_path, corpus, config, monkeypatch):
    monkeypatch.setattr(memory, "MAX_TEXT", 5000)
    fit(replace(config, max_steps=2, eval_every=2), corpus, tmp_path / "run", say=lambda _: None)
    assert not list((tmp_path / "run").rglob("overlap.safetensors"))


def test_the_same_prompts_and_seeds_are_sampled_at_every_evaluation(finished):
    samples = read_jsonl(finished[0] / "samples.jsonl")
    assert {s["step"] for s in samples} == {0, 10, 20, 30, 40, 50, 60}
    assert {(s["prompt"], s["seed"]) for s in samples} == {("The ", 1)}


def test_the_same_seed_gives_the_same_weights(finished, tmp_path, corpus, config):
    again = fit(replace(config, max_steps=60), corpus, tmp_path / "again", say=lambda _: None)
    for name, tensor in weights(finished[0] / "last").items():
        assert weights(again.directory.parent / "last")[name].equal(tensor), name


def test_micro_batches_change_nothing_but_memory(tmp_path, corpus, config):
    config = replace(config, max_steps=5, eval_every=5)
    for micro in (None, 1, 3):
        fit(replace(config, micro_batch=micro), corpus, tmp_path / str(micro), say=lambda _: None)
    whole = weights(tmp_path / "None" / "last")
    for micro in (1, 3):
        for name, tensor in weights(tmp_path / str(micro) / "last").items():
            torch.testing.assert_close(tensor, whole[name], atol=1e-5, rtol=0)


def test_dropout_is_a_function_of_the_seed_and_the_step(tmp_path, corpus, config):
    config = replace(config, max_steps=4, eval_every=4, dropout=0.3)
    for name in ("a", "b"):
        torch.manual_seed(len(list(tmp_path.iterdir())))  # what went before must not matter
        fit(config, corpus, tmp_path / name, say=lambda _: None)
    assert all(t.equal(weights(tmp_path / "b" / "last")[n]) for n, t in weights(tmp_path / "a" / "last").items())


def test_best_is_the_checkpoint_with_the_lowest_validation_figure(tmp_path, corpus, config, monkeypatch):
    figures = iter([5.0, 3.0, 2.0, 4.0, 4.5])
    monkeypatch.setattr(trainer.scoring, "score", _scripted(trainer.scoring.score, figures))
    fit(replace(config, max_steps=40), corpus, tmp_path / "run", say=lambda _: None)
    steps = [gpt2.checkpoint.read_json(tmp_path / "run" / name / "training.json")["steps"] for name in ("best", "last")]
    assert steps == [20, 40]


def test_patience_ends_a_run_that_no_longer_improves(tmp_path, corpus, config, monkeypatch):
    figures = iter([5.0, 3.0, 3.5, math.nan, 3.6, 1.0])
    monkeypatch.setattr(trainer.scoring, "score", _scripted(trainer.scoring.score, figures))
    result = fit(replace(config, max_steps=100, patience=3), corpus, tmp_path / "run", say=lambda _: None)
    assert result.steps == 40


def test_nan_is_never_an_improvement():
    stopper = Stopper(patience=2)
    assert stopper.see(2.0, 10)
    assert not stopper.see(math.nan, 20)
    assert stopper.best == 2.0


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tmp_path, corpus, config, monkeypatch):
    backward, calls = learner.Learner.backward, []

    def poisoned(self, idx, targets):
        loss = backward(self, idx, targets)
        calls.append(1)
        if len(calls) > 12:
            next(self.model.parameters()).grad.fill_(math.nan)
        return loss

    monkeypatch.setattr(learner.Learner, "backward", poisoned)
    with pytest.raises(FloatingPointError, match=r"learning rate .* Try --learning-rate"):
        fit(replace(config, max_steps=100), corpus, tmp_path / "run", say=lambda _: None)
    assert len(calls) == 12 + trainer.MAX_BAD_STEPS
    assert all(t.isfinite().all() for t in weights(tmp_path / "run" / "last").values())


def test_a_compiler_that_fails_is_one_sentence_and_the_run_goes_on(tmp_path, corpus, config, monkeypatch):
    class Broken(torch.nn.Module):
        def forward(self, *_):
            raise RuntimeError("no compiler here\nand a long traceback")

    monkeypatch.setattr(torch, "compile", lambda model: Broken())
    said = []
    fit(replace(config, max_steps=4, compile=True), corpus, tmp_path / "run", say=said.append)
    assert sum("torch.compile does not work here (no compiler here)" in sentence for sentence in said) == 1


def test_the_result_of_a_run_without_validation_is_its_last_checkpoint(tmp_path, corpus, config):
    config = replace(config, validation=0, result="last", endoftext=False, order="sequential")
    result = fit(config, corpus, tmp_path / "run", say=lambda _: None)
    assert result.directory == tmp_path / "run" / "last"
    assert "held_out_bits_per_byte" in result.figures and "validation_bits_per_byte" not in result.figures
    assert not (tmp_path / "run" / "best").exists()
    model, tokenizer = gpt2.load(result.directory, "cpu")
    assert tokenizer.decode([model.config.bos_token_id]) == "\n"


def test_everything_that_is_saved_is_shown_to_the_hook_first(tmp_path, corpus, config):
    def hook(directory):
        assert (directory / "model.safetensors").exists()
        (directory / "README.md").write_text("card", encoding="utf-8")

    fit(config, corpus, tmp_path / "run", on_save=hook, say=lambda _: None)
    for name in ("best", "last"):
        assert (tmp_path / "run" / name / "README.md").read_text(encoding="utf-8") == "card"


def _scripted(real, figures):
    """scoring.score, but with the validation figures of a script; later scores are real."""

    def score(model, part, **kwargs):
        result = real(model, part, **kwargs)
        if "autocast" in kwargs:
            result = replace(result, each=result.each * (next(figures) / result.bits_per_byte))
        return result

    return score


def test_the_better_of_the_weights_and_their_average_is_exported(tmp_path, corpus, config):
    fit(replace(config, ema=0.8, max_steps=60, learning_rate=2e-2), corpus, tmp_path / "run", say=lambda _: None)
    entries = [e for e in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "validation_bits_per_byte_ema" in e]
    assert len(entries) == 6
    with safe_open(tmp_path / "run" / "state" / "000060.safetensors", "pt") as saved:
        better = entries[-1]["validation_bits_per_byte_ema"] < entries[-1]["validation_bits_per_byte"]
        name = "transformer.h.0.mlp.c_fc.bias"
        number = list(weights(tmp_path / "run" / "last")).index(name)
        expected = saved.get_tensor(f"average.{number}" if better else f"model.{name}")
        other = saved.get_tensor(f"model.{name}" if better else f"average.{number}")
    assert weights(tmp_path / "run" / "last")[name].equal(expected)
    assert not expected.equal(other)


def test_a_gradient_scaler_that_never_finds_its_scale_ends_the_run(tmp_path, corpus, config, monkeypatch):
    """float16 skips steps by nature at first; a run that diverged skips for ever."""
    monkeypatch.setattr(trainer.hardware, "training_precision", lambda *_: Precision(torch.float16, "for this test"))
    monkeypatch.setattr(learner.Learner, "autocast", lambda self: torch.autocast("cpu", enabled=False))
    backward = learner.Learner.backward

    def poisoned(self, idx, targets):
        loss = backward(self, idx, targets)
        next(self.model.parameters()).grad.fill_(math.inf)
        return loss

    monkeypatch.setattr(learner.Learner, "backward", poisoned)
    with pytest.raises(FloatingPointError, match="steps in a row"):
        fit(replace(config, max_steps=100, eval_every=100), corpus, tmp_path / "run", say=lambda _: None)
    skipped = [e["skipped"] for e in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "skipped" in e]
    assert skipped[-1] == trainer.MAX_BAD_STEPS + trainer.SCALER_STEPS


def test_a_few_overflows_of_a_young_scaler_do_no_harm(tmp_path, corpus, config, monkeypatch):
    monkeypatch.setattr(trainer.hardware, "training_precision", lambda *_: Precision(torch.float16, "for this test"))
    monkeypatch.setattr(learner.Learner, "autocast", lambda self: torch.autocast("cpu", enabled=False))
    backward, calls = learner.Learner.backward, []

    def overflowing(self, idx, targets):
        loss = backward(self, idx, targets)
        calls.append(self.scaler.get_scale())
        if len(calls) <= 8:
            next(self.model.parameters()).grad.fill_(math.inf)
        return loss

    monkeypatch.setattr(learner.Learner, "backward", overflowing)
    result = fit(config, corpus, tmp_path / "run", say=lambda _: None)
    assert result.steps == 20
    assert calls[8] == calls[0] / 2**8
