"""gpt2/engine.py: the same text in any company, and nobody waits for, pays for or learns of another reader."""

from __future__ import annotations

import copy
import gc
import math
import random
import threading
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

import gpt2
from gpt2 import SamplingParams, engine, sampler
from gpt2.engine import Engine

PROMPTS = ["the", "a land", "", "o", "and thou in the house", "What is the city but the people? Nothing at all."]
FOREVER = SamplingParams(max_new_tokens=100_000, temperature=1.0, top_k=0)


def tireless(model: gpt2.GPT) -> gpt2.GPT:
    """The same, and it never ends a text of its own accord."""
    model = copy.deepcopy(model)
    tokens, ln_f, end = model.transformer.wte.weight, model.transformer.ln_f, model.config.eos_token_id
    ln_f.weight[0], ln_f.bias[0] = 0, 10  # a channel that says the same everywhere
    tokens[:, 0], tokens[end], tokens[end, 0] = 0, 0, -100
    return model


@pytest.fixture(scope="module")
def tireless_model(tiny_model):
    return tireless(tiny_model)


@pytest.fixture
def make_engine(tireless_model, tiny_tokenizer):
    """make_engine(model=tireless_model, **settings); closed when the test is over."""
    made = []

    def make(model=tireless_model, **settings) -> Engine:
        made.append(Engine(model, tiny_tokenizer, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Gate:
    """A model that computes one pass for each time it is let through, and counts what it is fed."""

    def __init__(self, model: gpt2.GPT):
        self.model, self.config, self.new_cache = model, model.config, model.new_cache
        self.fed: list[tuple[int, int]] = []  # (B, T) of each pass
        self.open, self.arrived = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, idx, cache):
        self.fed.append(tuple(idx.shape))
        self.arrived.release()
        assert self.open.acquire(timeout=60)
        return self.model(idx, cache=cache)

    def let_through(self, passes: int = 1) -> None:
        """Let so many passes be computed; returns when the next one has begun."""
        for _ in range(passes):
            self.open.release()
            assert self.arrived.acquire(timeout=60)

    def let_all_through(self) -> None:
        self.open.release(100_000)


@pytest.fixture
def gate(tireless_model, make_engine):  # make_engine: closed after the gate was opened
    gate = Gate(tireless_model)
    yield gate
    gate.let_all_through()


def text_of(model, tokenizer, prompt: str, params: SamplingParams) -> str:
    return "".join(gpt2.generate(model, tokenizer, prompt, params))


def wait_until(true) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


# The same text


def test_it_writes_what_generate_writes_past_the_window_too(make_engine, tireless_model, tiny_tokenizer):
    for seed, prompt in enumerate(PROMPTS):
        params = SamplingParams(max_new_tokens=60, seed=seed, top_p=0.9, repetition_penalty=1.1)
        request = make_engine().submit(prompt, params)
        pieces = list(request)
        stream, expected = gpt2.generate(tireless_model, tiny_tokenizer, prompt, params), []
        while True:
            try:
                expected.append(next(stream))
            except StopIteration as end:
                outcome = end.value
                break
        assert [piece for piece in pieces if piece] == expected
        assert request.outcome == outcome


@pytest.mark.parametrize("compiled", [False, True])
def test_200_requests_get_the_same_tokens_alone_and_in_any_company(make_engine, tiny_model, compiled):
    rng, model = random.Random(0), copy.deepcopy(tiny_model)
    if compiled:
        model.compile_step()
    wishes = [
        (
            rng.choice(PROMPTS),
            SamplingParams(
                max_new_tokens=rng.randrange(1, 30),
                temperature=rng.choice([0.0, 0.7, 1.0, 1.3]),
                top_k=rng.choice([0, 5, 50]),
                top_p=rng.choice([0.8, 1.0]),
                repetition_penalty=rng.choice([1.0, 1.2]),
                seed=seed,
            ),
        )
        for seed in range(200)
    ]
    alone_engine, company = make_engine(model, max_batch=1), make_engine(model, max_queue=200)
    alone = []
    for wish in wishes:
        request = alone_engine.submit(*wish)
        list(request)
        alone.append(request.outcome)
    requests = [(i, company.submit(*wishes[i])) for i in rng.sample(range(200), 200)]
    for i, request in requests:
        list(request)
        assert request.outcome == alone[i]


@pytest.mark.slow
def test_the_bundled_model_too_writes_the_same_in_any_company():
    """Bit for bit: its likeliest ids and the scores that they were chosen by."""
    model, tokenizer = gpt2.load(gpt2.BUNDLED, "cpu", "float32")
    prompts = ["ROMEO:", "JULIET:\nO Romeo,", "To be, or not to be", "KING HENRY:\nOnce more unto the breach" * 12, ""]
    wishes = [(prompts[seed % 5], SamplingParams(max_new_tokens=40, seed=seed)) for seed in range(32)]
    with Engine(model, tokenizer) as company:
        requests = [company.submit(*wish) for wish in wishes]
        texts = ["".join(request) for request in requests]
    assert texts == [text_of(model, tokenizer, *wish) for wish in wishes]


def test_no_score_depends_on_the_rows_beside_it_not_even_in_its_last_bit(make_model):
    model = make_model(gpt2.GPTConfig(block_size=130, vocab_size=263, n_layer=2, n_head=2, n_embd=32))
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(263, (n,), generator=generator).tolist() for n in (3, 60, 63, 64, 100, 128)]

    def step(chosen: list[int]) -> torch.Tensor:
        """Scores of the token after each text, all in one pass, (B, V)."""
        together = gpt2.KVCache(model.config, len(chosen))
        together.pos = []
        for i in chosen:
            own = gpt2.KVCache(model.config)
            model(torch.tensor([texts[i]]), cache=own)
            together.join(own)
        return model(torch.tensor([[7]] * len(chosen)), cache=together)[0][:, 0]

    with torch.inference_mode():
        alone = [step([i])[0] for i in range(len(texts))]
        for chosen in ([0, 1], [5, 0], [2, 3, 4], [4, 3, 2, 1, 0], list(range(6)) * 3):
            for i, scores in zip(chosen, step(chosen), strict=True):
                assert torch.equal(scores, alone[i])


