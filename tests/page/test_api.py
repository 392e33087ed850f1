"""What the page tells programs beside its texts: through gradio_client, and as MCP tools."""

from __future__ import annotations

import ast
import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from gradio_client.exceptions import AppError

import gpt2


def test_next_tokens_are_the_librarys(client, checkpoint):
    found = client.predict("ROMEO:", 5, 20, 0.8, api_name="/next_tokens")
    model, tokenizer = gpt2.load(checkpoint, device="cpu")
    expected = gpt2.next_tokens(model, tokenizer, "ROMEO:", 5, gpt2.SamplingParams(top_k=20, temperature=0.8))
    assert [c["id"] for c in found["candidates"]] == [c.id for c in expected.candidates]
    assert [step["name"] for step in found["steps"]] == ["raw", "temperature", "top_k"]
    assert found["steps"][-1]["survivors"] == 20 and found["entropy"] == pytest.approx(expected.entropy, abs=1e-4)


def test_a_score_is_the_librarys(client, checkpoint):
    found = client.predict("To be, or not to be", 3, api_name="/score")
    model, tokenizer = gpt2.load(checkpoint, device="cpu")
    expected = gpt2.score(model, tokenizer, "To be, or not to be")
    assert found["bits_per_byte"] == pytest.approx(expected.bits_per_byte, abs=1e-4)
    assert [token["rank"] for token in found["tokens"]] == [token.rank for token in expected.tokens]
    assert all(len(token["alternatives"]) == 3 for token in found["tokens"])


def test_an_empty_text_can_be_asked_about(client):
    assert len(client.predict("", api_name="/next_tokens")["candidates"]) == 10
    assert client.predict("", api_name="/score")["bits_per_byte"] is None


@pytest.mark.parametrize(
    "endpoint, values, sentence",
    [
        ("score", [5], "text must be text."),
        ("score", ["a" * 20_001], "text has 20,001 characters"),
        ("score", ["\N{GRINNING FACE}" * 1500], "text has 6,000 tokens; at most 4,000"),
        ("score", ["a", 51], "alternatives must be a whole number from 0 to 50."),
        ("next_tokens", ["a", 0], "k must be a whole number from 1 to 200."),
        ("next_tokens", ["a", 5, 50, "hot"], "temperature must be a number from 0 to 2."),
    ],
)
def test_a_wrong_question_gets_one_sentence(running, endpoint, values, sentence):
    defaults = {"score": ["a", 0], "next_tokens": ["a", 10, 50, 1.0, 1.0, 0.0, 1.0]}[endpoint]
    answer = running.call(endpoint, [*values, *defaults[len(values) :]])
    assert answer["error"]["error"].startswith(sentence) and "Traceback" not in running.log()


def test_the_error_of_a_score_reaches_a_client(client):
    with pytest.raises(AppError, match="at most 20,000"):
        client.predict("a" * 20_001, api_name="/score")


def test_the_same_four_are_mcp_tools(running):
    """Their names, what they say of themselves, and a call of each, through the official client."""
    pytest.importorskip("mcp", reason="mcp is not installed")
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def visit():
        async with (
            streamable_http_client(running.url + "/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            calls = {
                "generate": {"prompt": "ROMEO:", "max_new_tokens": 5, "seed": 1},
                "next_tokens": {"text": "ROMEO:", "k": 3},
                "score": {"text": "To be"},
                "model_info": {},
            }
            answers = {name: (await session.call_tool(name, arguments)) for name, arguments in calls.items()}
            return tools, {name: answer.content[0].text for name, answer in answers.items()}

    with ThreadPoolExecutor() as elsewhere:  # Playwright has a loop of its own running in this thread
        tools, answers = elsewhere.submit(asyncio.run, visit()).result()
    assert set(tools) == {"generate", "next_tokens", "score", "model_info"}
    assert all(len(tool.description) > 40 for tool in tools.values())
    assert set(tools["generate"].inputSchema["properties"]) >= {"prompt", "max_new_tokens", "top_k", "seed"}
    assert answers["generate"] and "endless" in answers["model_info"]
    assert len(ast.literal_eval(answers["next_tokens"])["candidates"]) == 3
    assert ast.literal_eval(answers["score"])["bytes"] == 5
