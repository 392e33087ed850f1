"""Run a GPT-2 checkpoint: load it, generate from it, serve it to many, look inside."""

from gpt2.cache import KVCache
from gpt2.checkpoint import BUNDLED, CheckpointError, find, load, save
from gpt2.config import GPTConfig
from gpt2.engine import Engine, EngineError, Refused, Request
from gpt2.explain import next_tokens, score
from gpt2.model import GPT
from gpt2.overlap import Overlap
from gpt2.sampler import Outcome, SamplingParams, generate
from gpt2.tokenizer import TextStream, Tokenizer

__all__ = ["BUNDLED", "GPT", "CheckpointError", "Engine", "EngineError", "GPTConfig", "KVCache", "Outcome", "Overlap"]
__all__ += ["Refused", "Request", "SamplingParams", "TextStream", "Tokenizer", "find", "generate", "load"]
__all__ += ["next_tokens", "save", "score"]