# Joining and leaving


def test_readers_join_and_leave_between_passes(gate, make_engine):
    engine = make_engine(gate)
    first = engine.submit("the", replace(FOREVER, seed=1))
    assert gate.arrived.acquire(timeout=60)
    gate.let_through(3)
    second = engine.submit("a", replace(FOREVER, seed=2, max_new_tokens=3))
    gate.let_through(5)
    assert first.outcome is None and second.outcome.stop_reason == "length"
    batches = [B for B, T in gate.fed]
    assert max(batches) == 2 and batches[-1] == 1


def test_a_long_prompt_is_read_in_chunks_between_which_the_others_write(make_model, tiny_tokenizer, make_engine):
    gate = Gate(tireless(make_model(gpt2.GPTConfig(256, tiny_tokenizer.vocab_size, 1, 1, 8, eos_token_id=0))))
    engine = make_engine(gate)
    engine.submit("the", FOREVER)
    short = engine.submit("the", FOREVER)
    long = engine.submit("x" * 250, FOREVER)
    assert gate.arrived.acquire(timeout=60)
    gate.let_through(14)
    gate.let_all_through()
    reading = [i for i, (_, T) in enumerate(gate.fed) if T == sampler.CHUNK]
    assert len(reading) == 3 and all(b - a > 1 for a, b in zip(reading, reading[1:], strict=False))
    del short, long


def test_a_short_prompt_does_not_wait_for_a_long_one_to_be_read(make_model, tiny_tokenizer, make_engine):
    gate = Gate(tireless(make_model(gpt2.GPTConfig(1024, tiny_tokenizer.vocab_size, 1, 1, 8, eos_token_id=0))))
    engine = make_engine(gate)
    long = engine.submit("x" * 1000, FOREVER)
    assert gate.arrived.acquire(timeout=60)
    short = engine.submit("the", replace(FOREVER, max_new_tokens=1))
    gate.let_through(3)
    assert short.outcome.stop_reason == "length"
    gate.let_all_through()
    del long


def test_the_others_write_on_while_one_reads_its_half_window_again(make_engine, tireless_model, tiny_tokenizer):
    engine = make_engine()
    wishes = [("x" * n, SamplingParams(max_new_tokens=50, seed=n)) for n in (1, 9, 16)]
    requests = [engine.submit(*wish) for wish in wishes]
    assert ["".join(r) for r in requests] == [text_of(tireless_model, tiny_tokenizer, *wish) for wish in wishes]


# Ending


def ends(request: gpt2.Request) -> str:
    wait_until(lambda: request._job.outcome is not None)
    return request._job.outcome.stop_reason


