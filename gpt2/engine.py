"""Engine: many requests share one model, and every forward pass.

One thread computes. A request waits, then reads its prompt, chunk by chunk, then writes: one token in every pass, which
all who write share. It comes and goes between two passes. Knows requests, their readers and whose turn it is; what a
text is fed and when it ends is the sampler's business. Knows nothing of the page.
"""

from __future__ import annotations

import atexit
import queue
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gpt2.cache import KVCache
from gpt2.model import GPT
from gpt2.prefixes import Prefixes
from gpt2.sampler import CHUNK, Draft, Outcome, SamplingParams, prompt_ids
from gpt2.tokenizer import TextStream, Tokenizer

HEARTBEAT = 1.0  # seconds without news after which a reader gets an empty piece, and with it a chance to leave


class EngineError(RuntimeError):
    """Why a text was not written, in one sentence."""


class Refused(EngineError):
    """The engine takes no more requests: for now, because its queue is full, or ever, because it was closed."""


class Request:
    """A text that is being written for one reader: an iterator over its pieces. To end it, cancel() it, leave the
    loop or let go of it; its place is free two passes later at most.
    """

    def __init__(self, engine: Engine, job: _Job):
        self._engine, self._job = engine, job

    @property
    def outcome(self) -> Outcome | None:
        """What the generation did; None until it has ended, and where it failed."""
        return self._job.outcome

    @property
    def position(self) -> int:
        """Place among those who wait: 1 is next, 0 waits no longer."""
        return self._engine.place_of(self._job)

    def cancel(self) -> None:
        """End it; the reader still gets what was written."""
        self._job.cancelled = True

    def __iter__(self) -> Iterator[str]:
        """Yield the continuation in pieces, as it is written; "" where there was no news for a second.

        Raises:
            EngineError: where the computation failed.
            ValueError: where the checkpoint is damaged, as in generate().
        """
        text = TextStream(self._engine.tokenizer)
        for idx in self.ids():
            piece = "" if idx is None else text.push(idx)
            if piece or idx is None:
                yield piece
        if piece := text.end():
            yield piece

    def ids(self) -> Iterator[int | None]:
        """The same as the ids that it is made of; None where there was no news for a second."""
        try:
            while not self._job.read_to_end:
                try:
                    news = self._job.news.get(timeout=HEARTBEAT)
                except queue.Empty:
                    yield None
                    continue
                self._job.read_to_end = not isinstance(news, int)
                if isinstance(news, BaseException):
                    raise news
                if news is not None:
                    yield news
        finally:  # the reader may have left
            self.cancel()

    def __del__(self):
        self.cancel()


class _Job:
    """The engine's side of a request. It does not know its reader, who may be gone."""

    def __init__(self, draft: Draft):
        self.draft = draft
        self.cache: KVCache | None = None  # its own while it reads
        # New ids, then None or what went wrong. Without a bound, so that a slow reader never stops the others.
        self.news: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self.read_to_end = self.cancelled = False
        self.outcome: Outcome | None = None


