"""What changes the weights: one step from one batch, whatever the hardware, on however many processes.

Knows arithmetic: precision, micro-batches, gradients, optimizers, the running average. Knows nothing of texts,
files, evaluations or why a run goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import gpt2
from gpt2 import device as hardware
from gpt2.model import IGNORE
from train import optimizer
from train.config import TrainConfig
from train.processes import Lost, Processes, Stopped, lost_others
from train.teachers import Teachers

# Work of one micro-batch on a CPU where none is asked for: a few seconds, so that a stop is answered soon. Where a
# single sequence has half of it, as in a GPT-2 124M, a stop does not wait for the end of that either.
CPU_MICRO_FLOPS = 1.5e12


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether it is PyTorch's way to say so: a GPU has a class for it, the CPU's allocator only words."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


class Learner:
    """A model and all that it takes to train it.

    Args:
        model: what is evaluated and saved; fresh, or to be filled by load().
        processes: each takes its share of every batch, which they can share evenly; together they do what one would.
        teachers: whose expectations are part of the target.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: gpt2.GPT,
        device: torch.device,
        precision,
        processes: Processes,
        teachers: Teachers | None = None,
    ):
        assert config.batch_size % processes.world == 0
        self.config, self.model, self.device = config, model, device
        self.precision, self.processes, self.teachers = precision, processes, teachers
        self.network: nn.Module = model  # what a step runs: the same weights, perhaps compiled, perhaps one of several
        half = torch.bfloat16 if precision.dtype == torch.bfloat16 else torch.float32
        self.optimizers = optimizer.build(model, config, muon_dtype=half)
        # float16 has too few small numbers for gradients; the scaler lifts them and backs off on overflow.
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.dtype == torch.float16)
        self.average = [p.detach().clone() for p in model.parameters()] if config.ema else []

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision.dtype, enabled=self.precision.dtype != torch.float32)

    def step(self, step: int, idx: Tensor, targets: Tensor, rate: float) -> tuple[Tensor, Tensor, bool]:
        """One update of the weights from a batch (B, T); step counts from 0.

        Returns:
            The batch's mean loss (nats per token), the gradient's norm, and whether the weights were changed: with
            a loss or gradient that is not finite they never are.
        """
        # The only use of the global generator: dropout draws from it. Seeded by the step, it is a function of it.
        digest = hashlib.sha256(f"{self.config.seed}/dropout/{step}/{self.processes.rank}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        self.network.train()
        for part in self.optimizers:
            optimizer.set_learning_rate(part, rate)
            part.zero_grad(set_to_none=True)
        loss = self.processes.sum(self.backward(idx, targets))
        for part in self.optimizers:
            self.scaler.unscale_(part)
        grad_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip or math.inf)
        finite = bool((loss + grad_norm).isfinite())
        if finite:
            for part in self.optimizers:
                self.scaler.step(part)
            if self.average:
                memory = min(self.config.ema, (1 + step) / (10 + step))  # a young average forgets the first weights
                with torch.no_grad():
                    torch._foreach_lerp_(self.average, list(self.model.parameters()), 1 - memory)
        self.scaler.update()
        return loss, grad_norm, finite

    def backward(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Accumulate this process's share of the gradients of a batch (B, T), a micro-batch at a time; returns its
        share of the mean loss."""
        scored = (targets != IGNORE).sum()
        idx, targets = (t.chunk(self.processes.world)[self.processes.rank] for t in (idx, targets))  # (B / world, T)
        rows = self.rows_at_once()
        total = torch.zeros((), device=self.device)
        parts = list(zip(idx.split(rows), targets.split(rows), strict=True))
        for number, (x, y) in enumerate(parts):
            self.processes.check_stop()
            share = float((y != IGNORE).sum() / scored)  # so that the sum is the mean over the whole batch
            x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
            with self._adding_up(last=number == len(parts) - 1), self._out_of_memory(rows), lost_others():
                with self.autocast():
                    loss = self.teachers.loss(self.network, x, y) if self.teachers else self.network(x, y)[1]
                # DistributedDataParallel takes the mean over processes, where the shares want the sum.
                self.scaler.scale(loss * share * self.processes.world).backward()
            total += loss.detach() * share
        return total

    def rows_at_once(self) -> int:
        """Sequences of a micro-batch: as asked for, else all of them, or on a CPU what takes a few seconds."""
        rows = self.config.batch_size // self.processes.world
        if self.config.micro_batch or self.device.type != "cpu":
            return min(rows, self.config.micro_batch or rows)
        return max(1, min(rows, int(CPU_MICRO_FLOPS / self._flops())))

    def _flops(self) -> int:
        """Of one sequence, forward and backward."""
        return 6 * self.model.config.n_parameters * self.config.block_size

    def stop_between_layers(self) -> None:
        """Look for a stop before every layer, forward and backward; for a process that works alone."""

        def check(*_: object) -> None:
            self.processes.check_stop()

        for block in self.model.transformer.h:
            block.register_forward_pre_hook(check)
            block.register_full_backward_pre_hook(check)

    def _adding_up(self, last: bool) -> contextlib.AbstractContextManager:
        """Processes exchange gradients once a step, with the last micro-batch."""
        together = isinstance(self.network, DistributedDataParallel)
        return self.network.no_sync() if together and not last else contextlib.nullcontext()

    @contextlib.contextmanager
    def _out_of_memory(self, rows: int) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            length = self.config.block_size
            way_out = f"add --micro-batch {rows // 2} (a step stays {self.config.batch_size} sequences, the result too)"
            if rows == 1:
                way_out = f"try --block-size {length // 2}, or a smaller --n-layer or --n-embd"
            sentence = f"not enough memory for {rows} x {length:,} tokens at once: {way_out}."
            raise MemoryError(sentence) from None

    def prepare_network(self, probe: tuple[Tensor, Tensor], say: Callable[[str], None]) -> None:
        """Compile what steps run, where that is wanted and works, and join it with the other processes'.

        Args:
            probe: a batch to try the compiled model on.
        """
        wanted = hardware.can_compile(self.device) if self.config.compile is None else self.config.compile
        if wanted:
            say("Compiling the model (a minute or so; --no-compile skips it) ...")
            self.network = torch.compile(self.model)
            self.network.train()
            rows, problem = self.rows_at_once() * self.processes.world, ""
            try:
                self.backward(*(t[:rows] for t in probe))
            except (Stopped, Lost, MemoryError):
                raise
            except Exception as error:  # the compilers below raise many kinds
                problem = (str(error) or type(error).__name__).splitlines()[0]
            self.model.zero_grad(set_to_none=True)
            if self.processes.any(bool(problem)):
                say(f"torch.compile does not work here ({problem or 'on another process'}); going on without it.")
                self.network = self.model
        takes_long = self.device.type == "cpu" and 2 * self._flops() > CPU_MICRO_FLOPS
        if takes_long and self.processes.world == 1 and self.network is self.model:  # no compiler looks into the hooks
            self.stop_between_layers()
        if self.processes.world > 1:
            self.processes.begin_steps()
            with lost_others():
                self.network = DistributedDataParallel(
                    self.network, process_group=self.processes.group, gradient_as_bucket_view=True
                )

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The running average in the place of the weights, for as long as the block lasts."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for p, mean in zip(self.model.parameters(), self.average, strict=True):
            p.data, mean.data = mean.data, p.data

    def tensors(self) -> dict[str, Tensor]:
        """All that load() needs to go on, by name."""
        tensors = {f"model.{name}": p.detach().contiguous() for name, p in self.model.named_parameters()}
        tensors |= {f"average.{number}": mean for number, mean in enumerate(self.average)}
        for which, part in enumerate(self.optimizers):
            for number, moments in part.state_dict()["state"].items():
                tensors |= {f"optimizer.{which}.{number}.{key}": t.contiguous() for key, t in moments.items()}
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], scaler: dict[str, Any]) -> None:
        """Take up what tensors() gave, and the state of the scaler."""
        for name, p in self.model.named_parameters():
            p.copy_(tensors[f"model.{name}"])
        for number, mean in enumerate(self.average):
            mean.copy_(tensors[f"average.{number}"])
        for which, part in enumerate(self.optimizers):
            moments: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                match key.split("."):
                    case ["optimizer", kind, number, name] if int(kind) == which:
                        moments.setdefault(int(number), {})[name] = tensor
            part.load_state_dict({**part.state_dict(), "state": moments})
        if scaler:  # empty where the run had none before
            self.scaler.load_state_dict(scaler)
