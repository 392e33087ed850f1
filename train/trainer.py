"""The loop: batches in, a checkpoint directory out, and a run that a kill can not lose.

Knows the order of things: set the rate, take a step, note it, evaluate, save. How each is done is another file's
business; what else should happen at a save (a model card, a push), and when to stop, is handed in.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gpt2
from gpt2 import device as hardware
from gpt2.model import IGNORE
from train import evaluate, optimizer, state
from train.config import TrainConfig
from train.corpus import Corpus
from train.dataset import Batches, Dataset, prepare
from train.evaluate import Stopper
from train.export import Exporter
from train.journal import Journal
from train.setup import default_prompts, describe, new_model

SAMPLE = gpt2.SamplingParams(max_new_tokens=160, temperature=0.8, top_k=50, seed=1)
MAX_BAD_STEPS = 5  # non-finite steps in a row before giving up
SAVE_SECONDS = 600  # between states, where evaluations are further apart
# Work of one micro-batch on a CPU where none is asked for: a few seconds, so that a stop is answered soon.
CPU_MICRO_FLOPS = 1.5e12


class Stopped(Exception):
    """The run was asked to stop; everything up to its last whole step can be resumed."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    directory: Path  # the checkpoint to use: best/ or last/
    steps: int
    figures: dict[str, float]


def fit(
    config: TrainConfig,
    corpus: Corpus,
    run_dir: Path,
    on_save: Callable[[Path], None] = lambda directory: None,
    should_stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = print,
) -> Result:
    """Train, from fresh weights or the newest state of run_dir, to the figures of the exported file.

    Args:
        run_dir: gets metrics.jsonl, samples.jsonl, best/, last/ and state/.
        on_save: called with every checkpoint directory that is written.
        should_stop: asked often; once it says yes the unfinished step is dropped and the state saved.
        say: told in a sentence what is happening.

    Raises:
        Stopped: after should_stop() said yes and the state is on the disk.
        ValueError: for a text, device or number format that can not work.
        FloatingPointError: where the loss stays NaN or infinite.
    """
    device = hardware.pick_device(config.device)
    precision = hardware.training_precision(device, config.dtype)
    hardware.prepare(device)
    data = prepare(corpus, config, say)
    model = new_model(config, data, device)
    about = {"hardware": hardware.describe(device), "precision": f"{precision.name} ({precision.reason})"}
    say(describe(config, corpus, data, model.config.n_parameters, about))
    run_dir.mkdir(parents=True, exist_ok=True)
    exporter = Exporter(run_dir, config, corpus, data, about, on_save)

    run = Run(config, data, model, device, precision, exporter, should_stop)
    try:
        if run.restore():
            say(f"Going on from step {run.step:,}.")
        if run.evaluation_due():  # of fresh weights, or one that a stop cut short
            run.evaluate_and_save()
        run.training_model = maybe_compile(run, say)
        while run.step < config.max_steps and not run.stopper.done:
            rate = optimizer.learning_rate(run.step, config)
            optimizer.set_learning_rate(run.optimizer, rate)
            loss, grad_norm = run.train_step()
            run.journal.step(run.step, loss, grad_norm, rate)
            if run.evaluation_due():
                run.evaluate_and_save()
            elif time.monotonic() - run.saved >= SAVE_SECONDS:
                run.save_state()
    except Stopped:
        run.save_state()
        raise
    finally:
        run.journal.close()
    return run.finish(say)


