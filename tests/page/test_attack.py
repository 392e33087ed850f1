"""The page attacked: over its API, through Gradio's own routes, by what a checkpoint says of itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpt2
from page.doors import MAX_BODY
from tests.hostile import ODD, values
from tests.page.test_app import GOOD
from tests.page.visit import INJECTIONS, begin, room, serve, status, wait

DEFAULTS = {"generate": GOOD, "next_tokens": ["a", 10, *GOOD[2:7]], "score": ["a", 0], "model_info": []}
SAFE = settings(max_examples=60, suppress_health_check=list(HealthCheck))


def ask(running, route: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and the first 20 kB of the answer."""
    headers = {"Content-Type": "application/json"} | headers
    try:
        with urllib.request.urlopen(urllib.request.Request(running.url + route, body, headers), timeout=60) as answer:
            return answer.status, answer.read1(20_000).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(20_000).decode("utf-8", "replace")


def unharmed(running) -> bool:
    """It answers a normal request, and never told anybody where it stumbled."""
    return "complete" in running.call("generate", GOOD) and "Traceback" not in running.log()


# The API


@pytest.mark.parametrize("endpoint", DEFAULTS)
def test_whatever_an_endpoint_is_asked_it_answers_or_says_what_is_wrong(running, endpoint):
    good = DEFAULTS[endpoint]

    @SAFE
    @given(st.data())
    def tried(data):
        asked = list(good)
        for _ in range(data.draw(st.integers(1, 3)) if asked else 0):
            place = data.draw(st.integers(0, len(asked) - 1))
            asked[place] = data.draw(st.sampled_from(ODD) | values)
        answer = running.call(endpoint, asked)
        assert "complete" in answer or answer["error"]["error"].endswith("."), answer

    tried()
    assert unharmed(running)


@pytest.mark.parametrize("endpoint", DEFAULTS)
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"\xff\xfe", b"[]", b"null", b"1e999", b"{}", b'{"data": null}', b'{"data": {"a": 1}}'),
        *(b"[" * 500_000, b'{"data": ' + b"[" * 100_000, b'{"data": [' + b"1" * 5000 + b"]}", b"\x00" * 1000),
    ],
)
def test_a_body_that_is_no_request_is_refused(running, endpoint, body):
    code, said = ask(running, f"/gradio_api/call/{endpoint}", body)
    assert code in (400, 422) and "Traceback" not in said
    assert unharmed(running)


@pytest.mark.parametrize(
    "route, body",
    [
        ("call/no-such-endpoint", {"data": []}),
        ("call/v2/no-such-endpoint", {}),
        ("call/v2/generate", {}),
        ("call/v2/generate", {"promt": "A"}),
        ("queue/join", {"data": [], "fn_index": 10**6, "session_hash": "x"}),
        ("queue/join", {"data": [], "fn_index": -1, "session_hash": "x"}),
        ("queue/join", {"data": [], "fn_index": "x", "session_hash": "x"}),
        ("cancel", {}),
    ],
)
def test_what_is_not_there_can_not_be_called(running, route, body):
    code, said = ask(running, f"/gradio_api/{route}", json.dumps(body).encode())
    assert code in (404, 422) and "Traceback" not in said
    assert unharmed(running)


