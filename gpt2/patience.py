"""Waiting for work that may never end, as long as there is news of it.

The Hub's client retries for minutes where a Hub is silent, and can not be told to stop: so it works in threads that are
left behind. Knows how to wait and how to tell of it; knows nothing of what for.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from contextlib import contextmanager
from typing import Any

PATIENCE = 4.0  # seconds without news after which the Hub counts as silent; a healthy one answers within one


class _Worker(threading.Thread):
    """Does one work. Does not keep the process alive."""

    status: int | None = None  # the last HTTP status for which the client tries again

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.work, self.future = work, Future()

    def run(self) -> None:
        try:
            self.future.set_result(self.work())
        except BaseException as error:
            self.future.set_exception(error)


class Silence(Exception):
    """Nothing was heard for so many seconds. status: the HTTP status for which the client was trying again, if any."""

    def __init__(self, seconds: float, status: int | None) -> None:
        super().__init__(f"nothing for {seconds:g} seconds")
        self.seconds, self.status = seconds, status


def patiently(
    works: Sequence[Callable[[], Any]],
    news: Callable[[], Any] = lambda: None,
    patience: Callable[[], float] = lambda: PATIENCE,
) -> list[Any]:
    """What works return, each done in a thread of its own.

    Args:
        news: anything that changes as the works go on; a work that is done is news too.
        patience: seconds without news to bear, as things stand.

    Raises:
        Silence: without news for longer. The threads are left to themselves, and end with the process.
        Exception: the first that a work raises.
    """
    for handler in logging.getLogger("huggingface_hub").handlers:
        handler.addFilter(_overhear)
    workers = [_Worker(work) for work in works]
    for worker in workers:
        worker.start()
    futures = [worker.future for worker in workers]
    last, since = None, time.monotonic()
    while True:
        done, running = wait(futures, 0.1, FIRST_EXCEPTION)
        for future in done:
            future.result()  # raises what the work raised
        if not running:
            return [future.result() for future in futures]
        if (now := (news(), len(done))) != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > patience():
            raise Silence(patience(), next((worker.status for worker in workers if worker.status), None))


@contextmanager
def telling(say: Callable[[float], None], every: float) -> Iterator[None]:
    """Call say with the seconds that the block has taken, every so many of them, until it ends."""
    ended, started = threading.Event(), time.monotonic()

    def speak() -> None:
        while not ended.wait(every):
            say(time.monotonic() - started)

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


def _overhear(record: logging.LogRecord) -> bool:
    """Whether the client may say something on the terminal: not of its retries in our threads, whose end perhaps nobody
    waits for. Only there does it tell for which answer it tries again."""
    worker = threading.current_thread()
    if not isinstance(worker, _Worker):
        return True
    if said := re.match(r"HTTP Error (\d{3}) ", record.getMessage()):
        worker.status = int(said[1])
    return False