@pytest.mark.parametrize("passes", [1, 4])
def test_cancelling_frees_the_place_before_the_next_token(gate, make_engine, passes):
    engine = make_engine(gate, max_batch=1)
    request, following = engine.submit("the", FOREVER), engine.submit("a", FOREVER)
    assert gate.arrived.acquire(timeout=60)
    gate.let_through(passes)
    assert (request.position, following.position) == (0, 1)
    request.cancel()
    gate.let_through()
    assert request.outcome.stop_reason == "cancelled"
    assert len(request.outcome.new_ids) == passes + 1
    assert following.position == 0
    assert len("".join(request).encode()) > 0


def test_cancelling_while_waiting_gives_up_the_place_in_the_queue(gate, make_engine):
    engine = make_engine(gate, max_batch=1)
    engine_busy, a, b = (engine.submit("the", FOREVER) for _ in range(3))
    assert gate.arrived.acquire(timeout=60)
    assert (a.position, b.position) == (1, 2)
    a.cancel()
    gate.let_through(2)
    assert b.position == 1
    assert "".join(a) == "" and a.outcome.stop_reason == "cancelled"
    engine_busy.cancel()


def leave_the_loop(request):
    for piece in request:
        if piece:
            return


def close_the_iterator(request):
    stream = iter(request)
    next(stream)
    stream.close()


def lose_the_iterator(request):
    next(iter(request))


@pytest.mark.parametrize("leave", [leave_the_loop, close_the_iterator, lose_the_iterator])
def test_a_reader_who_leaves_frees_the_place(make_engine, leave):
    request = make_engine().submit("the", FOREVER)
    leave(request)
    assert ends(request) == "cancelled"


def test_a_reader_who_vanishes_frees_the_place(make_engine):
    engine = make_engine()
    request = engine.submit("the", FOREVER)
    job = request._job
    del request
    gc.collect()
    wait_until(lambda: job.outcome is not None)
    assert job.outcome.stop_reason == "cancelled"


def test_a_slow_reader_stops_nobody_and_loses_nothing(make_engine, tireless_model, tiny_tokenizer):
    engine, params = make_engine(), SamplingParams(max_new_tokens=300, seed=3)
    slow = engine.submit("the", params)
    stream = iter(slow)
    first = next(stream)
    list(engine.submit("a", params))
    assert ends(slow) == "length"
    assert first + "".join(stream) == text_of(tireless_model, tiny_tokenizer, "the", params)


