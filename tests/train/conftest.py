"""What every test of train/ may ask for: a cache of its own, a small text, a configuration that trains in a second."""

from __future__ import annotations

from dataclasses import replace

import pytest

from train import memory, trainer
from train.config import TrainConfig, preset
from train.corpus import Corpus, Document


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or fills the user's cache of token shards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session", autouse=True)
def short_samples():
    """Samples of a few tokens, and few of them: they are most of the time of a run as small as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "SAMPLE", replace(trainer.SAMPLE, max_new_tokens=12))
        patch.setattr(memory, "SAMPLES", 4)
        patch.setattr(memory, "PROMPTS", 4)
        yield


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Two documents of rhymes, 12,000 characters together."""
    places = ("low", "high", "still")
    text = "".join(f"The {n % 7} little birds sat {places[n % 3]} in tree number {n % 11}.\n" for n in range(250))
    documents = (Document("one", text), Document("two", text[3000:]))
    return Corpus("rhymes", "Rhymes made for a test.", None, None, documents)


@pytest.fixture(scope="session")
def config() -> TrainConfig:
    """A run of 20 steps that takes about a second on the CPU."""
    return replace(
        preset("tiny"),
        tokenizer="bpe:300",
        n_layer=1,
        n_embd=32,
        block_size=32,
        batch_size=4,
        max_steps=20,
        eval_every=10,
        warmup_steps=4,
        prompts=("The ",),
        device="cpu",
        dtype="float32",
    )