class Engine:
    """Writes for up to max_batch readers at once; others wait in a queue.

    It ends with close(), a `with` block or the program.

    Args:
        model, tokenizer: as loaded; nobody may change them meanwhile.
        max_batch: texts that are read and written at once; each takes memory for its keys and values.
        max_queue: requests that may wait for a place.
        prefix_bytes: memory for keys and values of prompts that may come again.
        threads: of the CPU, to compute with; None: as many as the caller. As soon as there are more such threads in the
            process than cores, OpenMP lets all of them sleep between two products, which halves the speed: let others
            compute with one, torch.set_num_threads(1), from before they load a model.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_batch: int = 16,
        max_queue: int = 64,
        prefix_bytes: int = 128 * 2**20,
        threads: int | None = None,
    ):
        if max_batch < 1 or max_queue < 0:
            raise ValueError(f"max_batch={max_batch} must be at least 1, and max_queue={max_queue} at least 0.")
        self.model, self.tokenizer = model, tokenizer
        self.max_batch, self.max_queue = max_batch, max_queue
        self._changed = threading.Condition()  # guards the next four
        self._waiting: deque[_Job] = deque()
        self._free = max_batch  # places
        self._refuses = self._closed = False
        # The rest is the thread's own.
        self._reading: deque[_Job] = deque()
        self._writing: list[_Job] = []  # the job of each row of the cache
        self._cache = self.model.new_cache(max_batch)
        self._cache.pos = []
        self._prefixes = Prefixes(prefix_bytes)
        mine, ready = torch.get_num_threads(), threading.Event()
        self._thread = threading.Thread(
            target=self._run, args=(threads or mine, ready), name="gpt2-engine", daemon=True
        )
        self._thread.start()
        ready.wait()
        torch.set_num_threads(mine)
        atexit.register(self.close)  # a thread that dies inside a matrix product takes the process with it

    def submit(self, prompt: str, params: SamplingParams | None = None) -> Request:
        """Ask for what gpt2.generate() would write. A deadline counts from when the request gets its place.

        Raises:
            Refused: where the queue is full or the engine closed.
        """
        ids = prompt_ids(self.model, self.tokenizer, prompt)
        job = _Job(Draft(self.model.config, ids, params or SamplingParams()))
        with self._changed:
            if self._refuses:
                raise Refused("This engine was closed and writes no more.")
            if len(self._waiting) >= self._free + self.max_queue:
                busy = f"{self.max_batch} texts are being written and {self.max_queue} requests wait already"
                raise Refused(f"{busy}: try again in a moment.")
            self._waiting.append(job)
            self._changed.notify()
        return Request(self, job)

    @property
    def busy(self) -> bool:
        """Whether somebody's text is being written, or waits for that."""
        return bool(self._waiting) or self._free < self.max_batch

    def place_of(self, job: _Job) -> int:
        with self._changed:
            return self._waiting.index(job) + 1 if job in self._waiting else 0

    def close(self, wait: float = 0) -> None:
        """Take no more requests, wait so many seconds at most for those that there are, and end what is left; its
        readers still get what was written."""
        with self._changed:
            self._refuses = True
            self._changed.wait_for(lambda: not self.busy, wait)
            self._closed = True
            self._changed.notify()
        self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, threads: int, ready: threading.Event) -> None:
        torch.get_num_threads()  # a thread gets its number at the first question: not later, when it may be another
        torch.set_num_threads(threads)  # its own, and that of all threads to come, which __init__ puts right
        ready.set()
        with torch.inference_mode():
            while self._seat():
                self._read()
                self._write()

    def _seat(self) -> bool:
        """Let those go who left or whose time is up, and give free places to those who wait longest. Sleeps while
        there is nothing to do; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self.busy)
        for job in (*self._reading, *self._writing):
            if self._has_left(job) or job.draft.is_late():
                self._leave(job)
        with self._changed:
            for job in [job for job in self._waiting if self._has_left(job)]:
                self._waiting.remove(job)
                self._end(job)
            while self._waiting and self._free:
                job = self._waiting.popleft()
                self._free -= 1
                job.draft.started = time.monotonic()
                self._reading.append(job)
            return not self._closed

    def _read(self) -> None:
        """Let readers of prompts go on in turn, by one chunk in all: a long prompt keeps neither those who write nor
        a short one waiting."""
        budget = CHUNK
        while self._reading and budget > 0:
            job = self._reading[0]
            self._reading.rotate(-1)
            with self._failing(job):
                job.cache = job.cache or self.model.new_cache(1)
                start = job.cache.pos[0]
                logits = self._next_chunk(job)
                budget -= job.cache.pos[0] - start
                if not job.draft.unread:
                    self._cache.join(job.cache)
                    job.cache = None
                    self._reading.remove(job)
                    self._writing.append(job)
                    self._choose(job, logits)

    def _write(self) -> None:
        """One more token for everyone who writes; who has filled the window goes back to reading."""
        for job, pos in list(zip(self._writing, self._cache.pos, strict=True)):
            if job.draft.overflows(pos):
                self._forget(job)
                self._reading.append(job)
        if not self._writing:
            return
        writing = list(self._writing)
        with self._failing(*writing):
            logits = self._forward([job.draft.next_chunk() for job in writing], self._cache)  # (B, V)
            for job, row in zip(writing, logits, strict=True):
                with self._failing(job):
                    self._choose(job, row)

    def _next_chunk(self, job: _Job) -> Tensor:
        """Read one chunk into the job's own cache, or take it over from an earlier reader; the last scores, (V,)."""
        draft, cache, start = job.draft, job.cache, job.cache.pos[0]
        chunk = draft.next_chunk()
        if len(draft.text) > draft.n_prompt:  # half a window that nobody else will read
            return self._forward([chunk], cache)[0]
        read = tuple(draft.text[draft.dropped : draft.dropped + start + len(chunk)])
        if (known := self._prefixes.get(read)) is not None:
            k, v, logits = known
            cache.extend(0, k, v)
            return logits
        logits = self._forward([chunk], cache)[0]
        self._prefixes.put(read, *(t.clone() for t in cache.since(0, start)), logits)
        return logits

    def _forward(self, ids: list[list[int]], cache: KVCache) -> Tensor:
        logits, _ = self.model(torch.tensor(ids, device=cache.k.device), cache=cache)  # (B, 1, V)
        return logits[:, -1].float().cpu()  # at once: each row by itself would wait for the GPU each time

    def _choose(self, job: _Job, logits: Tensor) -> None:
        idx = job.draft.write(logits)
        if idx is not None:
            job.news.put(idx)
        if job.draft.stop_reason is not None:
            self._leave(job)

    def _has_left(self, job: _Job) -> bool:
        if self._closed or job.cancelled:
            job.draft.stop_reason = "cancelled"
        return job.draft.stop_reason is not None

    def _forget(self, job: _Job) -> None:
        """Take a job out of those who read or write."""
        if job in self._reading:
            self._reading.remove(job)
        else:
            row = self._writing.index(job)
            self._cache.leave(row)
            last = self._writing.pop()
            if last is not job:
                self._writing[row] = last

    def _leave(self, job: _Job, error: BaseException | None = None) -> None:
        """Free a job's place and tell its reader."""
        self._forget(job)
        with self._changed:
            self._free += 1
            self._changed.notify()  # close(), perhaps: this thread itself waits for nothing now
        self._end(job, error)

    @staticmethod
    def _end(job: _Job, error: BaseException | None = None) -> None:
        if error is None:
            job.outcome = job.draft.outcome
        job.news.put(error)

    @contextmanager
    def _failing(self, *jobs: _Job) -> Iterator[None]:
        """Whatever goes wrong inside ends these jobs, each with a sentence, and no other."""
        try:
            yield
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if not isinstance(error, ValueError):  # of which the sampler's are sentences
                words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                error = EngineError(f"The model failed while it wrote this text ({words}); try again.")
            for job in jobs:
                if job in self._reading or job in self._writing:
                    self._leave(job, error)