def test_a_body_larger_than_anything_that_is_meant_is_refused(running):
    pieces = (b" " * 2**16 for _ in range(MAX_BODY // 2**16 + 2))  # of which nobody tells the sum beforehand
    for body, code in ((b" " * (MAX_BODY + 1), 413), (pieces, 400)):
        server = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=60)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it was not even waited for
            server.request("POST", "/gradio_api/call/generate", body, {"Content-Type": "application/json"})
            assert server.getresponse().status == code
        server.close()
    assert unharmed(running)


def test_a_crowd_of_nonsense_leaves_the_queue_open(running):
    def shout(i: int) -> None:
        for endpoint in ("generate", "next_tokens", "score"):
            running.call(endpoint, [ODD[(i + j) % len(ODD)] for j in range(len(DEFAULTS[endpoint]))])

    crowd = [threading.Thread(target=shout, args=(i,)) for i in range(len(ODD))]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(120)
    assert unharmed(running)
    assert json.loads(ask(running, "/gradio_api/queue/status")[1])["queue_size"] == 0


# Gradio's own routes


@pytest.mark.parametrize(
    "route",
    [
        *("file=/etc/passwd", "file=../../etc/passwd", "file=http://127.0.0.1:1/", "file=https://192.0.2.1/"),
        *("%66ile=https://192.0.2.1/", "proxy=https://192.0.2.1/", "dev/reload", "vibe-code", "profiling/traces"),
        *("file/etc/passwd", "runs", "run-history/records", "custom_component/a/b/c/d", "stream/a/1/1/playlist.m3u8"),
        "deep_link?session_hash=x",
        *("../pwa_icon/6000", "../pwa_icon", "../monitoring", "../monitoring/summary", "../static/%2e%2e/app.py"),
    ],
)  # fmt: skip
def test_a_side_door_is_shut(running, route):
    code, said = ask(running, "/gradio_api/" + route if not route.startswith("..") else route[2:])
    assert code in (400, 403, 404, 422) and "root:" not in said and "Traceback" not in said
    assert unharmed(running)


@pytest.mark.parametrize("route", ["upload", "component_server", "process_recording", "vibe-edit", "vibe-code"])
def test_nothing_can_be_left_on_the_server(running, route):
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="../../a"\r\n\r\nb\r\n--x--\r\n'
    kind = "multipart/form-data; boundary=x" if route == "upload" else "application/json"
    assert (
        ask(running, f"/gradio_api/{route}", form if route == "upload" else b"{}", **{"Content-Type": kind})[0] == 404
    )


@pytest.fixture(scope="module")
def forged(tmp_path_factory, checkpoint):
    """A page of its own: Gradio notes in the log what it did not understand, with a traceback nobody else sees."""
    with serve(tmp_path_factory.mktemp("forged"), MODEL_ID=str(checkpoint)) as it:
        yield it


@pytest.mark.parametrize("value", [None, {"a": 1}, INJECTIONS, 10**30, [[]], "too few"], ids=repr)
def test_the_pages_own_events_called_by_hand_do_no_harm(forged, value):
    """By number, past and through the queue, with as many values as they take, or none."""
    with urllib.request.urlopen(forged.url + "/config", timeout=60) as answer:
        events = json.load(answer)["dependencies"]
    for event in events:
        data = [] if value == "too few" else [value] * len(event["inputs"])
        body = {"data": data, "fn_index": event["id"], "session_hash": "forged", "event_data": value}
        for route in (f"run/{event['api_name']}", "queue/join"):
            code, said = ask(forged, f"/gradio_api/{route}", json.dumps(body).encode())
            assert code in (200, 404, 422, 500, 503) and "Traceback" not in said and "site-packages" not in said
    assert len(events) > 20 and "complete" in forged.call("generate", GOOD)


# What a checkpoint says of itself


@pytest.mark.browser
def test_a_hostile_vocabulary_and_card_are_shown_as_text(open_page, make_model, tmp_path):
    """A token that is a tag, written again and again, under the microscope too; and a prompt that the card offers."""
    evil = "<img src=x onerror=window.hacked=6>"
    merges = [(evil[:i].encode(), evil[i : i + 1].encode()) for i in range(1, len(evil))]
    tokenizer = gpt2.Tokenizer(merges)
    model = make_model(gpt2.GPTConfig(block_size=64, vocab_size=tokenizer.vocab_size, n_layer=1, n_head=2, n_embd=32))
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(3.0)
        model.transformer.wte.weight[model.config.eos_token_id] = -3.0
        model.transformer.wte.weight[tokenizer.endoftext - 1] = 3.0
    gpt2.save(tmp_path / "evil", model, tokenizer, corpus={"name": INJECTIONS})
    card = f"---\nwidget:\n- text: {json.dumps(INJECTIONS)}\n---\n"
    (tmp_path / "evil" / "README.md").write_text(card, encoding="utf-8")
    with serve(tmp_path, MODEL_ID=str(tmp_path / "evil")) as running:
        page = open_page(url=running.url)
        assert "onerror" in page.get_by_text("${window.hacked=2}").first.text_content()
        begin(page, max_tokens=12)
        page.keyboard.press("Control+Enter")
        wait(page, lambda: status(page).startswith("12 tokens"))
        assert page.locator("#sheet span").first.text_content() == evil * 12
        room(page, "Look inside")
        wait(page, lambda: page.locator("#tokens button").count() == 12)
        page.locator("#tokens button").nth(1).click()
        page.locator("#step table").wait_for()
        assert evil in page.locator("#step").text_content()
        assert page.locator("img[src=x]").count() == 0


@pytest.mark.browser
def test_names_of_checkpoints_that_can_not_be_had_are_shown_as_text(open_page, tmp_path):
    """In the notice, in the list to compare with, and where one of it can not be loaded."""
    evil = "<img/src=x/onerror=window.hacked=7>${window.hacked=8}{{7*7}}"  # the owner divides names by spaces
    with serve(tmp_path, MODEL_ID=INJECTIONS, COMPARE_WITH=evil, HF_HUB_OFFLINE="1") as running:
        page = open_page(url=running.url)
        assert INJECTIONS[:60] in page.locator("#notice").text_content()
        room(page, "Compare")
        assert page.locator("#compare_with input").input_value() == evil
        page.locator("#compare_with input").click()
        page.get_by_role("option", name=evil).click()
        page.get_by_role("button", name="Write both").click()
        refused = page.get_by_text("That checkpoint can not be loaded").first
        refused.wait_for()
        assert evil in refused.text_content()
        page.wait_for_timeout(300)  # an image that is none takes a moment to say so
        assert page.locator("img[src=x]").count() == 0


# Secrets


@pytest.mark.parametrize("works", [True, False])
def test_the_token_of_the_hub_is_nowhere_to_be_read(hub, tiny_checkpoint, tmp_path, works):
    secret = "hf_w0nderfulSecret"
    hub.add_token(secret, "ada", "read")
    repo = hub.repo("ada/x", private=True)
    repo.commit({path.name: path.read_bytes() for path in tiny_checkpoint.iterdir()})
    with serve(tmp_path, **hub.env(secret, tmp_path / "home"), MODEL_ID="ada/x" if works else "ada/gone") as running:
        [info] = running.call("model_info", [])["complete"]
        assert info["fallback"] is not works
        said = [json.dumps(info), json.dumps(running.call("generate", ["a", "b", *GOOD[2:]]))]
        for route in (
            "/",
            "/config",
            "/gradio_api/info",
            "/gradio_api/startup-events",
            "/no-such",
            "/gradio_api/token",
        ):
            try:
                with urllib.request.urlopen(running.url + route, timeout=60) as answer:
                    said.append(answer.read().decode("utf-8") + str(answer.headers))
            except urllib.error.HTTPError as error:
                said.append(error.read().decode("utf-8") + str(error.headers))
        said += [ask(running, "/gradio_api/call/v2/generate", b"{}")[1], running.log()]
    assert not [text for text in said if secret in text]
