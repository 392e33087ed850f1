"""The page and its API, as visitors and programs meet them: the real app in a process of its own, offline."""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from functools import partial
from itertools import pairwise
from urllib.parse import urlsplit

import gradio as gr
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError

import app
import gpt2
from page import served as loading
from page import writing
from tests.page.visit import ROOT, serve


def written(served: loading.Served, prompt, *values) -> list[writing.Progress]:
    source = partial(writing.news, served.model, served.tokenizer)
    return list(writing.write(served, source, prompt, values or (None,) * len(writing.SETTINGS)))


# The API


def test_generate_streams_the_continuation_so_far(client):
    parts = list(client.submit("ROMEO:", max_new_tokens=2000, seed=1, api_name="/generate"))
    assert len(parts) > 3 and len(parts[-1]) > 500
    assert all(later.startswith(earlier) for earlier, later in pairwise(parts))
    assert not parts[-1].startswith("ROMEO:")


def test_the_text_is_updated_at_most_twenty_times_a_second(client):
    started = time.monotonic()
    parts = list(client.submit("ROMEO:", max_new_tokens=2000, seed=1, api_name="/generate"))
    assert len(parts) <= 20 * (time.monotonic() - started) + 4


def test_the_page_writes_what_the_library_writes(client, checkpoint):
    model, tokenizer = gpt2.load(checkpoint, device="cpu")
    params = gpt2.SamplingParams(max_new_tokens=80, top_k=20, temperature=0.9, top_p=0.95, min_p=0.01, seed=7)
    expected = "".join(gpt2.generate(model, tokenizer, "JULIET:", params))
    assert client.predict("JULIET:", 80, 20, 0.9, 0.95, 0.01, 1.0, 7, api_name="/generate") == expected


def test_everything_but_the_prompt_has_a_default(client, running):
    assert client.predict("ROMEO:", api_name="/generate")
    event = json.loads(running.post("/gradio_api/call/v2/generate", b'{"prompt": "ROMEO:", "max_new_tokens": 3}'))
    assert "event_id" in event


def test_the_api_documents_the_widgets_own_names_and_defaults(running):
    with urllib.request.urlopen(running.url + "/gradio_api/info", timeout=60) as answer:
        endpoints = json.load(answer)["named_endpoints"]
    assert set(endpoints) == {"/generate", "/next_tokens", "/score", "/model_info"}
    parameters = [(p["parameter_name"], p["parameter_default"]) for p in endpoints["/generate"]["parameters"]]
    assert parameters == [("prompt", None), *((s.name, s.default) for s in writing.SETTINGS)]


def test_model_info_says_what_is_loaded_and_no_path(client, checkpoint):
    info = client.predict(api_name="/model_info")
    assert info["name"] == "endless" and info["sha"] is None and info["fallback"] is False
    assert info["n_parameters"] == gpt2.load(checkpoint)[0].config.n_parameters
    assert (info["n_layer"], info["n_head"], info["n_embd"], info["block_size"]) == (12, 2, 32, 64)
    assert info["vocab_size"] == 263 and info["dtype"] == "float32" and info["device"] in ("cpu", "cuda", "mps")
    assert info["training"]["held_out_bits_per_byte"] == 2.5
    assert str(checkpoint.parent) not in json.dumps(info)


GOOD = ["ROMEO:", 5, 50, 1.0, 1.0, 0.0, 1.0, 1]
BAD = {
    0: [5, ["a"], {"a": 1}, True, "a" * 20_001, "a" * 1_000_000],
    1: [0, 2001, -1, 50.5, "50", True, [50], float("nan"), float("inf"), 10**400],
    2: [-1, 201, 0.5, False],
    3: [-0.1, 2.1, "<img src=x>", True, float("nan")],
    4: [0, 1.01, float("-inf"), {}],
    5: [-0.01, 1.01, "0"],
    6: [0, 0.99, 2.01, float("nan")],
    7: [-2, 1.5, 2**53, "1", 1e300],
}


def with_value(position: int, value) -> list:
    return [*GOOD[:position], value, *GOOD[position + 1 :]]


def call(running, endpoint: str, values: list) -> dict:
    """The page's own event also takes the number of samples."""
    return running.call(endpoint, values if endpoint == "generate" else [*values, 1, None])


