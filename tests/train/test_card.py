"""The model card: true, valid and readable."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from train import card
from train.trainer import fit


@pytest.fixture(scope="module")
def directory(tmp_path_factory, corpus, config):
    """A finished checkpoint with its card."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        run_dir = tmp_path_factory.mktemp("runs") / "rhymes"
        return fit(replace(config, prompts=("", "The ")), corpus, run_dir, card.write, say=lambda _: None).directory


def test_the_metadata_is_what_the_hub_reads(directory):
    data = ModelCard.load(directory / "README.md", ignore_metadata_errors=False).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.widget[0]["text"] == "The "
    assert data.widget[0]["output"]["text"]
    figures = {result.metric_type: result.metric_value for result in data.eval_results}
    assert figures["bits_per_byte"] == card.read_json(directory / "training.json")["figures"]["held_out_bits_per_byte"]


def test_the_text_says_the_command_the_data_the_figures_and_the_limits(directory, corpus):
    text = (directory / "README.md").read_text(encoding="utf-8")
    for promised in [
        "python -m train --preset tiny",
        corpus.documents[0].sha256,
        "held-out bits per byte",
        "AutoModelForCausalLM",
        "![",
        "Step 0",
        "Step 20",
        "can't do",
    ]:
        assert promised in text, promised


def test_the_card_sets_copies_beside_those_of_the_held_out_text(directory, corpus):
    found = card.read_json(directory / "training.json")["memorisation"]
    text = (directory / "README.md").read_text(encoding="utf-8")
    section = text.split("## What it learned by heart")[1].split("##")[0]
    assert "|  | what it writes | the held-out text |\n| --- | --- | --- |\n" in section
    assert f"{found['copied']['held_out']:.2%}" in section
    longest = found["longest_copy"]["held_out"]
    assert f"{longest['words']} ({corpus.documents[0].name}, line {longest['line']:,})" in section
    assert f"of {found['extraction']['train']['prompts']} places of the training text" in section


def test_the_card_says_of_what_was_learned_by_heart_what_is_known(directory):
    found = card.read_json(directory / "training.json")["memorisation"]
    assert card._memorisation({}) == ""
    recital = card._memorisation({"memorisation": {"extraction": found["extraction"]}})  # all that a large text has
    assert "places of the training text and at" in recital and "|" not in recital
    alone = {name: {"generated": found[name]["generated"]} for name in ("novelty", "copied", "longest_copy")}
    alone["extraction"] = found["extraction"] | {"held_out": {"prompts": 0, "recited": 0}}
    shown = card._memorisation({"memorisation": found | alone})
    assert "what it writes" in shown and "places of the training text." in shown and "| the held-out" not in shown
    assert all(f"| runs of {n} words " in shown for n in (2, 8, 16))


def test_what_a_model_writes_can_not_break_the_card():
    sample = {"step": 3, "prompt": "*", "seed": 1, "text": "```\n# Heading\n\x1b[31m</details>\u0000<script>"}
    shown = card._samples([sample])
    body = shown.split("**Step 3**")[1]
    assert all(line.startswith("    ") for line in body.splitlines() if line)
    assert "\x1b" not in shown and "\x00" not in shown


def test_a_fine_tuned_model_names_where_it_comes_from(directory, tmp_path):
    trained = card.read_json(directory / "training.json")
    for base, on_hub in [("openai-community/gpt2", "openai-community/gpt2"), ("my-run", None)]:
        changed = trained | {"config": trained["config"] | {"init_from": base}}
        assert card.metadata(changed, []).base_model == on_hub
        (tmp_path / "training.json").write_text(json.dumps(changed), encoding="utf-8")
        assert f"It began as {base}, and then read" in card.render(tmp_path)
