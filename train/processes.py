"""The processes of one run, as torchrun starts them: how many there are, which is the first, what they agree on.

Plain Python is one process and pays for none of this. Knows nothing of what is trained.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
WORKING, DONE, STOP, FAILED = range(4)  # what processes tell each other; the highest wins
# How long one waits for the others. A process that dies is noticed at once, a machine that falls silent only so. Before
# the first step they may be tokenising a large text; after it nothing takes longer than a save to a slow disk.
PATIENCE, PATIENCE_IN_STEPS = timedelta(hours=12), timedelta(hours=1)


class Stopped(Exception):
    """The run was asked to stop; everything up to its last whole step can be resumed."""


class Lost(Exception):
    """Another process of the run is gone; this one can still save."""


class Processes:
    """Those that torchrun started together, or this one alone.

    Gloo carries what lies on the CPU, and with it every agreement; NCCL carries what lies on GPUs.

    Args:
        should_stop: whether this process was asked to stop; one that was is enough to stop them all.
    """

    def __init__(self, should_stop: Callable[[], bool] = lambda: False):
        self.should_stop, self.listening = should_stop, False
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.here, self.local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        self.first = self.rank == 0  # the one that writes and prints
        if self.world > 1:
            cuda = torch.cuda.is_available()
            dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)
        self.group: dist.ProcessGroup | None = None  # who agree: the group just made, until steps begin

    def device(self, device: torch.device) -> torch.device:
        """The device that is this process's own.

        Raises:
            ValueError: where a machine has fewer GPUs than processes.
        """
        if device.type != "cuda" or self.world == 1:
            return device
        if self.local_world > torch.cuda.device_count():
            raise ValueError(
                f"{self.local_world} processes need as many GPUs and there are {torch.cuda.device_count()}: "
                "lower --nproc-per-node, or give --device cpu."
            )
        torch.cuda.set_device(self.here)
        return torch.device("cuda", self.here)

    def begin_steps(self) -> None:
        """From here on nobody lets the others wait for long: who does is lost."""
        with lost_others():
            self.group = dist.new_group(timeout=PATIENCE_IN_STEPS)

    def agree(self, word: int) -> int:
        """The highest of all processes' words."""
        if self.world == 1:
            return word
        words = torch.tensor(word)
        with lost_others():
            dist.all_reduce(words, dist.ReduceOp.MAX, group=self.group)
        return int(words)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        return self.agree(int(flag)) > 0

    def check_stop(self) -> None:
        """Raise Stopped, everywhere, once one was asked to; asked often, and by all equally often. Before the first
        time there is nothing that a stop should save."""
        self.listening = True
        if self.agree(STOP if self.should_stop() else WORKING) == STOP:
            raise Stopped

    def sum(self, value: Tensor) -> Tensor:
        """The sum of all processes' values, everywhere."""
        if self.world > 1:
            with lost_others():
                dist.all_reduce(value, group=self.group)
        return value

    def from_first(self, make: Callable[[], T]) -> T:
        """What make() gives on the first process, everywhere; where it fails there, the others end silently."""
        box = [self._or_all_fail(make) if self.first else None]
        if self.world > 1:
            self._go_on(self.agree(WORKING))
            with lost_others():
                dist.broadcast_object_list(box)
        return box[0]

    def one_first(self, make: Callable[[], T]) -> T:
        """make() on one process of every machine and then on its others, which find what the first left on the disk."""
        made = self._or_all_fail(make) if self.here == 0 else None
        self._go_on(self.agree(WORKING))
        return made if self.here == 0 else make()

    def while_first(self, work: Callable[[], None]) -> None:
        """work() on the first process, which calls check_stop() on the way; the others answer it until it is done."""
        word = WORKING
        if self.first:
            self._or_all_fail(work)
            word = self.agree(DONE)
        while word == WORKING:
            word = self.agree(STOP if self.should_stop() else WORKING)
        self._go_on(word)

    def _or_all_fail(self, make: Callable[[], T]) -> T:
        try:
            return make()
        except (Stopped, Lost):
            raise  # the others know
        except BaseException:
            self.agree(FAILED)
            raise

    def _go_on(self, word: int) -> None:
        if word == STOP:
            raise Stopped
        if word == FAILED:
            raise SystemExit(1)  # who failed says why

    def broadcast(self, tensors: dict[str, Tensor] | None, device: torch.device) -> dict[str, Tensor]:
        """The first process's tensors, everywhere."""
        if self.world == 1:
            return tensors
        shapes = self.from_first(lambda: {name: (t.shape, t.dtype) for name, t in tensors.items()})
        received = {}
        for name, (shape, dtype) in shapes.items():
            tensor = tensors[name].to(device) if self.first else torch.empty(shape, dtype=dtype, device=device)
            with lost_others():
                dist.broadcast(tensor, 0)
            received[name] = tensor
        return received

    def close(self) -> None:
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def lost_others() -> Iterator[None]:
    """Turns what Gloo and NCCL say about a lost connection into Lost."""
    try:
        yield
    except dist.DistBackendError as error:
        raise Lost from error
    except RuntimeError as error:
        if any(word in str(error).lower() for word in ("gloo", "connection", "nccl", "peer")):
            raise Lost from error
        raise


def leave(code: int) -> NoReturn:
    """End this process. One of several ends at once: threads that Gloo leaves behind have been seen to abort a Python
    that takes itself apart around them, and torchrun then stops the others as if the run had failed."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