@pytest.mark.parametrize("endpoint", ["generate", "respond"])
@pytest.mark.parametrize("position, value", [(i, value) for i, values in BAD.items() for value in values])
def test_a_wrong_value_gets_one_sentence_and_the_app_goes_on(running, endpoint, position, value):
    error = call(running, endpoint, with_value(position, value))["error"]["error"]
    name = "The prompt" if position == 0 else writing.SETTINGS[position - 1].name
    assert error.startswith(name) and error.endswith(".") and len(error) < 120 and "<" not in error
    assert "complete" in running.call("generate", GOOD)
    assert "Traceback" not in running.log()


@pytest.mark.parametrize(
    "position, value",
    [(1, 5.0), (7, 1.0), *((i, None) for i in range(8)), (0, ""), (0, "\x00\ud800 <|endoftext|> \U0001f600"), (7, -1)],
)
@pytest.mark.parametrize("endpoint", ["generate", "respond"])
def test_an_unusual_but_meaningful_value_is_accepted(running, endpoint, position, value):
    assert "complete" in call(running, endpoint, with_value(position, value))
    assert "Traceback" not in running.log()


def test_whole_numbers_may_arrive_as_floats_and_none_means_the_default(running):
    assert running.call("generate", ["A", 5.0, None, 1, 1, None, 1, 1.0]) == running.call("generate", ["A", *GOOD[1:]])


def test_the_error_reaches_a_client_as_a_sentence(client):
    with pytest.raises(AppError, match="temperature must be a number from 0 to 2."):
        client.predict("ROMEO:", temperature=9, api_name="/generate")


def test_a_cancelled_request_frees_the_model_for_the_next(client):
    started = time.monotonic()
    client.predict("ROMEO:", max_new_tokens=2000, api_name="/generate")
    whole_run = time.monotonic() - started
    jobs = [client.submit("ROMEO:", max_new_tokens=2000, api_name="/generate") for _ in range(app.SLOTS)]
    while not jobs[0].outputs():
        time.sleep(0.01)
    for job in jobs:
        job.cancel()
    started = time.monotonic()
    client.predict("ROMEO:", max_new_tokens=5, api_name="/generate")
    assert time.monotonic() - started < whole_run


# Starting and ending


def test_importing_the_app_does_nothing(run_python):
    done = run_python("-c", "import app", PORT="nonsense", MODEL_ID="no/such")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


DECORATED = f"ZeroGPU lends to news_on_zero_gpu for {writing.DEADLINE + 10} s, to on_zero_gpu for 20 s"


@pytest.fixture
def zero_gpu(tmp_path) -> dict[str, str]:
    """The environment of a ZeroGPU Space, with a stand-in for its package that says at the end of a start, and with
    every loan, what it has seen."""
    (tmp_path / "spaces.py").write_text(
        "import sys\n"
        "found = ['torch came first'] if 'torch' in sys.modules else []\n"
        "def GPU(duration):\n"
        "    def decorate(function):\n"
        "        found.append(f'to {function.__name__} for {duration} s')\n"
        "        if len(found) == 2:\n"
        "            print('ZeroGPU lends', ', '.join(found), flush=True)\n"
        "        return function\n"
        "    return decorate\n"
        "def gradio_auto_wrap(function):  # Gradio asks for it there\n"
        "    return function\n",
        encoding="utf-8",
    )
    return {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "SPACES_ZERO_GPU": "true"}


def test_zero_gpu_finds_the_decorated_functions_and_comes_before_torch(run_python, zero_gpu):
    assert run_python("-c", "import app", **zero_gpu).stdout.strip() == DECORATED


def test_several_samples_take_one_loan_of_a_zero_gpu(tiny_served, monkeypatch):
    loans = []
    monkeypatch.setattr(app, "ZERO_GPU_MODEL", [tiny_served.model, tiny_served.tokenizer])

    def lend(asks):
        loans.append(len(asks))
        yield from app.news_on_zero_gpu(asks)

    values = (20, *[None] * 5, 1)
    *_, last = writing.write(tiny_served, lend, "ROMEO:", values, [None] * 3)
    assert loans == [3]
    alone = [written(tiny_served, "ROMEO:", *values[:-1], seed)[-1].samples[0] for seed in (1, 2, 3)]
    assert list(last.samples) == alone


def test_a_large_model_on_zero_gpu_writes_the_same_text(tiny_served, monkeypatch):
    monkeypatch.setattr(app, "ZERO_GPU_MODEL", [tiny_served.model, tiny_served.tokenizer])
    values = (50, 50, 1.0, 1.0, 0.0, 1.0, 3)
    *_, borrowed = writing.write(tiny_served, app.news_on_zero_gpu, "ROMEO:", values)
    assert replace(borrowed, seconds=0) == replace(written(tiny_served, "ROMEO:", *values)[-1], seconds=0)


