"""A text passed on: links restore their request, and the code that is shown runs and writes the same."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

import pytest

import gpt2
from page import share
from page.served import load
from tests.page.visit import INJECTIONS

PARAMS = gpt2.SamplingParams(max_new_tokens=12, top_k=20, temperature=0.8, top_p=0.9, min_p=0.01, seed=2**53 - 1)
PROMPT = f'It\'s "so" $HOME `id` \\n\n{INJECTIONS}'


def query_of(link: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(link).query, keep_blank_values=True))


def test_a_link_restores_prompt_settings_seed_and_samples(tiny_served):
    link = share.link(tiny_served, "http://x/", PROMPT, PARAMS, samples=3)
    prompt, values, note = share.restored(tiny_served, query_of(link))
    assert prompt == PROMPT and values == [*share.settings_of(PARAMS).values(), 3]
    assert "another" not in note


@pytest.mark.parametrize("change", [{"sha": "0123abc"}, {"name": "other/model"}])
def test_a_link_to_another_checkpoint_says_so(tiny_served, change):
    link = share.link(replace(tiny_served, **change), "http://x/", "A", PARAMS)
    assert "another checkpoint" in share.restored(tiny_served, query_of(link))[2]


def test_a_link_from_another_number_format_says_so(tiny_served):
    query = query_of(share.link(tiny_served, "http://x/", "A", PARAMS)) | {"dtype": "int8"}
    assert "another number format" in share.restored(tiny_served, query)[2]


def test_an_address_without_a_request_changes_nothing(tiny_served):
    assert share.restored(tiny_served, {"__theme": "dark", "utm": "x"}) is None


@pytest.mark.parametrize("value", ["", "NaN", "1e999", "[" * 100_000, '"5"', "true", "<b>", "-2", "9" * 5000])
def test_a_setting_that_can_not_be_is_left_at_its_usual_value(tiny_served, value):
    prompt, values, note = share.restored(tiny_served, {"prompt": "A", "top_k": value})
    assert (prompt, values[1]) == ("A", 50) and "Top-k is not what this page accepts" in note and "<" not in note


def test_a_prompt_that_is_too_long_for_a_link_or_the_page_is_told(tiny_served):
    assert share.link(tiny_served, "http://x/", "x" * 7000, PARAMS) == "This prompt is too long for a link."
    prompt, _, note = share.restored(tiny_served, {"prompt": "x" * 20_001})
    assert prompt == "" and "20,001 characters" in note


@pytest.mark.parametrize("prompt", ['It\'s "so" $HOME `id` \\n\n\N{GRINNING FACE}', "", PROMPT * 3])
def test_the_code_for_transformers_runs_also_where_the_window_is_too_small(checkpoint, tmp_path, run_python, prompt):
    shutil.copytree(checkpoint, tmp_path / "checkpoints" / "endless" / "best")
    code = share.code(load(checkpoint), "", "Python, transformers", prompt, replace(PARAMS, max_new_tokens=40))
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(prompt) or len(prompt) > 64


def test_a_checkpoint_of_the_hub_is_named_with_its_commit(tiny_served):
    served = replace(tiny_served, name="user/repo@v1", sha="0123abc")
    assert "from_pretrained('user/repo', revision='0123abc')" in share.code(served, "", share.KINDS[0], "A", PARAMS)


@pytest.fixture
def expected(client) -> str:
    return client.predict(PROMPT, *share.settings_of(PARAMS).values(), api_name="/generate")


def test_the_code_for_this_page_runs_and_writes_the_same(running, checkpoint, run_python, expected):
    code = share.code(load(checkpoint), running.url + "/", "Python, this page", PROMPT, PARAMS)
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"{expected}\n")


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("bash")), reason="needs curl and bash")
def test_the_commands_for_curl_run_and_write_the_same(running, checkpoint, expected):
    code = share.code(load(checkpoint), running.url + "/", "curl, this page", PROMPT, PARAMS)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, encoding="utf-8", timeout=60)
    last = done.stdout.strip().split("\n")[-1]
    assert json.loads(last.removeprefix("data: ")) == [expected], done.stderr