def test_a_deadline_ends_a_text_and_does_not_count_the_time_in_the_queue(gate, make_engine, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(sampler.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(engine.time, "monotonic", lambda: clock[0])
    eng = make_engine(gate, max_batch=1)
    first, second = (eng.submit("the", replace(FOREVER, deadline=5)) for _ in range(2))
    assert gate.arrived.acquire(timeout=60)
    gate.let_through(3)
    clock[0] = 5.0
    gate.let_through()
    assert first.outcome.stop_reason == "deadline" and len(first.outcome.new_ids) == 4
    gate.let_through(2)
    clock[0] = 9.0
    gate.let_through()
    assert second.outcome is None
    clock[0] = 10.0
    gate.let_through(0)
    gate.let_all_through()
    assert ends(second) == "deadline"


def test_end_of_text_ends_it_and_is_not_part_of_it(make_engine, tiny_model, tiny_tokenizer):
    params = SamplingParams(max_new_tokens=30, seed=1)
    free = make_engine(tiny_model).submit("the", params)
    list(free)
    ids = free.outcome.new_ids
    at = next(i for i, idx in enumerate(ids) if i >= 3 and idx not in ids[:i])
    model = copy.copy(tiny_model)
    model.config = replace(tiny_model.config, eos_token_id=ids[at])
    request = make_engine(model).submit("the", params)
    list(request)
    assert (request.outcome.stop_reason, request.outcome.new_ids) == ("end-of-text", ids[:at])


def test_a_reader_without_news_hears_an_empty_piece(gate, make_engine, monkeypatch):
    monkeypatch.setattr(engine, "HEARTBEAT", 0.01)
    request = make_engine(gate).submit("the", FOREVER)
    assert next(iter(request)) == ""


# The queue


def test_a_full_queue_refuses_with_a_sentence_and_has_room_again_later(gate, make_engine):
    engine = make_engine(gate, max_batch=2, max_queue=3)
    requests = [engine.submit("the", FOREVER) for _ in range(5)]
    with pytest.raises(
        gpt2.Refused, match="^2 texts are being written and 3 requests wait already: try again"
    ) as refusal:
        engine.submit("the", FOREVER)
    assert "\n" not in str(refusal.value)
    assert gate.arrived.acquire(timeout=60)
    requests[3].cancel()
    gate.let_through(2)
    engine.submit("the", FOREVER)
    for request in requests:
        request.cancel()


def test_who_waits_longest_is_next(gate, make_engine):
    engine = make_engine(gate, max_batch=1)
    requests = [engine.submit("the", replace(FOREVER, max_new_tokens=1)) for _ in range(3)]
    assert gate.arrived.acquire(timeout=60)
    assert [r.position for r in requests] == [0, 1, 2]
    gate.let_all_through()
    for request in requests:
        list(request)
    assert [r.outcome.stop_reason for r in requests] == ["length"] * 3


@pytest.mark.parametrize("settings", [{"max_batch": 0}, {"max_queue": -1}])
def test_impossible_settings_are_refused(settings, tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="at least"):
        Engine(tiny_model, tiny_tokenizer, **settings)


# Failures


class Fragile:
    """A model whose next pass fails where it is told to."""

    def __init__(self, model: gpt2.GPT):
        self.model, self.config, self.new_cache = model, model.config, model.new_cache
        self.fail_at, self.error = None, None

    def __call__(self, idx, cache):
        if self.error is not None and self.fail_at(idx):
            error, self.error = self.error, None
            raise error
        return self.model(idx, cache=cache)


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("one\ntwo"), Panic("gone")], ids=repr)
@pytest.mark.parametrize("T", [1, 3])
def test_a_failure_ends_in_a_sentence_and_the_engine_lives_on(make_engine, tireless_model, tiny_tokenizer, error, T):
    model = Fragile(tireless_model)
    model.fail_at, model.error = lambda idx: idx.size(1) == T, error
    engine, params = make_engine(model), SamplingParams(max_new_tokens=10, seed=1)
    with pytest.raises(gpt2.EngineError, match=type(error).__name__) as failure:
        list(engine.submit("xyz", params))
    assert "\n" not in str(failure.value)
    assert "".join(engine.submit("xyz", params)) == text_of(tireless_model, tiny_tokenizer, "xyz", params)


def test_a_failure_while_one_reads_does_not_touch_those_who_write(make_engine, tireless_model, tiny_tokenizer):
    model, params = Fragile(tireless_model), SamplingParams(max_new_tokens=200, seed=1)
    model.fail_at, model.error = lambda idx: idx.size(1) == 3, MemoryError()
    engine = make_engine(model)
    writing = engine.submit("x", params)
    with pytest.raises(gpt2.EngineError):
        list(engine.submit("xyz", params))
    assert "".join(writing) == text_of(tireless_model, tiny_tokenizer, "x", params)


def test_without_memory_for_one_text_the_others_go_on(make_engine, tireless_model, tiny_tokenizer):
    model, params = Fragile(tireless_model), SamplingParams(max_new_tokens=15, seed=1)  # within the window
    engine = make_engine(model)
    writing = iter(engine.submit("x", params))
    first = next(writing)
    model.new_cache = Mock(side_effect=MemoryError("no room"))
    with pytest.raises(gpt2.EngineError, match="no room"):
        list(engine.submit("xyz", SamplingParams(max_new_tokens=3)))
    model.new_cache = tireless_model.new_cache
    assert first + "".join(writing) == text_of(tireless_model, tiny_tokenizer, "x", params)


def test_a_damaged_model_is_named_as_in_generate(make_engine, tiny_model):
    model = copy.deepcopy(tiny_model)
    model.transformer.ln_f.bias[0] = math.nan
    with pytest.raises(ValueError, match="damaged"):
        list(make_engine(model).submit("the"))


# Closing


def test_closing_ends_everything_and_refuses_what_comes_after(make_engine):
    engine = make_engine(max_batch=1)
    requests = [engine.submit("the", FOREVER) for _ in range(3)]
    next(iter(requests[0]))
    engine.close()
    engine.close()
    assert [r.outcome.stop_reason for r in requests] == ["cancelled"] * 3
    with pytest.raises(gpt2.Refused, match="closed"):
        engine.submit("the")


def test_closing_may_wait_for_what_is_being_written_and_takes_no_more_meanwhile(gate, make_engine):
    engine = make_engine(gate, max_batch=1)
    requests = [engine.submit("the", SamplingParams(max_new_tokens=2)) for _ in range(2)]
    closing = threading.Thread(target=lambda: engine.close(wait=60))
    closing.start()
    wait_until(lambda: refuses(engine))
    gate.let_all_through()
    closing.join(60)
    assert not closing.is_alive() and [r.outcome.stop_reason for r in requests] == ["length"] * 2


