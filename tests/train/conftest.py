"""What every test of train/ may ask for: a cache of its own, a small text, and a configuration that trains in a second."""

from __future__ import annotations

from dataclasses import replace

import pytest

from train.config import TrainConfig, preset
from train.corpus import Corpus, Document


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test reads or fills the user's cache of token shards."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    """Two documents of rhymes, 12,000 characters together."""
    lines = [f"The {n % 7} little birds sat {'high' if n % 3 else 'low'} in tree number {n % 11}.\n" for n in range(250)]
    text = "".join(lines)
    return Corpus("rhymes", "Rhymes made for a test.", None, None, (Document("one", text), Document("two", text[3000:])))


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
