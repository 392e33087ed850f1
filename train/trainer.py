"""The loop: batches in, a checkpoint directory out, and a run that a kill can not lose.

Knows the order of things: set the rate, take a step, note it, evaluate, save. How each is done is another file's
business; what else should happen at a save (a model card, a push), and when to stop, is handed in.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gpt2
from gpt2 import device as hardware
from train import scoring, setup, state
from train.config import TrainConfig
from train.corpus import Corpus
from train.dataset import Dataset, prepare
from train.export import Exporter
from train.journal import Journal
from train.learner import Learner
from train.optimizer import learning_rate
from train.processes import Lost, Processes, Stopped
from train.scoring import Stopper
from train.teachers import Teachers
from train.tracking import open_tracker

SAMPLE = gpt2.SamplingParams(max_new_tokens=160, temperature=0.8, top_k=50, seed=1)
MAX_DOCUMENTS = 50_000  # each is named in training.json, which may have 16 MB
MAX_BAD_STEPS = 5  # non-finite steps in a row before giving up
SCALER_STEPS = 16  # more of them where a gradient scaler has first to find its scale, from 2**16 down
SAVE_SECONDS = 600  # between states, where evaluations are further apart


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
    on_saved: Callable[[Path], None] = lambda directory: None,
    processes: Processes | None = None,
    say: Callable[[str], None] = print,
) -> Result | None:
    """Train, from fresh weights or the newest state of run_dir, to the figures of the exported file.

    Args:
        run_dir: gets run.json, metrics.jsonl, samples.jsonl, best/, last/ and state/.
        on_save: called with every checkpoint directory that is written, to add to it.
        on_saved: called with every one that is complete and in its place.
        processes: those that share the work, and when they should stop; default: this one alone, to the end.
        say: told in a sentence what is happening.

    Returns:
        The result; None on all processes but the first, and for config.dry_run.

    Raises:
        Stopped: once a process was asked to stop and the state is on the disk.
        Lost: when another process is gone; the state is on the disk too.
        ValueError: for a text, device or number format that can not work.
        FloatingPointError: where the loss stays NaN or infinite.
        MemoryError: with the flags to try.
    """
    processes = processes or Processes()
    if len(corpus.documents) > MAX_DOCUMENTS:
        raise ValueError(
            f"{len(corpus.documents):,} texts are more than the {MAX_DOCUMENTS:,} that are named: join them."
        )
    say = say if processes.first else lambda sentence: None
    precision = processes.from_first(
        lambda: hardware.training_precision(hardware.pick_device(config.device), config.dtype)
    )
    device = processes.device(hardware.pick_device(config.device))
    hardware.prepare(device, processes.local_world)
    hardware.keep_memory()
    pretrained, tokenizer = processes.one_first(lambda: setup.inherit(config))
    data = processes.one_first(lambda: prepare(corpus, config, say, tokenizer))
    key, vocabulary = processes.from_first(lambda: (data.key, data.tokenizer.sha256))
    if key != data.key:
        raise ValueError("the text on this machine is not the first one's: copy it here, or mend the path.")
    if vocabulary != data.tokenizer.sha256:
        raise ValueError("another vocabulary was learned here than on the first machine: install its tokenizers.")
    model = setup.new_model(config, data, device, pretrained)
    del pretrained
    documents = {document.sha256 for document in corpus.documents}
    teachers = processes.one_first(lambda: Teachers.load(config, data, documents, device))
    learner = Learner(config, model, device, precision, processes, teachers)
    about = {"hardware": hardware.describe(device), "precision": f"{precision.name} ({precision.reason})"}
    about |= {"processes": processes.world} if processes.world > 1 else {}
    about |= {"teachers": teachers.sha256} if teachers else {}
    say(setup.describe(config, corpus, data, model.config.n_parameters, about))
    run = Run(config, data, learner, Exporter(run_dir, config, corpus, data, about, on_save, on_saved))
    if config.dry_run:
        say(setup.estimate(learner, *run.batches.at(0)))
        return None

    with contextlib.ExitStack() as at_the_end:
        processes.from_first(lambda: at_the_end.enter_context(state.only_writer(run_dir)))
        at_the_end.callback(run.journal.close)
        if run.restore():
            say(f"Going on from step {run.step:,}.")
        try:
            if run.evaluation_due():  # of fresh weights, or one that a stop cut short
                run.evaluate_and_save()
            learner.prepare_network(run.batches.at(0), say)
            run.journal.resume_clock()
            while run.step < config.max_steps and not run.converged:
                run.train_step()
                if run.evaluation_due():
                    run.evaluate_and_save()
                elif time.monotonic() - run.saved >= SAVE_SECONDS:
                    run.save_state()
            if run.converged and run.step < config.max_steps:
                say(f"No better validation figure in {config.patience} evaluations: done at step {run.step:,}.")
            return run.finish(say) if processes.first else None
        except (Stopped, Lost):
            run.save_state()
            raise


class Run:
    """What of a run changes from step to step beside the weights, and what is done with it."""

    def __init__(self, config: TrainConfig, data: Dataset, learner: Learner, exporter: Exporter):
        self.config, self.data, self.learner, self.exporter = config, data, learner, exporter
        self.processes, self.tracker = learner.processes, None
        self.teachers = learner.teachers.sha256 if learner.teachers else []
        self.processes.while_first(self.open_tracker)
        self.batches = setup.batches(config, data)
        self.stopper = Stopper(config.patience)
        self.journal = self.open_journal()
        self.prompts = config.prompts or exporter.corpus.prompts or setup.default_prompts(data, config)
        self.step = 0  # whole steps behind us
        self.evaluated = -1  # the step of the last whole evaluation
        self.bad_steps = 0
        self.converged = False  # patience is at its end
        self.saved = time.monotonic()

    def open_tracker(self) -> None:
        config, name = self.config.public(), self.exporter.run_dir.name
        if config.track and not config.dry_run:
            self.tracker = open_tracker(config.track, "gpt2-from-scratch", name, config.to_json(), self.config.resume)

    def open_journal(self) -> Journal:
        config, sizes = self.config, self.learner.model.config
        peak = hardware.peak_flops(self.learner.device, self.learner.precision.dtype)
        # Forward and backward: 6 for every weight that multiplies (the head is the embedding), and attention.
        matrices = sizes.n_parameters - sizes.block_size * sizes.n_embd
        return Journal(
            self.exporter.run_dir,
            config.max_steps,
            config.batch_size * config.block_size,
            config.log_every,
            flops_per_token=6 * matrices + 12 * sizes.n_layer * sizes.n_embd * config.block_size,
            peak_flops=peak and peak * self.processes.world,
            tracker=self.tracker,
            writes=self.processes.first and not config.dry_run,
        )

    def evaluation_due(self) -> bool:
        on_time = self.step % self.config.eval_every == 0 or self.step == self.config.max_steps
        return on_time and self.evaluated != self.step

    def train_step(self) -> None:
        """One step, noted. One that is not finite changed nothing; too many of them end the run."""
        rate = learning_rate(self.step, self.config)
        loss, grad_norm, finite = self.learner.step(self.step, *self.batches.at(self.step), rate)
        self.step += 1
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if not finite:
            self.journal.skipped(self.step, loss, grad_norm)
        if self.bad_steps >= MAX_BAD_STEPS + SCALER_STEPS * self.learner.scaler.is_enabled():
            raise FloatingPointError(
                f"{self.bad_steps} steps in a row up to step {self.step} were not finite at learning rate {rate:.2g}; "
                f"what was saved before is sound. Try --learning-rate {self.config.learning_rate / 3:.1g}."
            )
        self.journal.step(self.step, loss, grad_norm, rate)

    def evaluate_and_save(self) -> None:
        """Validation figure and samples; then the state, last/, and best/ where it is the best."""
        self.processes.while_first(self._evaluate_and_save)
        self.evaluated = self.step
        self.converged = self.processes.from_first(lambda: self.stopper.done)
        self.journal.resume_clock()

    def _evaluate_and_save(self) -> None:
        if self.step and time.monotonic() - self.saved >= SAVE_SECONDS / 10:
            self.save_state()  # scoring a large validation part takes a while
        figures = {}
        if len(self.data.validation) > 1:
            figures["validation_bits_per_byte"] = self.validation_figure()
            if self.learner.average and self.step:
                with self.learner.averaged():
                    figures["validation_bits_per_byte_ema"] = self.validation_figure()
        with self.better_weights(figures):
            samples = [(prompt, self.sample(prompt)) for prompt in self.prompts]
        self.journal.evaluation(self.step, **figures)
        for prompt, text in samples:
            self.journal.sample(self.step, prompt, SAMPLE.seed, text)
        if figures:
            self.stopper.see(min(figures.values(), key=lambda value: (math.isnan(value), value)), self.step)
        self.evaluated = self.step
        if self.step:
            self.save_state()
            self.export()

    def validation_figure(self) -> float:
        learner, check = self.learner, self.processes.check_stop
        result = scoring.score(learner.model, self.data.validation, autocast=learner.autocast(), before_batch=check)
        return round(result.bits_per_byte, 5)

    def sample(self, prompt: str) -> str:
        pieces = []
        for piece in gpt2.generate(self.learner.model.eval(), self.data.tokenizer, prompt, SAMPLE):
            self.processes.check_stop()
            pieces.append(piece)
        return "".join(pieces)

    def better_weights(self, figures: dict[str, float]) -> contextlib.AbstractContextManager:
        """The average in the place of the weights where it predicts better."""
        raw, mean = (figures.get(f"validation_bits_per_byte{which}", math.inf) for which in ("", "_ema"))
        return self.learner.averaged() if math.isfinite(mean) and not raw <= mean else contextlib.nullcontext()

    def export(self) -> None:
        """Write last/, and best/ where this step is the best by validation."""
        is_best = len(self.data.validation) > 1 and self.stopper.best_step == self.step
        figures = self.journal.figures
        with self.better_weights(figures):
            for name in ["last", "best"] if is_best else ["last"]:
                self.exporter.save(name, self.learner.model, self.step, self.journal.seconds, figures)

    def save_state(self) -> None:
        """Write what restore() needs; it reads nothing else."""
        self.saved = time.monotonic()
        if not self.processes.first:
            return
        facts = {
            "config": self.config.absolute().to_json(),
            "step": self.step,
            "evaluated": self.evaluated,
            "bad_steps": self.bad_steps,
            "stopper": vars(self.stopper),
            "scaler": self.learner.scaler.state_dict(),
            "journal": self.journal.state(),
            "data": self.data.key,
            "vocabulary": self.data.tokenizer.sha256,
            "teachers": self.teachers,
        }
        state.save_state(self.exporter.run_dir / "state", self.step, self.learner.tensors(), facts)

    def restore(self) -> bool:
        """Take up the newest whole state of the run directory, on every process; False where there is none."""
        found: dict[str, dict] = {}

        def read() -> dict | None:
            found["tensors"], facts = self.exporter.take_up() or ({}, None)
            if facts and facts["data"] != self.data.key:
                raise ValueError(
                    "the text has changed since this run began; put it back, or begin with another --name."
                )
            vocabulary = self.data.tokenizer.sha256
            if facts and facts.get("vocabulary", vocabulary) != vocabulary:  # older states do not know theirs
                raise ValueError(
                    "another vocabulary was learned from the text than when this run began: install the version of "
                    "tokenizers that its run.json names."
                )
            if facts and facts.get("teachers", []) != self.teachers:  # older states know of none
                raise ValueError("these are not the weights that taught this run so far: name them by --distill-from.")
            if facts and facts["step"] > self.config.max_steps:
                raise ValueError(f"--max-steps {self.config.max_steps}: the run is at step {facts['step']} already.")
            return facts

        facts = self.processes.from_first(read)
        if facts is None:
            self.journal.restart()
            return False
        tensors = self.processes.broadcast(found.get("tensors"), self.learner.device)
        self.learner.load(tensors, facts["scaler"])
        self.step, self.evaluated, self.bad_steps = facts["step"], facts["evaluated"], facts["bad_steps"]
        self.stopper = Stopper(**{**facts["stopper"], "patience": self.config.patience})
        self.journal.restore(facts["journal"])
        self.converged = self.stopper.done
        if self.evaluated == self.step and self.step and self.processes.first:
            self.export()  # a kill may have hit between this state and its exports
        return True

    def finish(self, say: Callable[[str], None]) -> Result:
        """Score the exported file and write the figures beside it."""
        directory = self.exporter.run_dir / self.config.result
        if not directory.exists():
            raise ValueError(
                f"by validation no step was better than the first, so there is no {directory.name}/; the newest "
                "weights are in last/. Try a smaller --learning-rate."
            )

        def check_stop() -> None:  # of this process alone: the others are done
            if self.processes.should_stop():
                raise Stopped

        figures = self.exporter.finish(directory, self.step, self.journal.seconds, say, check_stop)
        return Result(directory, self.step, figures)
