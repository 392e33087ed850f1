"""A checkpoint as gpt2.save wrote it when the format was first settled; golden/ is never written again.

If a test here fails, checkpoints that people keep no longer open or no longer write what they wrote: the code is to be
mended, not the files. The model knows one sentence by heart, the marker after it included, and finds every token of it
thousand times as likely as the next best, so that no rounding of any machine can change the text.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt2

GOLDEN = Path(__file__).with_name("golden")
SENTENCE = "The golden hand writes what it wrote: the same land, the same sea and the same hand, until the end.\u2603"
GREEDY = gpt2.SamplingParams(max_new_tokens=90, temperature=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("prompt", ["", "The golden", SENTENCE[:60]])
def test_a_checkpoint_of_the_first_format_opens_and_writes_its_sentence(dtype, prompt):
    model, tokenizer = gpt2.load(GOLDEN, device="cpu", dtype=dtype)
    assert prompt + "".join(gpt2.generate(model, tokenizer, prompt, GREEDY)) == SENTENCE


def test_saved_again_it_is_the_same_checkpoint(tmp_path):
    model, tokenizer = gpt2.load(GOLDEN, device="cpu", dtype="float32")
    gpt2.save(tmp_path, model, tokenizer, dtype="float16")
    again, _ = gpt2.load(tmp_path, device="cpu", dtype="float32")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    assert gpt2.load(tmp_path)[1].sha256 == tokenizer.sha256


def test_transformers_writes_the_same_sentence():
    model, tokenizer = AutoModelForCausalLM.from_pretrained(GOLDEN), AutoTokenizer.from_pretrained(GOLDEN)
    ids = tokenizer("The golden", return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=20, do_sample=False)[0]  # its window, 32 tokens, has no more room
    assert SENTENCE.startswith(tokenizer.decode(written)) and len(written) > 20
