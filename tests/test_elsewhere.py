"""A published checkpoint in other people's hands: transformers and llama.cpp, unmodified, do with it what we do.

The tests of llama.cpp want llama-cpp-python, which pip builds for some twenty minutes; they are skipped without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig, TextGenerationPipeline, pipeline

import gpt2
from gpt2.tokenizer import ENDOFTEXT
from train import gguf, vocabulary

LEARNED_FROM = (
    "Once upon a time there was an old caf\xe9 in the town; nobody knew who'd built it, and they'll never know. "
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8 \u0414\u0430, \u043a\u043e\u043d\u0435\u0447\u043d\u043e! "
    "\U0001f642 12 of the 345 words\r\n\tstand here  twice.\n\n"
) * 2
PROMPTS = ["Once upon a time", "\n", "ROMEO:\nBut, soft!", "caf\xe9 \u65e5\u672c \U0001f642", "  12,345 they'll  \r\n"]
# Every character that somebody takes for white space, also the byte-order mark and the space without a width.
WHITE = "\t\n\v\f\r \x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff"
WHITE += "".join(map(chr, range(0x2000, 0x200B)))


@pytest.fixture(scope="module", params=["gpt2", "bpe:500", "char", "bundled"])
def directory(request, tmp_path_factory, make_model) -> Path:
    """A checkpoint as it would be published: with each kind of vocabulary, and the bundled one."""
    if request.param == "bundled":
        return gpt2.BUNDLED
    tokenizer = vocabulary.build(request.param, [LEARNED_FROM], len(LEARNED_FROM))
    config = gpt2.GPTConfig(block_size=128, vocab_size=tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32)
    path = tmp_path_factory.mktemp("published")
    gpt2.save(path, make_model(config, seed=1), tokenizer)
    return path


@pytest.fixture(scope="module")
def ours(directory) -> tuple[gpt2.GPT, gpt2.Tokenizer]:
    return gpt2.load(directory, "cpu", "float32")


@pytest.fixture(scope="module")
def theirs(directory) -> TextGenerationPipeline:
    return pipeline("text-generation", model=str(directory), device="cpu")


@pytest.fixture(scope="module")
def llama(directory, tmp_path_factory) -> Callable:
    """llama(...) is llama.cpp with the checkpoint, in float32 as far as it goes."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama.cpp is not here: pip install llama-cpp-python")
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    gguf.write(directory, file)
    float32 = {"type_k": 0, "type_v": 0}  # its cache of keys and values is float16 by default
    return lambda **options: llama_cpp.Llama(str(file), n_ctx=0, n_threads=1, verbose=False, **float32, **options)


def write(model: gpt2.GPT, tokenizer: gpt2.Tokenizer, prompt: str, params: gpt2.SamplingParams) -> list[int]:
    """The ids of the continuation."""
    stream = gpt2.generate(model, tokenizer, prompt, params)
    while True:
        try:
            next(stream)
        except StopIteration as end:
            return list(end.value.new_ids)


def strings(number: int) -> list[str]:
    """Texts of every kind, most of them no text at all; the same ones on every machine."""
    rng = random.Random(0)
    planes = [range(0xD800), range(0xE000, 0x10000), *(range(p << 16, p + 1 << 16) for p in range(1, 17))]
    kinds = (
        lambda: chr(rng.choice(rng.choice(planes))),  # any plane; nine in ten stand for nothing yet
        lambda: chr(rng.randrange(0x80, 0x3000)),
        lambda: rng.choice(WHITE) * rng.choice((1, 1, 2, 17)),
        lambda: rng.choice("a Z0-.\n\r\xe9\u754c\U0001f642") * rng.randint(50, 400),
        lambda: rng.choice(("'s", "'S", "'ll", "'re", "n't", "'d", "\u2019s", "''", " 'tis", "'\u017f")),
        lambda: str(rng.randrange(10 ** rng.randint(1, 30))),
        lambda: rng.choice("\xb2\xbd\u0663\u2167\u3007\U0001d7d8"),  # numbers that are no digits 0 to 9
        lambda: chr(rng.choice((*range(0x20), *range(0x7F, 0xA0)))),  # control characters, NUL among them
        lambda: rng.choice(("\r\n", "\r\n\r\n", "\n\r", " \r\n ")),
        lambda: rng.choice(LEARNED_FROM.split()),
        lambda: f" {rng.choice(LEARNED_FROM.split())}",
        lambda: rng.choice("e\u0301\u200d\ufe0f\u0939\u094d\u0627\u202e"),  # what combines, joins and turns round
    )
    return ["".join(rng.choice(kinds)() for _ in range(rng.randint(0, 25))) for _ in range(number)]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_their_pipeline_writes_the_same_60_greedy_tokens(ours, theirs, prompt):
    (written,) = theirs(prompt, max_new_tokens=60, do_sample=False, return_tensors=True)
    ids = written["generated_token_ids"][len(ours[1].encode(prompt)) :]
    expected = write(*ours, prompt, gpt2.SamplingParams(max_new_tokens=60, temperature=0))
    assert ids[: len(expected)] == expected
    assert ids[len(expected) :] == ([] if len(expected) == 60 else [ours[1].endoftext])


