"""Run a GPT-2 checkpoint: load it, generate from it, look inside."""

from gpt2.cache import KVCache
from gpt2.checkpoint import BUNDLED, CheckpointError, find, load, save
from gpt2.config import GPTConfig
from gpt2.explain import next_tokens, score
from gpt2.model import GPT
from gpt2.overlap import Overlap
from gpt2.sampler import Outcome, SamplingParams, generate
from gpt2.tokenizer import TextStream, Tokenizer

__all__ = [
    "BUNDLED",
    "GPT",
    "CheckpointError",
    "GPTConfig",
    "KVCache",
    "Outcome",
    "Overlap",
    "SamplingParams",
    "TextStream",
]
__all__ += ["Tokenizer", "find", "generate", "load", "next_tokens", "save", "score"]