@pytest.mark.parametrize("port", ["abc", "0", "65536", "-1", "7860.0", "9" * 5000])
def test_a_bad_port_ends_with_code_2_and_one_sentence(port, monkeypatch, capsys):
    monkeypatch.setenv("PORT", port)
    assert app.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("PORT=") and said.count("\n") == 1 and len(said) < 100


def test_a_taken_port_ends_with_code_1_and_one_sentence(running, run_python, checkpoint):
    done = run_python("app.py", MODEL_ID=str(checkpoint), PORT=str(urlsplit(running.url).port))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "is not free" in done.stderr


def test_without_any_checkpoint_the_app_ends_with_code_1_and_says_what_to_do(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpt2, "BUNDLED", tmp_path / "gone")
    monkeypatch.delenv("MODEL_ID", raising=False)
    assert app.main() == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "python -m train" in said


def test_all_but_the_engine_compute_with_one_thread_from_before_a_model_is_loaded(monkeypatch):
    loaded_with, engines_own = [], torch.get_num_threads()

    def load(*_):
        loaded_with.append(torch.get_num_threads())
        raise ValueError("Enough.")

    torch.set_num_threads(2)
    try:
        monkeypatch.setattr(app, "load_or_fall_back", load)
        assert app.main() == 1 and loaded_with == [1]
    finally:
        torch.set_num_threads(engines_own)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to answer")
def test_a_container_may_stop_it_in_the_middle_of_a_text(checkpoint, tmp_path):
    with serve(tmp_path, MODEL_ID=str(checkpoint)) as running:
        client = Client(running.url, verbose=False, analytics_enabled=False)
        job = client.submit("ROMEO:", max_new_tokens=2000, api_name="/generate")
        while not job.outputs():
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        assert "Traceback" not in running.log() and "terminate" not in running.log()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to answer")
def test_a_text_that_is_nearly_written_reaches_its_reader_before_a_container_ends(checkpoint, tmp_path):
    with serve(tmp_path, MODEL_ID=str(checkpoint)) as running:
        client = Client(running.url, verbose=False, analytics_enabled=False)
        whole = client.predict("ROMEO:", max_new_tokens=300, seed=1, api_name="/generate")
        job = client.submit("ROMEO:", max_new_tokens=300, seed=1, api_name="/generate")
        while not job.outputs():
            time.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 0
        assert job.outputs()[-1] == whole