def refuses(engine: Engine) -> bool:
    try:
        engine.submit("the", FOREVER).cancel()
    except gpt2.Refused:
        return True
    return False


def test_closing_waits_no_longer_than_it_is_told(make_engine):
    engine = make_engine()
    request = engine.submit("the", FOREVER)
    engine.close(wait=0.1)
    assert request.outcome.stop_reason == "cancelled"


def test_a_program_may_end_while_a_text_is_written(run_python, tiny_checkpoint):
    code = f"import gpt2; e = gpt2.Engine(*gpt2.load({str(tiny_checkpoint)!r})); r = e.submit('a', gpt2.SamplingParams("
    code += "max_new_tokens=100000)); next(iter(r)); r = e.submit('a', gpt2.SamplingParams(max_new_tokens=100000))"
    finished = run_python("-c", code)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_it_computes_with_its_own_number_of_threads_and_leaves_all_others_theirs(make_engine, tireless_model):
    mine, seen = torch.get_num_threads(), []
    with_hook = copy.deepcopy(tireless_model)
    with_hook.register_forward_pre_hook(lambda *_: seen.append(torch.get_num_threads()))
    list(make_engine(with_hook, threads=mine + 1).submit("the", SamplingParams(max_new_tokens=3)))
    other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert seen == [mine + 1] * 3 + [mine] and torch.get_num_threads() == mine


# Prefixes


def prompts_read(gate: Gate) -> list[int]:
    return [T for _, T in gate.fed if T > 1]


def test_the_same_prompt_is_read_once(tireless_model, make_engine):
    gate = Gate(tireless_model)
    gate.let_all_through()
    engine = make_engine(gate)
    requests = [engine.submit("What is", replace(FOREVER, max_new_tokens=3, seed=seed)) for seed in range(20)]
    for request in requests:
        list(request)
    assert len(prompts_read(gate)) == 1
    list(engine.submit("What was", SamplingParams(max_new_tokens=1)))
    assert len(prompts_read(gate)) == 2


def test_of_a_prompt_that_goes_on_from_another_only_the_rest_is_read(make_model, tiny_tokenizer, make_engine):
    gate = Gate(tireless(make_model(gpt2.GPTConfig(512, tiny_tokenizer.vocab_size, 1, 1, 8, eos_token_id=0))))
    gate.let_all_through()
    engine, params = make_engine(gate), SamplingParams(max_new_tokens=1, seed=1)
    prompt = "".join(random.Random(0).choices("xyz", k=150))
    list(engine.submit(prompt, params))
    assert prompts_read(gate) == [64, 64, 22]
    request = engine.submit(prompt + "xxx", params)
    list(request)
    assert prompts_read(gate) == [64, 64, 22, 25]
    assert request.outcome.new_ids == _new_ids(gate.model, tiny_tokenizer, prompt + "xxx", params)


def _new_ids(model, tokenizer, prompt, params):
    stream = gpt2.generate(model, tokenizer, prompt, params)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return end.value.new_ids


def test_prefixes_stay_within_their_memory_and_the_one_not_used_longest_goes(tireless_model, make_engine):
    gate = Gate(tireless_model)
    gate.let_all_through()
    one = 2 * 2 * 32 * 4 * 5 + 263 * 4  # bytes of five positions and of one row of scores
    engine = make_engine(gate, prefix_bytes=2 * one)

    def read(prompt: str) -> bool:
        before = len(prompts_read(gate))
        list(engine.submit(prompt, SamplingParams(max_new_tokens=1)))
        return len(prompts_read(gate)) > before

    assert [read(p) for p in ("xxxxx", "yyyyy", "xxxxx", "zzzzz", "xxxxx", "yyyyy")] == [True, True, False] + [
        True,
        False,
        True,
    ]


def test_what_one_reader_wrote_changes_nothing_for_the_next(make_engine, tireless_model, tiny_tokenizer):
    engine, params = make_engine(max_batch=2), SamplingParams(max_new_tokens=40, seed=5)
    expected = text_of(tireless_model, tiny_tokenizer, "the", params)
    for other in ("x" * 16, "the", "the land of"):
        list(engine.submit(other, SamplingParams(max_new_tokens=60)))
        assert "".join(engine.submit("the", params)) == expected