class Run:
    """The things of one run that change from step to step, and what is done with them."""

    def __init__(
        self, config: TrainConfig, data: Dataset, model: gpt2.GPT, device, precision, exporter: Exporter, should_stop
    ):
        self.config, self.data, self.device, self.precision = config, data, device, precision
        self.exporter, self.should_stop = exporter, should_stop
        self.model = model  # what is evaluated and saved
        self.training_model: torch.nn.Module = model  # the same weights, perhaps compiled
        self.batches = Batches(data.train.ids, config.block_size, config.batch_size, config.seed, config.order)
        self.optimizer = optimizer.build(model, config)
        # float16 has too few small numbers for gradients; the scaler lifts them and backs off on overflow.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
        self.stopper = Stopper(config.patience)
        tokens_per_step = config.batch_size * config.block_size
        self.journal = Journal(exporter.run_dir, config.max_steps, tokens_per_step, config.log_every)
        self.prompts = config.prompts or exporter.corpus.prompts or default_prompts(data)
        self.step = 0  # whole steps behind us
        self.evaluated = -1  # the step of the last whole evaluation
        self.bad_steps = 0
        self.saved = time.monotonic()

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision.dtype, enabled=self.precision.dtype != torch.float32)

    def evaluation_due(self) -> bool:
        on_time = self.step % self.config.eval_every == 0 or self.step == self.config.max_steps
        return on_time and self.evaluated != self.step

    def check_stop(self) -> None:
        if self.should_stop():
            raise Stopped

    def train_step(self) -> tuple[Tensor, Tensor]:
        """One update of the weights from one batch; returns its mean loss (nats per token) and gradient norm."""
        # The only use of the global generator: dropout draws from it. Seeded by the step, it is a function of it.
        digest = hashlib.sha256(f"{self.config.seed}/dropout/{self.step}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        self.training_model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(*self.batches.at(self.step))
        self.scaler.unscale_(self.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        if self.scaler.is_enabled() or grad_norm.isfinite():
            self.scaler.step(self.optimizer)  # skips by itself where float16 overflowed
            self.scaler.update()
            self.bad_steps = 0
        else:
            self.skip(loss)
        self.step += 1
        return loss, grad_norm

    def backward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Accumulate the gradients of a batch (B, T), a micro-batch at a time; returns the mean loss."""
        rows = self.rows_at_once()
        scored = (targets != IGNORE).sum()
        total = torch.zeros((), device=self.device)
        for x, y in zip(idx.split(rows), targets.split(rows), strict=True):
            self.check_stop()
            share = float((y != IGNORE).sum() / scored)  # so that the sum is the mean over the whole batch
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            with self.autocast():
                _, loss = self.training_model(x, y)
            self.scaler.scale(loss * share).backward()
            total += loss.detach() * share
        return total

    def rows_at_once(self) -> int:
        """Sequences of a micro-batch: as asked for, else all of them, or on a CPU what takes a few seconds."""
        if self.config.micro_batch or self.device.type != "cpu":
            return self.config.micro_batch or self.config.batch_size
        flops = 6 * self.model.config.n_parameters * self.config.block_size  # of one sequence, forward and backward
        return max(1, min(self.config.batch_size, int(CPU_MICRO_FLOPS / flops)))

    def skip(self, loss: Tensor) -> None:
        """Leave the weights as they are; give up after MAX_BAD_STEPS in a row."""
        self.bad_steps += 1
        rate = self.optimizer.param_groups[0]["lr"]
        step = self.step + 1
        self.journal.say(f"step {step}: loss {float(loss):.3g} with a gradient that is not finite; step skipped.")
        if self.bad_steps >= MAX_BAD_STEPS:
            raise FloatingPointError(
                f"{MAX_BAD_STEPS} steps in a row up to step {step} were not finite at learning rate {rate:.2g}; "
                f"what was saved before is sound. Try --learning-rate {self.config.learning_rate / 3:.1g}."
            )

    def evaluate_and_save(self) -> None:
        """Validation figure and samples; then the state, last/, and best/ where it is the best."""
        figures = {}
        if len(self.data.validation) > 1:
            result = evaluate.score(
                self.model, self.data.validation, autocast=self.autocast(), before_batch=self.check_stop
            )
            figures["validation_bits_per_byte"] = round(result.bits_per_byte, 5)
        samples = [(prompt, self.sample(prompt)) for prompt in self.prompts]
        self.journal.evaluation(self.step, **figures)
        for prompt, text in samples:
            self.journal.sample(self.step, prompt, SAMPLE.seed, text)
        if figures:
            self.stopper.see(figures["validation_bits_per_byte"], self.step)
        self.evaluated = self.step
        if self.step:
            self.save_state()
            self.export(figures)
        self.journal.resume_clock()

    def sample(self, prompt: str) -> str:
        pieces = []
        for piece in gpt2.generate(self.model.eval(), self.data.tokenizer, prompt, SAMPLE):
            self.check_stop()
            pieces.append(piece)
        return "".join(pieces)

    def export(self, figures: dict[str, float]) -> None:
        """Write last/, and best/ where this step is the best by validation."""
        is_best = len(self.data.validation) > 1 and self.stopper.best_step == self.step
        for name in ["last", "best"] if is_best else ["last"]:
            self.exporter.save(name, self.model, self.step, self.journal.seconds, figures)

    def save_state(self) -> None:
        """Write what restore() needs; it reads nothing else."""
        tensors = {f"model.{name}": p.detach().contiguous() for name, p in self.model.named_parameters()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{key}": value.contiguous() for key, value in moments.items()}
        facts = {
            "config": replace(self.config, texts=tuple(path.absolute() for path in self.config.texts)).to_json(),
            "step": self.step,
            "evaluated": self.evaluated,
            "bad_steps": self.bad_steps,
            "stopper": vars(self.stopper),
            "scaler": self.scaler.state_dict(),
            "journal": self.journal.state(),
            "data": self.data.key,
        }
        state.save_state(self.exporter.run_dir / "state", self.step, tensors, facts)
        self.saved = time.monotonic()

    def restore(self) -> bool:
        """Take up the newest whole state of the run directory; False where there is none."""
        state.sweep(self.exporter.run_dir)
        state.sweep(self.exporter.run_dir / "state")
        found = state.load_state(self.exporter.run_dir / "state")
        if found is None:
            self.journal.restart()
            return False
        tensors, facts = found
        if facts["data"] != self.data.key:
            raise ValueError("the text has changed since this run began; put it back, or begin with another --name.")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        moments: dict[int, dict[str, Any]] = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                number, _, name = rest.partition(".")
                moments.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if facts["scaler"]:  # empty where the run had none before
            self.scaler.load_state_dict(facts["scaler"])
        self.step, self.evaluated, self.bad_steps = facts["step"], facts["evaluated"], facts["bad_steps"]
        self.stopper = Stopper(**{**facts["stopper"], "patience": self.config.patience})
        self.journal.restore(facts["journal"])
        if self.evaluated == self.step and self.step:
            # A kill may have hit between this state and its exports.
            self.export({"validation_bits_per_byte": self.journal.validation} if self.journal.validation else {})
        return True

    def finish(self, say: Callable[[str], None]) -> Result:
        """Score the exported file and write the figures beside it."""
        directory = self.exporter.run_dir / self.config.result
        if not directory.exists():
            raise FloatingPointError("validation never improved on the untrained model; nothing was saved to best/.")
        figures = self.exporter.finish(directory, self.step, self.journal.seconds, say)
        return Result(directory, self.step, figures)


def maybe_compile(run: Run, say: Callable[[str], None]) -> torch.nn.Module:
    """The compiled model where it is wanted and works, else the model itself after one warning."""
    wanted = hardware.can_compile(run.device) if run.config.compile is None else run.config.compile
    if not wanted:
        return run.model
    say("Compiling the model (a minute or so; --no-compile skips it) ...")
    run.training_model = torch.compile(run.model)
    try:
        run.backward(*run.batches.at(0))
    except Stopped:
        raise
    except Exception as error:  # the compilers below raise many kinds
        say(f"torch.compile does not work here ({str(error).splitlines()[0]}); going on without it.")
        run.training_model = run.model
    run.journal.resume_clock()
    return run.training_model