@pytest.mark.parametrize("model_id", ["no-such/repo", "/no/such/folder", "a/" * 5000, "../<b>x</b>", "broken"])
def test_a_checkpoint_that_can_not_be_had_gives_way_to_the_bundled_one(
    model_id, tiny_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setattr(gpt2, "BUNDLED", tiny_checkpoint)
    if model_id == "broken":
        shutil.copytree(tiny_checkpoint, tmp_path / "broken")
        (tmp_path / "broken" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
        model_id = str(tmp_path / "broken")
    served = loading.load_or_fall_back(model_id, "v1")
    assert served.name == "tiny" and "could not be loaded" in served.notice
    assert "/no/such" not in served.notice and str(tmp_path) not in served.notice and len(served.notice) < 600
    [notice] = [block.value for block in app.build(served).blocks.values() if block.elem_id == "notice"]
    assert notice.startswith('<p role="alert">') and "<b>" not in notice


def test_the_bundled_checkpoint_answers_where_the_hub_has_nothing(tmp_path):
    if not (gpt2.BUNDLED / "model.safetensors").exists():
        pytest.skip("this checkout has no bundled checkpoint")
    with serve(tmp_path, MODEL_ID="no-such/repo") as running:
        [info] = running.call("model_info", [])["complete"]
        assert info["name"] == gpt2.BUNDLED.name and info["fallback"] and "no-such/repo" in info["notice"]
        assert running.call("generate", GOOD)["complete"]


@pytest.mark.slow
def test_a_silent_hub_keeps_the_first_visitor_waiting_for_a_few_seconds_only(hub, tmp_path):
    """From `python app.py` to the first answer, with nothing in the Hub's cache: 12 s where a start takes 6."""

    def first_answer(**env: str) -> float:
        started = time.monotonic()
        with serve(tmp_path, MODEL_ID="ada/x", MODEL_REVISION="v1", **hub.env(None, tmp_path / "home") | env) as page:
            client = Client(page.url, verbose=False, analytics_enabled=False)
            assert client.predict("ROMEO:", max_new_tokens=5, api_name="/generate")
            seconds, info = time.monotonic() - started, client.predict(api_name="/model_info")
        assert info["name"] == gpt2.BUNDLED.name
        assert ("HF_HUB_OFFLINE is set" if env else "the Hub said nothing for 3 seconds") in info["notice"]
        return seconds

    hub.fail("*", "", kind="silent", times=math.inf)
    assert first_answer() < 6 + max(6, 1.3 * first_answer(HF_HUB_OFFLINE="1"))


def test_the_page_shows_the_commit_of_a_model_from_the_hub(hub, tiny_checkpoint, tmp_path):
    repo = hub.repo("ada/x")
    repo.commit({path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()})
    with serve(tmp_path, **hub.env(None, tmp_path / "home"), MODEL_ID="ada/x") as running:
        assert f"Revision {repo.head[:8]}." in urllib.request.urlopen(running.url + "/config").read().decode()
        assert not running.call("model_info", [])["complete"][0]["fallback"]


def test_it_starts_as_a_space_does_and_only_there_answers_other_machines(running, checkpoint, tmp_path, zero_gpu):
    def answers_other_machines(at) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.2", urlsplit(at.url).port)) == 0

    as_space = {"SYSTEM": "spaces", "SPACE_ID": "me/space", "GRADIO_SSR_MODE": "True", **zero_gpu}
    with serve(tmp_path, MODEL_ID=str(checkpoint), GRADIO_CACHE_EXAMPLES="true", **as_space) as space:
        assert space.call("generate", GOOD)["complete"]
        assert space.call("model_info", [])["complete"][0]["device"] == "cpu"
        assert DECORATED in space.log().splitlines()
        if sys.platform == "linux":  # elsewhere 127.0.0.2 is nobody
            assert answers_other_machines(space) and not answers_other_machines(running)


@pytest.mark.parametrize(
    "route", ["/pwa_icon/6000", "/monitoring/summary", "/gradio_api/runs", "/gradio_api/file=/etc/passwd"]
)
def test_gradios_side_doors_are_shut(running, route):
    with pytest.raises(urllib.error.HTTPError) as answer:
        urllib.request.urlopen(running.url + route, timeout=60)
    assert answer.value.code in (403, 404)


def test_nobody_gets_past_the_queue(running):
    with pytest.raises(urllib.error.HTTPError) as answer:
        running.post("/gradio_api/run/generate", json.dumps({"data": GOOD}).encode())
    assert answer.value.code == 404


def test_a_run_is_named_after_its_folder(tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "my-run" / "best")
    assert loading.load(tmp_path / "my-run").name == loading.load(tmp_path / "my-run" / "best").name == "my-run"


# What is said to the visitor


@pytest.mark.parametrize(
    "training",
    [
        "[]",
        "no JSON",
        "[" * 100_000,
        '{"corpus": 5, "data": {"a": 1}, "figures": "x", "steps": true}',
        '{"corpus": {"name": ["a"]}, "data": [1, null, {"name": 7}], "figures": {"held_out_bits_per_byte": NaN}}',
        '{"steps": 1' + "0" * 4000 + ', "seconds": 1e999, "figures": {"held_out_bits_per_byte": "2"}}',
        '{"corpus": {"name": "\\ud800<script>alert(1)</script>' + "x" * 10_000 + '"}, "hardware": "\\u0000"}',
    ],
)
def test_nothing_in_training_json_breaks_the_page_or_runs_in_it(training, tiny_checkpoint, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (tmp_path / "copy" / "training.json").write_text(training, encoding="utf-8")
    served = loading.load(tmp_path / "copy")
    said = app.introduction(served)
    assert "<script" not in said and len(said.encode("utf-8")) < 400
    assert len(json.dumps(served.training, allow_nan=False, ensure_ascii=False).encode("utf-8")) < 2000
    app.build(served)


def test_the_introduction_says_what_the_model_was_trained_on(checkpoint):
    said = app.introduction(replace(loading.load(checkpoint), sha="0123456789abcdef"))
    assert said == (
        "<b>endless</b>, a GPT-2 with 0.2 million parameters, trained on &lt;b&gt;A play&lt;/b&gt;: "
        "2.50 bits per byte on held-out text. Revision 01234567."
    )


@pytest.mark.parametrize(
    "reason, words",
    [("length", "maximum"), ("end-of-text", "ended"), ("deadline", "60 seconds"), ("cancelled", "stopped by you")],
)
def test_the_status_line_says_how_much_how_fast_why_it_ended_and_the_seed(reason, words):
    params, sample = gpt2.SamplingParams(seed=1234), writing.Sample(1234, ids=(0,) * 1200, stop_reason=reason)
    said = writing.report(writing.Progress("A", params, (sample,), seconds=4.0))
    assert said.startswith("1,200 tokens in 4.0 s, 300 per second") and words in said and "Seed 1234" in said


def test_after_continue_the_status_line_says_what_the_seed_repeats():
    params, first = gpt2.SamplingParams(seed=1), writing.Sample(3, " two", (0,), "length")
    sample = replace(first, text=" two three", earlier=first)
    said = writing.report(writing.Progress("one", params, (sample,)))
    assert "repeat what was added after the first 7 characters" in said and "this text" not in said
    assert said.startswith("1 token in")


def test_a_prompt_that_is_longer_than_the_window_is_said_to_have_lost_its_beginning(tiny_served):
    last = written(tiny_served, "z" * 50, 3, *[None] * 6)[-1]
    assert last.dropped == 50 - tiny_served.model.config.block_size
    assert f"first {last.dropped} tokens were not read" in writing.report(last)


class Unhurried:
    """A model that takes a millisecond longer for every pass: on no machine is it done before anybody looks."""

    def __init__(self, model: gpt2.GPT):
        self.model, self.config, self.new_cache = model, model.config, model.new_cache

    def __call__(self, idx, cache):
        time.sleep(0.001)
        return self.model(idx, cache=cache)


def test_samples_that_wait_do_not_keep_the_others_waiting_and_tell_their_place(tiny_served, monkeypatch):
    monkeypatch.setattr("gpt2.engine.HEARTBEAT", 30.0)  # is what somebody who is kept waiting gets for news
    with gpt2.Engine(Unhurried(tiny_served.model), tiny_served.tokenizer, max_batch=2) as crowded:
        source = partial(writing.news_from, crowded)
        values = (100, *[None] * 5, 1)
        progress = list(writing.write(tiny_served, source, "ROMEO:", values, [None] * 3))
    assert progress[-1].seconds < 30 and progress[-1].place == 0
    assert 1 in [now.place for now in progress if now.tokens and not now.samples[2].ids]
    alone = written(tiny_served, "ROMEO:", *values[:-1], 3)[-1].samples[0]
    assert replace(progress[-1].samples[2], earlier=None) == alone


@pytest.mark.parametrize("tokens, said", [(0, "you are number 3 in the queue"), (1, "next sample is number 3")])
def test_the_status_line_tells_the_place_in_the_queue(tokens, said):
    sample = writing.Sample(1, ids=(0,) * tokens)
    assert said in writing.report(writing.Progress("A", gpt2.SamplingParams(seed=1), (sample,), place=3))


def test_a_text_ends_at_the_deadline(checkpoint, monkeypatch):
    monkeypatch.setattr(writing, "DEADLINE", 0.2)
    last = written(loading.load(checkpoint), "ROMEO:", 2000, *[None] * 6)[-1]
    assert last.samples[0].stop_reason == "deadline" and 0 < last.tokens < 2000 and last.seconds < 5


def test_a_fresh_seed_is_told_and_repeats_the_text(tiny_served):
    first = written(tiny_served, "ROMEO:")[-1]
    again = written(tiny_served, "ROMEO:", *[None] * 6, first.params.seed)[-1]
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert first.params.seed != written(tiny_served, "ROMEO:")[-1].params.seed


def test_a_checkpoint_whose_output_is_not_finite_gets_a_sentence(tiny_served, make_model):
    model = make_model(tiny_served.model.config)
    model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(gr.Error, match="damaged"):
        written(replace(tiny_served, model=model), "ROMEO:")


def test_closing_the_progress_closes_the_generation(tiny_served):
    closed = []

    def source(asks):
        try:
            yield from writing.news(tiny_served.model, tiny_served.tokenizer, asks)
        finally:
            closed.append(True)

    progress = writing.write(tiny_served, source, "ROMEO:", (None,) * 7)
    next(progress), next(progress)
    progress.close()
    assert closed and inspect.getgeneratorstate(progress) == inspect.GEN_CLOSED
