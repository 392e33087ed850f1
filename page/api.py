"""The page's API: for gradio_client, plain HTTP and, where the package mcp is installed, as MCP tools.

Names, types and docstrings are what Gradio shows to programs and people. Knows nothing of widgets.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import gradio as gr
import torch

import gpt2
from page.served import Served
from page.writing import Setting, Source, checked, number, refusal, words, write

MAX_SCORED = 4000  # tokens of one text; a page of print has about 600
ALTERNATIVES = Setting("alternatives", "Alternatives", 0, 50, 1, 0, "")
CANDIDATES = Setting("k", "k", 1, 200, 1, 10, "")


def offer(served: Served, source: Source, think: Callable[..., Any], slots: int) -> None:
    """Add the endpoints to the page being built.

    Args:
        source: news() of the served model, wherever it runs.
        think: think(function, *args) calls function(model, tokenizer, *args), wherever the model runs.
        slots: how many requests may be written at once.
    """

    def generate(
        prompt: str,
        max_new_tokens: int = 200,
        top_k: int = 50,
        temperature: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = -1,
    ) -> str:  # what each yield is: Gradio documents the API by these types
        """Continue a text with this GPT-2. Streams the continuation so far, without the prompt.

        Args:
            prompt: text to go on from, at most 20,000 characters; empty starts a new text.
            max_new_tokens: how many tokens to write at most, 1 to 2000.
            top_k: choose each token among the k likeliest only, 0 to 200; 0 leaves the choice open.
            temperature: below 1 plays safe, above 1 takes risks, 0 always takes the likeliest token; at most 2.
            top_p: choose among the likeliest tokens that share this much probability, 0.01 to 1; 1 keeps all.
            min_p: leave out tokens less likely than this fraction of the likeliest, 0 to 1; 0 keeps all.
            repetition_penalty: above 1 avoids tokens that the text already has, 1 to 2.
            seed: the same seed and settings give the same text; -1 draws a new seed.
        """
        values = (max_new_tokens, top_k, temperature, top_p, min_p, repetition_penalty, seed)
        with closing(write(served, source, prompt, values)) as progress:
            for now in progress:
                yield now.samples[0].text

    def next_tokens(
        text: str,
        k: int = 10,
        top_k: int = 50,
        temperature: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
    ) -> dict[str, Any]:
        """The likeliest next tokens after a text, before and after each sampling filter.

        Args:
            text: what stands before, at most 20,000 characters; empty means the start of a text.
            k: how many tokens to tell, 1 to 200.
            top_k: as for generate.
            temperature: as for generate.
            top_p: as for generate.
            min_p: as for generate.
            repetition_penalty: as for generate.

        Returns:
            candidates (id, text, probability, filtered), entropy in nats, steps (name, survivors, probabilities).
        """
        text, params = checked(words(text, "text"), (None, top_k, temperature, top_p, min_p, repetition_penalty, None))
        found = asdict(think(gpt2.next_tokens, text, number(CANDIDATES, k), params))
        return {name: found[name] for name in ("candidates", "entropy", "steps")}

    def score(text: str, alternatives: int = 0) -> dict[str, Any]:
        """How well this GPT-2 would have guessed a text: bits per byte, and every token's log-probability and rank.

        Args:
            text: the text, at most 20,000 characters and 4,000 tokens.
            alternatives: how many likelier tokens to tell for each, 0 to 50.

        Returns:
            bits_per_byte, perplexity, bytes, and tokens (id, text, bytes, logprob and entropy in nats, rank,
            alternatives).
        """
        text = words(text, "text")
        if (n := len(served.tokenizer.encode(text))) > MAX_SCORED:
            raise refusal(f"text has {n:,} tokens; at most {MAX_SCORED:,} are scored at once.")
        found = think(gpt2.score, text, alternatives=number(ALTERNATIVES, alternatives))
        figures = {name: getattr(found, name) for name in ("bits_per_byte", "perplexity", "bytes")}
        return figures | {"tokens": [asdict(token) for token in found.tokens]}

    def model_info() -> dict[str, Any]:
        """Describe the model behind this page: its sizes, where it comes from, what it was trained on."""
        config = served.model.config
        sizes = ("n_parameters", "vocab_size", "block_size", "n_layer", "n_head", "n_embd")
        return {
            "name": served.name,
            "sha": served.sha,
            "fallback": served.notice is not None,
            "notice": served.notice,
            **{name: getattr(config, name) for name in sizes},
            "device": served.model.transformer.wpe.weight.device.type,
            "dtype": served.dtype,
            "training": served.training,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "gradio": gr.__version__},
        }

    gr.api(generate, api_name="generate", concurrency_id="model", concurrency_limit=slots)
    for function in (next_tokens, score):
        gr.api(function, api_name=function.__name__, concurrency_id="look", concurrency_limit=1)
    gr.api(model_info, api_name="model_info")


def speaks_mcp() -> bool:
    """Whether the package mcp is installed, in a version that Gradio can use."""
    try:
        return int(importlib.metadata.version("mcp").split(".")[0]) < 2
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False
