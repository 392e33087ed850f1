"""The page and its API, as visitors and programs meet them: the real app in a process of its own, offline."""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
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

ROOT = Path(app.__file__).resolve().parent
INJECTIONS = "<img src=x onerror=window.hacked=1> ${window.hacked=2} {{7*7}} </b><script>window.hacked=3</script>"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A tiny model gains nothing from a second thread, and waits for it for ages where something else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, make_model, tiny_tokenizer) -> Path:
    """A model that never ends its text by itself, and deep enough to take its time over 2,000 tokens."""
    vocab_size = tiny_tokenizer.vocab_size
    model = make_model(gpt2.GPTConfig(block_size=64, vocab_size=vocab_size, n_layer=12, n_head=2, n_embd=32))
    with torch.no_grad():  # <|endoftext|> looks away from where every state points
        model.transformer.ln_f.bias.fill_(3.0)
        model.transformer.wte.weight[model.config.eos_token_id] = -3.0
    directory = tmp_path_factory.mktemp("app") / "endless"
    training = {"corpus": {"name": "<b>A play</b>"}, "figures": {"held_out_bits_per_byte": 2.5}}
    gpt2.save(directory, model, tiny_tokenizer, **training)
    return directory


@dataclass(frozen=True)
class Running:
    url: str
    process: subprocess.Popen
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def post(self, route: str, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + route, body, headers), timeout=60) as answer:
            return answer.read()

    def call(self, endpoint: str, data: list) -> dict:
        """The last event of an API call over plain HTTP: {"complete": [...]} or {"error": {...}}."""
        event = json.loads(self.post(f"/gradio_api/call/{endpoint}", json.dumps({"data": data}).encode()))["event_id"]
        with urllib.request.urlopen(f"{self.url}/gradio_api/call/{endpoint}/{event}", timeout=60) as stream:
            name, _, rest = stream.read().decode().strip().split("\n\n")[-1].partition("\n")
        return {name.removeprefix("event: "): json.loads(rest.removeprefix("data: "))}