def test_their_pipeline_returns_the_same_text(ours, theirs):
    (written,) = theirs(PROMPTS[0], max_new_tokens=60, do_sample=False, return_full_text=False)
    params = gpt2.SamplingParams(max_new_tokens=60, temperature=0)
    assert written["generated_text"] == "".join(gpt2.generate(*ours, PROMPTS[0], params))


def test_they_sample_as_we_do_where_nobody_says_how(directory, theirs):
    ours, read = gpt2.SamplingParams(), GenerationConfig.from_pretrained(directory)
    for settings in (read, theirs.model.generation_config):
        assert settings.do_sample is True
        assert (settings.temperature, settings.top_k) == (ours.temperature, ours.top_k)
        assert (settings.top_p or 1, settings.min_p or 0) == (ours.top_p, ours.min_p)
        assert (settings.repetition_penalty or 1) == ours.repetition_penalty
        assert settings.eos_token_id == theirs.tokenizer.eos_token_id


def test_a_thousand_strings_get_the_same_ids_and_come_back(directory, ours):
    tokenizer, texts = ours[1], strings(1000)
    theirs = AutoTokenizer.from_pretrained(directory)
    ids = theirs(texts)["input_ids"]
    for text, expected, decoded in zip(texts, ids, theirs.batch_decode(ids), strict=True):
        assert tokenizer.encode(text) == expected, ascii(text)
        assert tokenizer.decode(expected) == decoded == text, ascii(text)


def test_a_run_of_ten_thousand_gets_the_same_ids(directory, ours):
    theirs = AutoTokenizer.from_pretrained(directory)
    for char in "a 0.\n\xe9\u754c":
        assert ours[1].encode(char * 10_000) == theirs.encode(char * 10_000), ascii(char)


@pytest.mark.slow
def test_they_take_the_same_characters_for_letters_numbers_and_white_space(tmp_path):
    """Two libraries' tables of Unicode. Merges of an ASCII character and the first byte of another show whether the
    two were kept together. What lies beyond is empty or private."""
    first_bytes = [bytes([b]) for b in range(0xC2, 0xF5)]
    tokenizer = gpt2.Tokenizer([(ascii, first) for ascii in (b"a", b"1", b"!", b" ") for first in first_bytes])
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for start in (*range(0x80, 0xD800, 0x80), *range(0xF900, 0x32500, 0x80), *range(0xE0000, 0xE0200, 0x80)):
        text = "".join(f"a{c}1{c}!{c} {c} {c}" for c in map(chr, range(start, start + 0x80)))
        assert tokenizer.encode(text) == theirs.encode(text), hex(start)


# llama.cpp. It looks GELU up in a table of half-precision numbers: its logits differ from ours by up to 0.005.


@pytest.mark.llama
def test_llama_cpp_gives_a_thousand_strings_the_same_ids(llama, ours):
    theirs = llama()
    for text in strings(1000):
        assert theirs.tokenize(text.encode(), add_bos=False) == ours[1].encode(text), ascii(text)


@pytest.mark.llama
def test_llama_cpp_starts_and_ends_a_text_where_we_do(llama, ours):
    theirs, config = llama(), ours[0].config
    assert (theirs.token_bos(), theirs.token_eos()) == (config.bos_token_id, config.eos_token_id)
    assert theirs.tokenize(b"a") == ours[1].encode("a")  # nothing is put in front
    assert theirs.tokenize(ENDOFTEXT.encode(), special=True) == [config.eos_token_id]
    assert theirs.tokenize(ENDOFTEXT.encode()) == ours[1].encode(ENDOFTEXT)


@pytest.mark.llama
def test_llama_cpp_computes_the_same_logits(llama, ours):
    theirs, ids = llama(logits_all=True), ours[1].encode("".join(PROMPTS))
    theirs.eval(ids)
    logits = torch.tensor(numpy.array(theirs.scores[: len(ids)]))
    torch.testing.assert_close(logits, ours[0](torch.tensor([ids]))[0][0], rtol=0, atol=0.01)


@pytest.mark.llama
def test_llama_cpp_writes_the_same_greedy_tokens(llama, ours):
    """Until two tokens are so nearly equal that its rounding decides."""
    theirs, compared = llama(), 0
    for prompt in PROMPTS:
        ids = ours[1].encode(prompt)
        expected = write(*ours, prompt, gpt2.SamplingParams(max_new_tokens=60, temperature=0))
        logits = ours[0](torch.tensor([ids + expected]))[0][0, len(ids) - 1 : -1]
        first, second = logits.topk(2).values.T
        clear = int((first - second > 0.01).cumprod(0).sum())
        assert list(islice(theirs.generate(ids, top_k=1, temp=0, repeat_penalty=1), clear)) == expected[:clear]
        assert theirs.detokenize(expected) == b"".join(map(ours[1].token_bytes, expected))
        compared += clear
    assert compared >= 60
