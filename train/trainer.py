"""The loop: batches in, a checkpoint directory out.

Knows the order of things: set the rate, take a step, note it, evaluate, save. How each is done is another file's
business; what else should happen at a save (a model card, a push) is handed in.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpt2
from gpt2 import checkpoint
from gpt2 import device as hardware
from gpt2.model import IGNORE
from train import evaluate, optimizer
from train.config import TrainConfig
from train.corpus import Corpus
from train.dataset import Batches, Dataset, prepare
from train.journal import Journal, draw_losses, read_jsonl
from train.state import staged_directory, write_file

MODEL_PADDING = 128  # the head's matrix product is faster when its rows are a multiple of this
SAMPLE = gpt2.SamplingParams(max_new_tokens=160, temperature=0.8, top_k=50, seed=1)
MAX_BAD_STEPS = 5  # non-finite steps in a row before giving up


@dataclass(frozen=True)
class Result:
    """A finished run."""

    directory: Path  # the checkpoint to use: best/ or last/
    steps: int
    figures: dict[str, float]


@dataclass
class Stopper:
    """Remembers the best validation figure, and when to give up waiting for a better one."""

    patience: int
    best: float = math.inf
    best_step: int = 0
    waited: int = 0

    def see(self, value: float, step: int) -> bool:
        """Take in one evaluation; True if it is the best so far. NaN never is."""
        if value < self.best:
            self.best, self.best_step, self.waited = value, step, 0
            return True
        self.waited += 1
        return False

    @property
    def done(self) -> bool:
        return 0 < self.patience <= self.waited


def fit(
    config: TrainConfig,
    corpus: Corpus,
    run_dir: Path,
    on_save: Callable[[Path], None] = lambda directory: None,
    say: Callable[[str], None] = print,
) -> Result:
    """Train, from fresh weights to the figures of the exported file.

    Args:
        run_dir: gets metrics.jsonl, samples.jsonl, best/ and last/; must not hold a run already.
        on_save: called with every checkpoint directory before it takes its place.
        say: told in a sentence what is happening.

    Raises:
        ValueError: for a text, device or number format that can not work.
        FloatingPointError: where the loss stays NaN or infinite.
    """
    device = hardware.pick_device(config.device)
    precision = hardware.training_precision(device, config.dtype)
    hardware.prepare(device)
    data = prepare(corpus, config, say)
    model = new_model(config, data, device)
    say(describe(config, corpus, data, model.config, device, precision))
    run_dir.mkdir(parents=True, exist_ok=True)

    run = Run(config, corpus, data, model, device, precision, run_dir, on_save, say)
    run.evaluate_and_save(step=0)
    run.training_model = maybe_compile(model, run, say)
    step = 0
    while step < config.max_steps and not run.stopper.done:
        rate = optimizer.learning_rate(step, config)
        optimizer.set_learning_rate(run.optimizer, rate)
        loss, grad_norm = run.train_step(step)
        step += 1
        run.journal.step(step, loss, grad_norm, rate)
        if step % config.eval_every == 0 or step == config.max_steps:
            run.evaluate_and_save(step)
    return run.finish(step)


class Run:
    """The things of one run that change from step to step, and what is done with them."""

    def __init__(self, config, corpus, data, model, device, precision, run_dir, on_save, say):
        self.config: TrainConfig = config
        self.corpus: Corpus = corpus
        self.data: Dataset = data
        self.model: gpt2.GPT = model  # what is evaluated and saved
        self.training_model: torch.nn.Module = model  # the same weights, perhaps compiled
        self.device, self.precision = device, precision
        self.run_dir, self.on_save, self.say = run_dir, on_save, say
        self.batches = Batches(data.train.ids, config.block_size, config.batch_size, config.seed, config.order)
        self.optimizer = optimizer.build(model, config)
        # float16 has too few small numbers for gradients; the scaler lifts them and backs off on overflow.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
        self.stopper = Stopper(config.patience)
        self.journal = Journal(run_dir, config.max_steps, config.batch_size * config.block_size, config.log_every)
        self.prompts = config.prompts or corpus.prompts or default_prompts(data)
        self.bad_steps = 0

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision.dtype, enabled=self.precision.dtype != torch.float32)

    def train_step(self, step: int) -> tuple[Tensor, Tensor]:
        """One update of the weights from one batch; returns its mean loss (nats per token) and gradient norm."""
        # The only use of the global generator: dropout draws from it. Seeded by the step, it is a function of it.
        torch.manual_seed(hash((self.config.seed, step)) % 2**63)
        self.training_model.train()
        loss = self.backward(*self.batches.at(step))
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        if self.scaler.is_enabled() or grad_norm.isfinite():
            self.scaler.step(self.optimizer)  # skips by itself where float16 overflowed
            self.scaler.update()
            self.bad_steps = 0
        else:
            self.skip(step, loss)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, grad_norm

    def backward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradients of a batch (B, T), a micro-batch at a time; returns the mean loss."""
        rows = self.config.micro_batch or len(idx)
        scored = (targets != IGNORE).sum()
        total = torch.zeros((), device=self.device)
        for x, y in zip(idx.split(rows), targets.split(rows), strict=True):
            share = float((y != IGNORE).sum() / scored)  # so that the sum is the mean over the whole batch
            with self.autocast():
                _, loss = self.training_model(
                    x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
                )
            self.scaler.scale(loss * share).backward()
            total += loss.detach() * share
        return total

    def skip(self, step: int, loss: Tensor) -> None:
        """Leave the weights as they are; give up after MAX_BAD_STEPS in a row."""
        self.bad_steps += 1
        rate = self.optimizer.param_groups[0]["lr"]
        self.journal.say(f"step {step + 1}: loss {float(loss):.3g} with a gradient that is not finite; step skipped.")
        if self.bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{MAX_BAD_STEPS} steps in a row up to step {step + 1} were not finite at learning rate {rate:.2g}; "
                f"{self.run_dir / 'last'} is sound. Try --learning-rate {self.config.learning_rate / 3:.1g}."
            )

    def evaluate_and_save(self, step: int) -> None:
        """Validation figure, samples, last/, and best/ where it is the best."""
        figures = {}
        if len(self.data.validation) > 1:
            result = evaluate.score(self.model, self.data.validation, autocast=self.autocast())
            figures["validation_bits_per_byte"] = round(result.bits_per_byte, 5)
        self.journal.evaluation(step, **figures)
        for prompt in self.prompts:
            text = "".join(gpt2.generate(self.model.eval(), self.data.tokenizer, prompt, SAMPLE))
            self.journal.sample(step, prompt, SAMPLE.seed, text)
        improved = self.stopper.see(figures.get("validation_bits_per_byte", -step), step)
        if step:
            for name in ["last", "best"] if improved and figures else ["last"]:
                self.save(name, step, figures)
        self.journal.resume_clock()

    def save(self, name: str, step: int, figures: dict[str, float]) -> None:
        """Export a checkpoint directory, complete in itself, and let it take its place in one step."""
        with staged_directory(self.run_dir / name) as stage:
            provenance = self.provenance(step, figures)
            gpt2.save(stage, self.model, self.data.tokenizer, dtype=self.config.store, **provenance)
            self.add_records(stage)

    def add_records(self, directory: Path) -> None:
        for name in ("metrics.jsonl", "samples.jsonl"):
            shutil.copyfile(self.run_dir / name, directory / name)
        entries = read_jsonl(directory / "metrics.jsonl")
        draw_losses(entries, directory / "loss.png", f"{self.corpus.name}: loss by step")
        self.on_save(directory)

    def provenance(self, step: int, figures: dict[str, float]) -> dict[str, Any]:
        """What training.json says about where these weights come from."""
        config, data, documents = self.config, self.data, self.corpus.documents
        public = replace(config, texts=tuple(Path(path.name) for path in config.texts), out=None)
        return {
            "preset": config.preset,
            "command": config.command(),
            "config": public.to_json(),
            "corpus": {
                "name": self.corpus.name,
                "origin": self.corpus.origin,
                "license": self.corpus.license,
                "language": self.corpus.language,
            },
            "data": [{"name": d.name, "sha256": d.sha256, "bytes": len(d.text.encode("utf-8"))} for d in documents],
            "parts": {
                name: {"tokens": len(part), "bytes": part.bytes}
                for name, part in (("train", data.train), ("validation", data.validation), ("holdout", data.holdout))
            },
            "tokenizer_sha256": data.tokenizer.sha256,
            "parameters": self.model.config.n_parameters,
            "steps": step,
            "tokens_seen": step * config.batch_size * config.block_size,
            "seconds": round(self.journal.seconds, 1),
            "figures": figures,
            "hardware": hardware.describe(self.device),
            "precision": f"{self.precision.name} ({self.precision.reason})",
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("torch", "tiktoken", "safetensors", "tokenizers")},
        }

    def finish(self, step: int) -> Result:
        """Score the exported file on the held-out part, once, and write the figures beside it."""
        self.journal.close()
        directory = self.run_dir / self.config.result
        if not directory.exists():
            raise FloatingPointError("validation never improved on the untrained model; nothing was saved to best/.")
        model, _ = gpt2.load(directory, str(self.device), "float32")
        trained = checkpoint.read_json(directory / "training.json")
        figures = {}
        for name, part in (("validation", self.data.validation), ("held_out", self.data.holdout)):
            if len(part) > 1:
                self.say(f"Scoring the {name.replace('_', '-')} part ({part.bytes:,} bytes) ...")
                result = evaluate.score(model, part)
                figures[f"{name}_bits_per_byte"] = round(result.bits_per_byte, 4)
                figures[f"{name}_perplexity"] = round(result.perplexity, 3)
                if name == "held_out":
                    half = evaluate.score(model, part, overlap=True)
                    figures["held_out_bits_per_byte_half_overlap"] = round(half.bits_per_byte, 4)
        losses = [e["loss"] for e in read_jsonl(self.run_dir / "metrics.jsonl") if "loss" in e]
        if losses:
            figures["train_loss"] = losses[-1]
        trained |= {"figures": figures, "seconds": round(self.journal.seconds, 1), "run_steps": step}
        write_file(directory / "training.json", checkpoint.json_text(trained))
        self.add_records(directory)
        return Result(directory, step, figures)


