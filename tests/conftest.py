"""What every test may ask for: a tiny vocabulary, a tiny model, its checkpoint, a Python of its own, a Hub of its
own, and no network.

The session fixtures are shared: a test that changes one works on a copy.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

import gpt2
from tests.hub_server import HubServer

torch.set_num_threads(1)  # models as small as these only lose time over two threads
ROOT = Path(__file__).resolve().parent.parent

# Read when huggingface_hub, gradio and tokenizers are first imported, so set before any test does; processes that
# tests start inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    GRADIO_ANALYTICS_ENABLED="False",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
)

# The same examples on every run and machine, no clock (a slow machine is no failure), and no folder in the repository.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir()) / "hypothesis"))
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")


def pytest_make_parametrize_id(val, argname):
    """A short name for a long value: pytest puts it into the environment, where no process starts with a longer one."""
    if isinstance(val, str | bytes) and len(val) > 100:
        return f"{argname}-{ascii(val[:20])}...{len(val)}"


@pytest.fixture(scope="session", autouse=True)
def no_gpu():
    """The device "auto" is the CPU, whose results are the same everywhere, here and in processes that tests start;
    tests/train/test_hardware.py takes the GPU back."""
    if torch.cuda.is_available():
        torch.cuda.init()  # before the variable would hide it from this process, too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Nothing but this machine can be reached: a test that tries fails at once, with or without a network."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def is_local(host) -> bool:
        host = host.decode() if isinstance(host, bytes) else host
        return host in (None, "", "localhost", "::1", "0.0.0.0") or host.startswith("127.")

    def local_connect(self, address):
        if self.family != getattr(socket, "AF_UNIX", None) and not is_local(address[0]):
            raise OSError(f"the tests run offline, and this one tried to reach {address[0]}")
        return connect(self, address)

    def local_look_up(host, *args, **kwargs):
        if not is_local(host):
            raise socket.gaierror(f"the tests run offline, and this one tried to look up {host}")
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", local_connect)
        patch.setattr(socket, "getaddrinfo", local_look_up)
        yield


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess]:
    """run_python("-m", "gpt2", ..., KEY="value") runs Python in the repository's root, offline, and returns what
    it said; cwd= runs it elsewhere."""

    def run(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.run(
            [sys.executable, *args],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8", **env},
            capture_output=True,
            encoding="utf-8",
            timeout=300,
        )

    return run


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hugging Face Hub of one's own: run_python("-c", code, **hub.env("hf_w", tmp_path)) talks to it."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def make_model() -> Callable[..., gpt2.GPT]:
    """make_model(config, seed=0) is a model with every weight random, biases and norms too, and scaled up so that
    its distributions are far from flat and depend on the whole context. Evaluation mode, no gradients."""

    @torch.no_grad()
    def make(config: gpt2.GPTConfig, seed: int = 0, pad_vocab_to: int = 1) -> gpt2.GPT:
        generator = torch.Generator().manual_seed(seed)
        model = gpt2.GPT(config, pad_vocab_to).init_weights(generator)
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(15)
            else:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer() -> gpt2.Tokenizer:
    """256 bytes, six merges and <|endoftext|>: 263 ids."""
    pairs = ["t h", "th e", "a n", "an d", "o u", "i n"]
    return gpt2.Tokenizer([tuple(part.encode() for part in pair.split()) for pair in pairs])


@pytest.fixture(scope="session")
def tiny_model(make_model, tiny_tokenizer) -> gpt2.GPT:
    """Two layers, two heads, 32 channels, 16 positions, tiny_tokenizer's ids."""
    return make_model(
        gpt2.GPTConfig(block_size=16, vocab_size=tiny_tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32)
    )


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory, tiny_model, tiny_tokenizer) -> Path:
    """tiny_model saved, with training.json; copy it before damaging it."""
    directory = tmp_path_factory.mktemp("checkpoint") / "tiny"
    gpt2.save(directory, tiny_model, tiny_tokenizer, preset="tiny", steps=0)
    return directory
