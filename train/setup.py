"""What a run begins with: a model with fresh weights, prompts to sample, and a sentence on what will be done.

Knows how a configuration becomes these. Knows nothing of steps.
"""

from __future__ import annotations

import torch

import gpt2
from train.config import TrainConfig
from train.corpus import Corpus
from train.dataset import Dataset

MODEL_PADDING = 128  # the head's matrix product is faster when its rows are a multiple of this


def new_model(config: TrainConfig, data: Dataset, device: torch.device) -> gpt2.GPT:
    """A model with fresh weights, drawn on the CPU so that a seed means the same everywhere."""
    sizes = {name: getattr(config, name) for name in ("block_size", "n_layer", "n_head", "n_embd", "dropout")}
    ends = {"bos_token_id": data.bos, "eos_token_id": data.tokenizer.endoftext}
    with torch.device("meta"):
        model = gpt2.GPT(
            gpt2.GPTConfig(vocab_size=data.tokenizer.vocab_size, **sizes, **ends), pad_vocab_to=MODEL_PADDING
        )
    model.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(config.seed))
    return model.to(device)


def default_prompts(data: Dataset) -> tuple[str, ...]:
    """Nothing at all, and the first two whole lines of the validation part (or of the training part)."""
    part = data.validation if len(data.validation) > 1 else data.train
    text = data.tokenizer.decode(int(i) for i in part.ids[1:400])
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    return ("", *(line[:80] + "\n" for line in lines[:2]))


def describe(config: TrainConfig, corpus: Corpus, data: Dataset, parameters: int, about: dict[str, str]) -> str:
    """What is about to be trained, on what, in two lines."""
    per_step = config.batch_size * config.block_size
    epochs = config.max_steps * per_step / len(data.train)
    return (
        f"Training a GPT-2 of {parameters / 1e6:.2f} million parameters on {corpus.name}: "
        f"{len(data.train):,} tokens, {config.max_steps:,} steps of {per_step:,}, {epochs:.1f} times through it.\n"
        f"On {about['hardware']} in {about['precision']}."
    )
