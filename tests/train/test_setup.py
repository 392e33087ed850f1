"""What a run begins with: fresh weights, or those of a checkpoint to fine-tune."""

from __future__ import annotations

import json
import random
import re
import shutil
import string
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import gpt2
from page.served import load_or_fall_back
from train.__main__ import main, parse
from train.config import preset
from train.corpus import Corpus
from train.dataset import prepare
from train.document import Document
from train.journal import read_jsonl
from train.setup import batches, default_prompts, describe, inherit, new_model

CPU = torch.device("cpu")


def test_fresh_weights_follow_from_the_seed_alone(corpus, config):
    data = prepare(corpus, config)
    one = new_model(config, data, CPU).state_dict()
    torch.manual_seed(99)
    two, other = (new_model(replace(config, seed=seed), data, CPU).state_dict() for seed in (config.seed, 2))
    assert all(one[name].equal(two[name]) for name in one)
    assert not one["transformer.wte.weight"].equal(other["transformer.wte.weight"])


@pytest.mark.parametrize("name, steps, advised", [("mini", 1800, True), ("mini", 1, False), ("short", 3000, False)])
def test_a_text_too_short_for_the_usual_preset_gets_the_advice_to_take_another(corpus, config, name, steps, advised):
    data = prepare(corpus, config)
    said = describe(replace(preset(name), max_steps=steps), corpus, data, 1, {"hardware": "", "precision": ""})
    assert ("--preset short" in said) == advised


def test_a_head_start_is_in_the_fresh_weights_and_follows_from_the_seed(corpus, config):
    data, config = prepare(corpus, config), replace(config, n_layer=2, n_head=2)
    one, two = (new_model(replace(config, head_start=True), data, CPU).state_dict() for _ in range(2))
    plain = new_model(config, data, CPU).state_dict()
    assert all(one[name].equal(two[name]) for name in one)
    assert not one["transformer.h.0.attn.c_attn.weight"].equal(plain["transformer.h.0.attn.c_attn.weight"])


@pytest.mark.parametrize("flag", ["input_noise", "bpe_dropout", "renaming", "echo"])
def test_what_a_flag_does_to_the_text_reaches_the_batches(config, flag):
    draw = random.Random(1)
    words = ("".join(draw.choices("abcdefghij ", k=40)) + draw.choice(string.ascii_uppercase) for _ in range(300))
    document = Document("words", "".join(words))  # capitals are rare, and alike
    data = prepare(Corpus("words", "", None, None, (document,)), config)
    plain, changed = (batches(some, data) for some in (config, replace(config, **{flag: 0.9})))
    assert any(not changed.at(step)[0].equal(plain.at(step)[0]) for step in range(10))


def test_of_a_text_that_is_not_to_be_found_in_its_checkpoints_no_line_is_a_prompt(corpus, config):
    data = prepare(corpus, config)
    assert len(default_prompts(data, config)) == 3
    assert default_prompts(data, replace(config, overlap=False)) == ("",)


def test_fine_tuning_begins_with_the_checkpoints_own_predictions(corpus, tiny_checkpoint, tiny_model):
    config = parse(["--init-from", str(tiny_checkpoint), "--device", "cpu"])
    pretrained, tokenizer = inherit(config)
    data = prepare(corpus, config, tokenizer=tokenizer)
    model = new_model(config, data, CPU, pretrained).eval()
    idx = torch.tensor([[5, 100, 260, 7, 42]])
    torch.testing.assert_close(model(idx)[0], tiny_model(idx)[0])
    assert data.tokenizer.sha256 == gpt2.Tokenizer.from_directory(tiny_checkpoint).sha256


def test_a_shorter_window_cuts_the_positions(corpus, tiny_checkpoint, tiny_model):
    config = parse(["--init-from", str(tiny_checkpoint), "--block-size", "8"])
    pretrained, tokenizer = inherit(config)
    model = new_model(config, prepare(corpus, config, tokenizer=tokenizer), CPU, pretrained).eval()
    idx = torch.tensor([[5, 100, 260]])
    assert model.config.block_size == 8
    torch.testing.assert_close(model(idx)[0], tiny_model(idx)[0])