def new_model(config: TrainConfig, data: Dataset, device: torch.device) -> gpt2.GPT:
    """A model with fresh weights, drawn on the CPU so that a seed means the same everywhere."""
    sizes = gpt2.GPTConfig(
        block_size=config.block_size,
        vocab_size=data.tokenizer.vocab_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        dropout=config.dropout,
        bos_token_id=data.bos,
        eos_token_id=data.tokenizer.endoftext,
    )
    with torch.device("meta"):
        model = gpt2.GPT(sizes, pad_vocab_to=MODEL_PADDING)
    model.to_empty(device="cpu").init_weights(torch.Generator().manual_seed(config.seed))
    return model.to(device)


def maybe_compile(model: gpt2.GPT, run: Run, say: Callable[[str], None]) -> torch.nn.Module:
    """The compiled model where it is wanted and works, else the model itself after one warning."""
    wanted = run.config.compile if run.config.compile is not None else hardware.can_compile(run.device)
    if not wanted:
        return model
    say("Compiling the model (a minute or so; --no-compile skips it) ...")
    run.training_model = torch.compile(model)
    try:
        run.backward(*run.batches.at(0))
    except Exception as error:  # the compilers below raise many kinds
        say(f"torch.compile does not work here ({str(error).splitlines()[0]}); going on without it.")
        run.training_model = model
    run.optimizer.zero_grad(set_to_none=True)
    run.journal.resume_clock()
    return run.training_model


def default_prompts(data: Dataset) -> tuple[str, ...]:
    """Nothing at all, and the first two whole lines of the validation part (or of the training part)."""
    part = data.validation if len(data.validation) > 1 else data.train
    text = data.tokenizer.decode(int(i) for i in part.ids[1:400])
    lines = [line for line in text.splitlines()[1:] if line.strip()]
    return ("", *(line[:80] + "\n" for line in lines[:2]))


def describe(config, corpus, data, sizes: gpt2.GPTConfig, device, precision) -> str:
    """What is about to be trained, on what, in two lines."""
    per_step = config.batch_size * config.block_size
    epochs = config.max_steps * per_step / len(data.train)
    return (
        f"Training a GPT-2 of {sizes.n_parameters / 1e6:.2f} million parameters on {corpus.name}: "
        f"{len(data.train):,} tokens, {config.max_steps:,} steps of {per_step:,}, {epochs:.1f} times through it.\n"
        f"On {hardware.describe(device)} in {precision.name} ({precision.reason})."
    )
