"""What a run leaves to read: metrics.jsonl, samples.jsonl, the progress bar, the picture of the loss.

Knows numbers and texts by name; knows nothing of models or of why they changed.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor
from tqdm import tqdm

from train.state import flush, write_file
from train.tracking import Guarded, Tracker

FILES = ("metrics.jsonl", "samples.jsonl")
# The figures that decide which step is the best, with their name and colour in the picture.
VALIDATION = {
    "validation_bits_per_byte": ("validation", "#dd8452"),
    "validation_bits_per_byte_ema": ("validation, averaged weights", "#55a868"),
}
SPIKE_WINDOW, SPIKE_MIN = 100, 50  # steps that a loss is compared with, at most and at least
SPIKE_SIGMAS = 6  # standard deviations above their mean that make a spike
SPIKE_FLOOR = 0.01  # nats; taken for the deviation of a loss that is flatter, so that less than 0.06 is no alarm


class Journal:
    """The record of one run in its directory.

    Args:
        directory: the run directory.
        max_steps: for the bar's estimate of the time left.
        tokens_per_step: tokens trained on in a step, by all processes together.
        log_every: steps between lines of metrics.jsonl.
        flops_per_token: FLOP of training on one token, 0 where unknown.
        peak_flops: FLOP/s of all devices together, None where unknown. With both, lines tell the share in use: MFU.
        tracker: is sent every line of metrics.jsonl too; dropped should it fail.
        writes: False for all but the first of several processes: it counts along, and writes and says nothing.
    """

    def __init__(
        self,
        directory: Path,
        max_steps: int,
        tokens_per_step: int,
        log_every: int,
        *,
        flops_per_token: float = 0.0,
        peak_flops: float | None = None,
        tracker: Tracker | None = None,
        writes: bool = True,
    ):
        self.directory, self.max_steps = directory, max_steps
        self.tokens_per_step, self.log_every = tokens_per_step, log_every
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self.writes, self._files = writes, FILES if writes else ()
        self._tracker = Guarded(tracker if writes else None, self.say)
        self.figures: dict[str, float] = {}  # of the last evaluation
        self._step = self._skipped = 0
        self._losses: deque[float] = deque(maxlen=SPIKE_WINDOW)  # of the last finite steps up to the last line
        self._pending: list[tuple[Tensor | float, Tensor | float]] = []  # (loss, gradient norm) since the last line
        self._started = self._mark = time.perf_counter()
        self._timed = 0  # steps since the mark, which is how long they took
        self._bar: tqdm | None = None

    def restart(self) -> None:
        """Begin with nothing."""
        for name in self._files:
            (self.directory / name).write_bytes(b"")
        self._open_bar()

    def state(self) -> dict[str, Any]:
        """What restore() needs to go on from here without a gap or a double line; on the disk before it is."""
        for name in self._files:
            flush(self.directory / name)
        return {
            "bytes": {name: (self.directory / name).stat().st_size for name in self._files},
            "pending": [[float(value) for value in pair] for pair in self._pending],
            "losses": list(self._losses),
            "skipped": self._skipped,
            "figures": self.figures,
            "seconds": self.seconds,
            "step": self._step,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state(): lines written after it are cut off."""
        for name in self._files:
            with (self.directory / name).open("ab") as file:
                file.truncate(min(state["bytes"][name], file.tell()))
        self._pending = [tuple(pair) for pair in state["pending"]]
        self._losses = deque(state["losses"], maxlen=SPIKE_WINDOW)
        self._step, self._skipped, self.figures = state["step"], state["skipped"], state["figures"]
        self._started = time.perf_counter() - state["seconds"]
        self._open_bar()

    def _open_bar(self) -> None:
        interactive = sys.stderr.isatty()
        self._bar = tqdm(
            total=self.max_steps,
            initial=self._step,
            dynamic_ncols=interactive,
            mininterval=0.5 if interactive else 30,  # a log file needs no animation
            smoothing=0,  # the mean since the bar opened: a moving one forgets that evaluations take time
            disable=not self.writes,
            bar_format="step {n_fmt}/{total_fmt} {bar:20} {desc}elapsed {elapsed} | ETA {remaining}",
        )

    @property
    def seconds(self) -> float:
        """Wall time since the run began, evaluations included."""
        return time.perf_counter() - self._started

    @property
    def validation(self) -> float | None:
        """Bits per byte at the last evaluation: the better of the weights' and their average's."""
        return min((self.figures[key] for key in VALIDATION if key in self.figures), default=None)

    def step(self, step: int, loss: Tensor, grad_norm: Tensor, learning_rate: float) -> None:
        """Note one finished step (counted from 1). Losses are read from the device, and averaged, once a line."""
        self._pending.append((loss.detach(), grad_norm.detach()))
        self._timed += 1
        self._step = step
        if step % self.log_every == 0 or step == self.max_steps:
            self._write_line(learning_rate)
        self._bar.update()

    def _write_line(self, learning_rate: float) -> None:
        pairs = [(float(loss), float(norm)) for loss, norm in self._pending]
        speed = self._timed * self.tokens_per_step / (time.perf_counter() - self._mark)
        # A skipped step has no finite loss or gradient; the mean is over the others.
        finite = {i: pair for i, pair in enumerate(pairs) if all(map(math.isfinite, pair))}
        for i, (loss, _) in finite.items():
            self._watch(self._step - len(pairs) + 1 + i, loss)
        loss, norm = (sum(column) / len(column) for column in zip(*(finite.values() or pairs), strict=True))
        entry = {"step": self._step, "tokens": self._step * self.tokens_per_step}
        entry |= {"loss": round(loss, 5), "grad_norm": round(norm, 4), "learning_rate": learning_rate}
        entry |= {"tokens_per_second": round(speed, 1)}
        validation = "" if self.validation is None else f"val {self.validation:.3f} bpb | "
        shown = f"loss {loss:.3f} | {validation}{speed:,.0f} tok/s | "
        if self.flops_per_token and self.peak_flops:
            entry["mfu"] = round(speed * self.flops_per_token / self.peak_flops, 3)
            shown += f"MFU {entry['mfu']:.0%} | "
        self._write("metrics.jsonl", **entry, seconds=round(self.seconds, 1))
        self._bar.set_description_str(shown, refresh=False)
        self._pending.clear()
        self.resume_clock()

    def _watch(self, step: int, loss: float) -> None:
        """Report a loss that lies far above those before it.

        It joins them all the same, so that a loss which stays on a new level sets off three alarms and no more.
        """
        if len(self._losses) >= SPIKE_MIN:
            mean = fmean(self._losses)
            deviation = math.sqrt(fmean((other - mean) ** 2 for other in self._losses))
            z = (loss - mean) / max(deviation, SPIKE_FLOOR)
            if z > SPIKE_SIGMAS:
                self._write("metrics.jsonl", step=step, spike=round(z, 1))
                self.say(f"step {step}: the loss jumped to {loss:.3f}; its mean was {mean:.3f} ({z:.1f} deviations).")
        self._losses.append(loss)

    def skipped(self, step: int, loss: Tensor | float, grad_norm: Tensor | float) -> None:
        """Note that a step was not taken because its gradient was not finite; step() is to be told of it as well."""
        self._skipped += 1
        self._write("metrics.jsonl", step=step, skipped=self._skipped)
        self.say(f"step {step}: loss {float(loss):.3g}, gradient norm {float(grad_norm):.3g}; step skipped.")

    def evaluation(self, step: int, **figures: float) -> None:
        """Note the figures of an evaluation."""
        self.figures = figures
        self._write("metrics.jsonl", step=step, **figures, seconds=round(self.seconds, 1))

    def sample(self, step: int, prompt: str, seed: int, text: str) -> None:
        """Note what the model wrote at a step."""
        self._write("samples.jsonl", step=step, prompt=prompt, seed=seed, text=text)

    def resume_clock(self) -> None:
        """Training goes on: what happened since the last line is not part of its speed."""
        self._mark, self._timed = time.perf_counter(), 0

    def say(self, sentence: str) -> None:
        """Print a line without tearing the bar."""
        if self.writes:
            tqdm.write(sentence, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._tracker.finish()

    def _write(self, name: str, **entry: Any) -> None:
        if not self.writes:
            return
        with (self.directory / name).open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        if name == "metrics.jsonl":
            self._tracker.log(entry)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The entries of a .jsonl file, [] where it is missing."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def draw_losses(entries: list[dict[str, Any]], path: Path, title: str) -> None:
    """Draw loss.png: training loss (left axis) and validation bits per byte (right), the best step marked."""
    import io

    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    training = [(e["step"], e["loss"]) for e in entries if "loss" in e]
    validation = {key: [(e["step"], e[key]) for e in entries if key in e] for key in VALIDATION}
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.add_subplot()
    left.set(title=title, xlabel="step", ylabel="training loss (nats per token)")
    left.grid(alpha=0.25)
    lines = []
    if training:
        lines += left.plot(*zip(*training, strict=True), color="#4c72b0", linewidth=1.2, label="training loss")
    if any(validation.values()):
        right = left.twinx()
        right.set_ylabel("validation (bits per byte)")
        for (label, color), points in zip(VALIDATION.values(), validation.values(), strict=True):
            if points:
                lines += right.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, label=label)
        step, best = min(sum(validation.values(), []), key=lambda point: point[1])
        label = f"best: {best:.3f} at step {step}"
        lines += right.plot([step], [best], "*", color="#c44e52", markersize=14, label=label)
    if lines:
        left.legend(handles=lines, loc="upper right")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_file(path, picture.getvalue())