def test_a_checkpoint_decides_the_sizes_and_the_recipe_is_for_fine_tuning(tiny_checkpoint):
    config = parse(["--init-from", str(tiny_checkpoint)])
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (2, 2, 32, 16)
    assert (config.preset, config.tokenizer) == ("finetune", "inherited")
    assert "--init-from tiny" in config.command()  # without the folders it lies in


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [(["--n-layer", "5"], "--n-layer 5: .* has 2"), (["--block-size", "64"], "--block-size 64: .* has 16")],
)
def test_flags_that_contradict_the_checkpoint_are_refused(tiny_checkpoint, flags, sentence):
    with pytest.raises(ValueError, match=sentence):
        inherit(parse(["--init-from", str(tiny_checkpoint), *flags]))


def test_it_brings_its_own_tokenizer(tiny_checkpoint, capsys):
    with pytest.raises((SystemExit, ValueError)) as refused:  # tyro shows the second by itself, since 1.0.16
        parse(["--init-from", str(tiny_checkpoint), "--tokenizer", "bpe:512"])
    assert "brings its own" in f"{capsys.readouterr().err} {refused.value}"


def test_another_architecture_is_refused_with_the_reason(tmp_path, tiny_checkpoint, capsys):
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}), encoding="utf-8")
    assert main(["--init-from", str(tmp_path / "other")]) == 2
    assert "llama" in capsys.readouterr().err


def test_fine_tuning_runs_to_a_checkpoint_and_can_be_resumed(tmp_path, tiny_checkpoint, capsys):
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 100, encoding="utf-8")
    out = tmp_path / "run"
    flags = [str(tmp_path / "my.txt"), "--init-from", str(tiny_checkpoint), "--out", str(out), "--device", "cpu"]
    assert main([*flags, "--max-steps", "4", "--eval-every", "2", "--log-every", "1"]) == 0
    assert main(["--resume", "--out", str(out), "--max-steps", "6"]) == 0
    assert [e["step"] for e in read_jsonl(out / "metrics.jsonl") if "loss" in e] == [1, 2, 3, 4, 5, 6]
    assert gpt2.load(out, "cpu")[0].config.n_embd == 32


def test_a_checkpoint_in_gpt2s_own_old_layout_is_fine_tuned_and_served(tmp_path, tiny_checkpoint):
    """openai-community/gpt2 has no prefix before its names, and brings the causal masks along."""
    old = shutil.copytree(tiny_checkpoint, tmp_path / "old")
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(old / "model.safetensors").items()}
    tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16).tril() for layer in range(2)}
    save_file(tensors, old / "model.safetensors", {"format": "pt"})
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 100, encoding="utf-8")
    out = tmp_path / "run"
    flags = ["--out", str(out), "--device", "cpu", "--max-steps", "2", "--eval-every", "2", "--result", "last"]
    assert main([str(tmp_path / "my.txt"), "--init-from", str(old), "--learning-rate", "0", *flags]) == 0
    theirs = load_file(out / "last" / "model.safetensors")  # with a rate of zero, what it began with
    assert all(theirs[f"transformer.{name}"].equal(t) for name, t in tensors.items() if "attn.bias" not in name)
    served = load_or_fall_back(str(old), "")  # what the page does with MODEL_ID
    assert (served.name, served.notice) == ("old", None)


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(tmp_path, capsys):
    (tmp_path / "my.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 100, encoding="utf-8")
    out = tmp_path / "run"
    assert main([str(tmp_path / "my.txt"), "--preset", "tiny", "--out", str(out), "--device", "cpu", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"million parameters on my: [\d,]+ tokens, 200 steps of 1,024, [\d.]+ times", said)
    assert re.search(r"About [\d.]+ GB of memory .* and [\d.]+ (seconds|minutes) a step: \d+ \w+ for all", said)
    assert not out.exists()
