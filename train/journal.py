"""What a run leaves to read: metrics.jsonl, samples.jsonl, the progress bar, the picture of the loss.

Knows numbers and texts by name; knows nothing of models or of why they changed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from train.state import flush, write_file

FILES = ("metrics.jsonl", "samples.jsonl")


class Journal:
    """The record of one run in its directory.

    Args:
        directory: the run directory.
        max_steps: for the bar's estimate of the time left.
        tokens_per_step: tokens trained on in a step.
        log_every: steps between lines of metrics.jsonl.
    """

    def __init__(self, directory: Path, max_steps: int, tokens_per_step: int, log_every: int):
        self.directory, self.max_steps = directory, max_steps
        self.tokens_per_step, self.log_every = tokens_per_step, log_every
        self.validation: float | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._started = self._mark = time.perf_counter()
        self._timed = 0  # steps since the mark, which is how long they took
        self._bar: tqdm | None = None

    def restart(self) -> None:
        """Begin with nothing."""
        for name in FILES:
            (self.directory / name).write_bytes(b"")
        self._open_bar(0)

    def state(self) -> dict[str, Any]:
        """What restore() needs to go on from here without a gap or a double line; on the disk before it is."""
        for name in FILES:
            flush(self.directory / name)
        return {
            "bytes": {name: (self.directory / name).stat().st_size for name in FILES},
            "pending": [[float(value) for value in pair] for pair in self._pending],
            "validation": self.validation,
            "seconds": self.seconds,
            "step": self._bar.n,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state(): lines written after it are cut off."""
        for name, size in state["bytes"].items():
            with (self.directory / name).open("ab") as file:
                file.truncate(min(size, file.tell()))
        self._pending = [tuple(torch.tensor(value) for value in pair) for pair in state["pending"]]
        self.validation = state["validation"]
        self._started = time.perf_counter() - state["seconds"]
        self._open_bar(state["step"])

    def _open_bar(self, step: int) -> None:
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=self.max_steps,
            initial=step,
            unit="step",
            dynamic_ncols=interactive,
            mininterval=0.5 if interactive else 30,  # a log file needs no animation
            bar_format="step {n_fmt}/{total_fmt} {bar:20} {desc}elapsed {elapsed} | ETA {remaining}",
        )

    @property
    def seconds(self) -> float:
        """Wall time since the run began, evaluations included."""
        return time.perf_counter() - self._started

    def step(self, step: int, loss: Tensor, grad_norm: Tensor, learning_rate: float) -> None:
        """Note one finished step (counted from 1). Losses are averaged, and read from the device, once a line."""
        self._pending.append((loss.detach(), grad_norm.detach()))
        self._timed += 1
        if step % self.log_every == 0 or step == self.max_steps:
            # A skipped step has no finite loss or gradient; the mean is over the others.
            finite = [pair for pair in self._pending if all(map(torch.isfinite, pair))] or self._pending
            loss_mean, norm_mean = (float(sum(column)) / len(finite) for column in zip(*finite, strict=True))
            speed = self._timed * self.tokens_per_step / (time.perf_counter() - self._mark)
            self._write(
                "metrics.jsonl",
                step=step,
                tokens=step * self.tokens_per_step,
                loss=round(loss_mean, 5),
                grad_norm=round(norm_mean, 4),
                learning_rate=learning_rate,
                tokens_per_second=round(speed, 1),
                seconds=round(self.seconds, 1),
            )
            validation = "" if self.validation is None else f"val {self.validation:.3f} bpb | "
            self._bar.set_description_str(f"loss {loss_mean:.3f} | {validation}{speed:,.0f} tok/s | ", refresh=False)
            self._pending.clear()
            self.resume_clock()
        self._bar.update()

    def evaluation(self, step: int, **figures: float) -> None:
        """Note the figures of an evaluation; the clock of the training speed stands still until now."""
        self.validation = figures.get("validation_bits_per_byte", self.validation)
        self._write("metrics.jsonl", step=step, **figures, seconds=round(self.seconds, 1))

    def sample(self, step: int, prompt: str, seed: int, text: str) -> None:
        """Note what the model wrote at a step."""
        self._write("samples.jsonl", step=step, prompt=prompt, seed=seed, text=text)

    def resume_clock(self) -> None:
        """Training goes on: what happened since the last line is not part of its speed."""
        self._mark, self._timed = time.perf_counter(), 0

    def say(self, sentence: str) -> None:
        """Print a line without tearing the bar."""
        self._bar.write(sentence, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _write(self, name: str, **entry: Any) -> None:
        with (self.directory / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The entries of a .jsonl file, [] where it is missing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def draw_losses(entries: Iterable[dict[str, Any]], path: Path, title: str) -> None:
    """Draw loss.png: training loss (left axis) and validation bits per byte (right), the best step marked."""
    import io

    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    entries = list(entries)
    training = [(e["step"], e["loss"]) for e in entries if "loss" in e]
    validation = [(e["step"], e["validation_bits_per_byte"]) for e in entries if "validation_bits_per_byte" in e]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.add_subplot()
    left.set(title=title, xlabel="step", ylabel="training loss (nats per token)")
    left.grid(alpha=0.25)
    lines = []
    if training:
        lines += left.plot(*zip(*training, strict=True), color="#4c72b0", linewidth=1.2, label="training loss")
    if validation:
        right = left.twinx()
        right.set_ylabel("validation (bits per byte)")
        lines += right.plot(*zip(*validation, strict=True), "o-", color="#dd8452", markersize=3, label="validation")
        step, best = min(validation, key=lambda point: point[1])
        label = f"best: {best:.3f} at step {step}"
        lines += right.plot([step], [best], "*", color="#c44e52", markersize=14, label=label)
    if lines:
        left.legend(handles=lines, loc="upper right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_file(path, picture.getvalue())
