"""What a run begins with: a model with fresh or inherited weights, prompts to sample, and what it will come to.

Knows how a configuration becomes these. Knows nothing of steps.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

import gpt2
from gpt2 import checkpoint
from train import card, headstart
from train.augment import Augmentation
from train.config import TrainConfig
from train.corpus import Corpus
from train.dataset import Batches, Dataset
from train.learner import Learner
from train.optimizer import Muon

MODEL_PADDING = 128  # the head's matrix product is faster when its rows are a multiple of this


SIZES = ("n_layer", "n_head", "n_embd", "block_size")


def inherited_sizes(source: str) -> dict[str, int]:
    """The fields of a TrainConfig that a checkpoint to fine-tune decides.

    Raises:
        gpt2.CheckpointError: where it can not be fine-tuned.
    """
    config = checkpoint.read_config(checkpoint.find(source).directory)
    return {name: getattr(config, name) for name in SIZES}


def inherit(config: TrainConfig) -> tuple[gpt2.GPT | None, gpt2.Tokenizer | None]:
    """The model and tokenizer to go on from; (None, None) where a run starts from nothing.

    Raises:
        ValueError: where a flag asks for sizes that it does not have.
    """
    if config.init_from is None:
        return None, None
    model, tokenizer = gpt2.load(config.init_from, "cpu", "float32")
    for name in SIZES:
        theirs, ours = getattr(model.config, name), getattr(config, name)
        if ours != theirs and not (name == "block_size" and ours < theirs):
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {ours}: {config.init_from} has {theirs}. Leave the flag out.")
    return model, tokenizer


def new_model(config: TrainConfig, data: Dataset, device: torch.device, pretrained: gpt2.GPT | None = None) -> gpt2.GPT:
    """A model with fresh weights, drawn on the CPU so that a seed means the same everywhere, or with those of
    pretrained, whose positions beyond block_size are cut."""
    sizes = {name: getattr(config, name) for name in (*SIZES, "dropout")}
    ends = {"bos_token_id": data.bos, "eos_token_id": data.tokenizer.endoftext}
    with torch.device("meta"):
        model = gpt2.GPT(
            gpt2.GPTConfig(vocab_size=data.tokenizer.vocab_size, **sizes, **ends), pad_vocab_to=MODEL_PADDING
        )
    draw = torch.Generator().manual_seed(config.seed)
    model.to_empty(device="cpu").init_weights(draw)
    if config.head_start:
        headstart.give(model, draw)
    if pretrained is not None:
        theirs = dict(pretrained.named_parameters())
        with torch.no_grad():
            for name, p in model.named_parameters():
                rows = min(len(p), len(theirs[name]))  # ours has rows of padding, theirs may have more positions
                p[:rows] = theirs[name][:rows]
    return model.to(device)


def batches(config: TrainConfig, data: Dataset) -> Batches:
    """The batches of the run."""
    ids, tokenizer = data.train.ids, data.tokenizer
    # Of a large vocabulary these take a tenth of a second, so only where they are asked for.
    origins = tokenizer.origins if config.bpe_dropout else ()
    texts = [tokenizer.decode([idx]) for idx in range(tokenizer.vocab_size)] if config.renaming else ()
    shares = {name: getattr(config, name) for name in ("input_noise", "bpe_dropout", "renaming", "echo")}
    augmentation = Augmentation(ids, origins, texts, data.bos, **shares)
    return Batches(ids, config.block_size, config.batch_size, config.seed, config.order, augmentation)


def default_prompts(data: Dataset, config: TrainConfig) -> tuple[str, ...]:
    """Nothing at all, and the first two whole lines of the validation part (or of the training part); of a text that is
    not to be found in its checkpoints, none."""
    if not config.overlap:
        return ("",)
    part = data.validation if len(data.validation) > 1 else data.train
    starts = set(part.starts)  # the marker between documents is no text
    text = data.tokenizer.decode(int(part.ids[i]) for i in range(1, min(400, len(part))) if i not in starts)
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    return ("", *(line[:80] + "\n" for line in lines[:2]))


def describe(config: TrainConfig, corpus: Corpus, data: Dataset, parameters: int, about: dict[str, str]) -> str:
    """What is about to be trained, on what, in two lines; and what would suit a short text better."""
    per_step = config.batch_size * config.block_size
    epochs = config.max_steps * per_step / len(data.train)
    what = f"Fine-tuning {config.init_from}," if config.init_from else "Training"
    often = config.preset == "mini" and epochs > 10
    advice = "\nThe text is short for this preset, and soon known by heart; --preset short is made for such." * often
    return (
        f"{what} a GPT-2 of {parameters / 1e6:.2f} million parameters on {corpus.name}: "
        f"{len(data.train):,} tokens, {config.max_steps:,} steps of {per_step:,}, {epochs:.1f} times through it.\n"
        f"On {about['hardware']} in {about['precision']}.{advice}"
    )


def estimate(learner: Learner, idx: Tensor, targets: Tensor) -> str:
    """What the run would take in memory and time, from its sizes and two micro-batches without an update."""
    config, model, rows = learner.config, learner.model, learner.rows_at_once()
    n = sum(p.numel() for p in model.parameters())
    # In float32: weights, gradients, the average, and what the optimizers remember: two numbers for every weight of
    # AdamW, one for Muon's. Per token and layer 17 activations of n_embd are kept for the backward pass, and the
    # logits of a chunk, of all tokens where others teach, three times.
    taught_by = learner.teachers.models if learner.teachers else []
    fixed = 4 * n * (2 + bool(config.ema)) + 4 * sum(model.config.n_parameters for model in taught_by)
    for part in learner.optimizers:
        weights = sum(p.numel() for group in part.param_groups for p in group["params"])
        fixed += 4 * weights * (1 if isinstance(part, Muon) else 2)
    width = 4 if learner.precision.dtype == torch.float32 else 2
    tokens = rows * config.block_size
    moving = 17 * width * tokens * config.n_layer * config.n_embd
    chunk = gpt2.model.LOSS_CHUNK_ON_CPU if learner.device.type == "cpu" else gpt2.model.LOSS_CHUNK
    moving += 12 * (tokens if taught_by else min(tokens, chunk)) * model.transformer.wte.weight.size(0)
    world = learner.processes.world
    seconds = math.inf
    for _ in range(2):  # the first warms up
        started = time.perf_counter()
        learner.backward(idx[: rows * world], targets[: rows * world])
        if learner.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    micro_batches = math.ceil(config.batch_size / (rows * world))
    step = seconds * micro_batches
    return (
        f"About {max(0.1, (fixed + moving) / 1e9):.1f} GB of memory for the training itself, and "
        f"{card.duration(step) if step >= 10 else f'{step:.2g} seconds'} a step: "
        f"{card.duration(step * config.max_steps)} for all, evaluations not counted. Nothing was trained."
    )