@contextmanager
def serve(folder: Path, **env: str) -> Iterator[Running]:
    """The app on a free port, from when it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log_file = folder / f"{port}.log"
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")],
            cwd=folder,
            env={**os.environ, "PORT": str(port), "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1", **env},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    running = Running(f"http://127.0.0.1:{port}", process, log_file)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(running.url + "/config", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, running.log()
                time.sleep(0.1)
        yield running
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def running(checkpoint, tmp_path_factory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("running"), MODEL_ID=str(checkpoint)) as it:
        yield it


@pytest.fixture(scope="module")
def client(running) -> Client:
    return Client(running.url, verbose=False, analytics_enabled=False)


@pytest.fixture
def tiny_served(tiny_checkpoint) -> loading.Served:
    return loading.load(tiny_checkpoint)


def written(served: loading.Served, prompt, *values) -> list[writing.Progress]:
    def source(prompt, params):
        return writing.pieces(served.model, served.tokenizer, prompt, params)

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
    assert set(endpoints) == {"/generate", "/model_info"}
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


@pytest.mark.parametrize("endpoint", ["generate", "respond"])
@pytest.mark.parametrize("position, value", [(i, value) for i, values in BAD.items() for value in values])
def test_a_wrong_value_gets_one_sentence_and_the_app_goes_on(running, endpoint, position, value):
    error = running.call(endpoint, with_value(position, value))["error"]["error"]
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
    assert "complete" in running.call(endpoint, with_value(position, value))
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
    jobs = [client.submit("ROMEO:", max_new_tokens=2000, api_name="/generate") for _ in range(3)]
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


def test_zero_gpu_finds_one_decorated_function_and_comes_before_torch(run_python, tmp_path):
    (tmp_path / "spaces.py").write_text(
        "import sys\n"
        "found = ['torch came first'] if 'torch' in sys.modules else []\n"
        "def GPU(duration):\n"
        "    return lambda function: found.append((function.__name__, duration)) or function\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = run_python("-c", "import app, spaces; print(spaces.found)", PYTHONPATH=path)
    assert done.stdout.strip() == str([("pieces_on_zero_gpu", writing.DEADLINE + 10)])


def test_a_large_model_on_zero_gpu_writes_the_same_text(tiny_served, monkeypatch):
    monkeypatch.setattr(app, "ZERO_GPU_MODEL", [tiny_served.model, tiny_served.tokenizer])
    values = (50, 50, 1.0, 1.0, 0.0, 1.0, 3)
    *_, borrowed = writing.write(tiny_served, app.pieces_on_zero_gpu, "ROMEO:", values)
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
        assert ("HF_HUB_OFFLINE is set" if env else "the Hub said nothing for 4 seconds") in info["notice"]
        return seconds

    hub.fail("*", "", kind="silent", times=math.inf)
    assert first_answer() < 6 + max(6, 1.3 * first_answer(HF_HUB_OFFLINE="1"))


def test_the_page_shows_the_commit_of_a_model_from_the_hub(hub, tiny_checkpoint, tmp_path):
    repo = hub.repo("ada/x")
    repo.commit({path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()})
    with serve(tmp_path, **hub.env(None, tmp_path / "home"), MODEL_ID="ada/x") as running:
        assert f"Revision {repo.head[:8]}." in urllib.request.urlopen(running.url + "/config").read().decode()
        assert not running.call("model_info", [])["complete"][0]["fallback"]


def test_it_starts_as_a_space_does_and_only_there_answers_other_machines(running, checkpoint, tmp_path):
    def answers_other_machines(at: Running) -> bool:
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.2", urlsplit(at.url).port)) == 0

    as_space = {"SYSTEM": "spaces", "SPACE_ID": "me/space", "SPACES_ZERO_GPU": "true", "GRADIO_SSR_MODE": "True"}
    with serve(tmp_path, MODEL_ID=str(checkpoint), GRADIO_CACHE_EXAMPLES="true", **as_space) as space:
        assert space.call("generate", GOOD)["complete"]
        assert space.call("model_info", [])["complete"][0]["device"] == "cpu"
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


def test_the_prompt_and_the_text_are_shown_as_text(tiny_served):
    shown = app.manuscript("<i>&", "</b><script>")
    assert shown == "<b>&lt;i&gt;&amp;</b>&lt;/b&gt;&lt;script&gt;"


@pytest.mark.parametrize(
    "reason, words",
    [("length", "maximum"), ("end-of-text", "ended"), ("deadline", "60 seconds"), ("cancelled", "stopped by you")],
)
def test_the_status_line_says_how_much_how_fast_why_it_ended_and_the_seed(reason, words):
    said = writing.report(writing.Progress("A", seed=1234, dropped=0, tokens=1200, seconds=4.0, stop_reason=reason))
    assert said.startswith("1,200 tokens in 4.0 s, 300 per second") and words in said and "Seed 1234" in said


def test_a_prompt_that_is_longer_than_the_window_is_said_to_have_lost_its_beginning(tiny_served):
    last = written(tiny_served, "z" * 50, 3, *[None] * 6)[-1]
    assert last.dropped == 50 - tiny_served.model.config.block_size
    assert f"first {last.dropped} tokens were not read" in writing.report(last)


def test_a_text_ends_at_the_deadline(checkpoint, monkeypatch):
    monkeypatch.setattr(writing, "DEADLINE", 0.2)
    last = written(loading.load(checkpoint), "ROMEO:", 2000, *[None] * 6)[-1]
    assert last.stop_reason == "deadline" and 0 < last.tokens < 2000 and last.seconds < 5


def test_a_fresh_seed_is_told_and_repeats_the_text(tiny_served):
    first = written(tiny_served, "ROMEO:")[-1]
    again = written(tiny_served, "ROMEO:", *[None] * 6, first.seed)[-1]
    assert replace(again, seconds=0) == replace(first, seconds=0)
    assert first.seed != written(tiny_served, "ROMEO:")[-1].seed


def test_a_checkpoint_whose_output_is_not_finite_gets_a_sentence(tiny_served, make_model):
    model = make_model(tiny_served.model.config)
    model.transformer.ln_f.weight.fill_(float("nan"))
    with pytest.raises(gr.Error, match="damaged"):
        written(replace(tiny_served, model=model), "ROMEO:")


def test_closing_the_progress_closes_the_generation(tiny_served):
    closed = []

    def source(prompt, params):
        try:
            yield from writing.pieces(tiny_served.model, tiny_served.tokenizer, prompt, params)
        finally:
            closed.append(True)

    progress = writing.write(tiny_served, source, "ROMEO:", (None,) * 7)
    next(progress), next(progress)
    progress.close()
    assert closed and inspect.getgeneratorstate(progress) == inspect.GEN_CLOSED


# The page in a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium found; name one in the environment variable CHROMIUM")
    with playwright.sync_playwright() as p:
        flags = ["--no-sandbox", "--disable-background-networking"]
        browser = p.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, running):
    """open_page(width) opens the page; afterwards no script error, dialog or request to elsewhere may have been."""
    contexts, problems = [], []

    def open_one(width: int = 1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        page.on("dialog", lambda dialog: problems.append("dialog") or dialog.dismiss())
        page.on("request", lambda r: urlsplit(r.url).hostname == "127.0.0.1" or problems.append(f"asked {r.url}"))
        page.goto(running.url)
        page.get_by_role("button", name="Write").wait_for()
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert problems == []


def sheet(page) -> str:
    return page.locator("#sheet .sheet").text_content()


def status(page) -> str:
    return page.locator("#status p").text_content()


def begin(page, prompt: str = "ROMEO:", max_tokens: int = 2000) -> None:
    page.get_by_label("number input for Max tokens").fill(str(max_tokens))
    page.get_by_label("Prompt").fill(prompt)


def wait(page, condition) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"waited a minute in vain; status {status(page)!r}, text {sheet(page)[:200]!r}")


@pytest.mark.browser
def test_the_text_grows_and_stop_keeps_it(open_page):
    page = open_page()
    begin(page)
    page.get_by_role("button", name="Write").click()
    lengths = []
    for more in (10, 60, 110):
        wait(page, lambda more=more: len(sheet(page)) > more)
        lengths.append(len(sheet(page)))
    assert lengths == sorted(set(lengths))
    page.get_by_role("button", name="Stop").click()
    wait(page, lambda: "stopped by you" in status(page))
    kept = sheet(page)
    page.wait_for_timeout(700)
    assert sheet(page) == kept and kept.startswith("ROMEO:") and len(kept) >= lengths[-1]
    assert "stopped by you" in status(page) and "Seed" in status(page)
    assert page.locator("#sheet b").text_content() == "ROMEO:"


@pytest.mark.browser
@pytest.mark.parametrize("keys", ["Control+Enter", "Meta+Enter"])
def test_the_keyboard_starts_and_stops(open_page, keys):
    page = open_page()
    begin(page)
    page.keyboard.press(keys)
    wait(page, lambda: len(sheet(page)) > 20)
    page.keyboard.press("Escape")
    wait(page, lambda: "stopped by you" in status(page))


@pytest.mark.browser
def test_the_seed_in_the_status_line_repeats_the_text(open_page):
    page = open_page()
    begin(page, max_tokens=40)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: "Seed" in status(page))
    first, seed = sheet(page), status(page).split("Seed ")[1].split(":")[0]
    page.get_by_text("More", exact=True).click()
    page.get_by_label("Seed").fill(seed)
    begin(page, prompt="JULIET:", max_tokens=40)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: sheet(page).startswith("JULIET:") and "Seed" in status(page))
    begin(page, max_tokens=40)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: sheet(page).startswith("ROMEO:") and "Seed" in status(page))
    assert sheet(page) == first


@pytest.mark.browser
def test_an_empty_prompt_starts_a_text(open_page):
    page = open_page()
    begin(page, prompt="", max_tokens=30)
    assert "begins one itself" in page.get_by_label("Prompt").get_attribute("placeholder")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("30 tokens"))
    assert sheet(page)


@pytest.mark.browser
def test_what_a_visitor_types_is_shown_and_never_run(open_page):
    page = open_page()
    begin(page, prompt=INJECTIONS, max_tokens=20)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("20 tokens"))
    assert page.locator("#sheet b").text_content() == INJECTIONS
    assert page.evaluate("window.hacked") is None


@pytest.mark.browser
def test_half_an_emoji_in_the_prompt_is_shown_as_a_replacement_character(open_page):
    page = open_page()
    begin(page, max_tokens=20)
    page.get_by_label("Prompt").evaluate("box => (box.value = 'a\\ud83d', box.dispatchEvent(new Event('input')))")
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("20 tokens"))
    assert page.locator("#sheet b").text_content() == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.browser
def test_a_prompt_that_is_too_long_is_refused_in_a_sentence_and_the_page_goes_on(open_page):
    page = open_page()
    begin(page, prompt="x" * 20_001, max_tokens=10)
    page.keyboard.press("Control+Enter")
    page.get_by_text("The prompt has 20,001 characters; at most 20,000 are accepted.").wait_for()
    wait(page, lambda: status(page) == "")
    begin(page, max_tokens=10)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("10 tokens"))


@pytest.mark.browser
def test_who_has_to_wait_is_told_so_and_may_leave_the_queue(open_page):
    first, second = open_page(), open_page()
    begin(first)
    first.keyboard.press("Control+Enter")
    wait(first, lambda: len(sheet(first)) > 10)
    begin(second)
    second.keyboard.press("Control+Enter")
    wait(second, lambda: status(second) == app.WAITING)
    second.wait_for_timeout(500)  # until the server has the request too; Gradio can not take back what is on its way
    second.keyboard.press("Escape")
    wait(second, lambda: status(second) == "")
    first.keyboard.press("Escape")
    wait(first, lambda: "stopped by you" in status(first))
    second.wait_for_timeout(500)
    assert sheet(second) == ""


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(open_page, width):
    page = open_page(width)
    page.get_by_text("More", exact=True).click()
    begin(page, prompt="endless" * 50, max_tokens=300)
    page.keyboard.press("Control+Enter")
    wait(page, lambda: status(page).startswith("300 tokens"))
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#sheet .html-container").evaluate("box => box.scrollWidth <= box.clientWidth")
