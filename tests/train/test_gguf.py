"""train/gguf.py: the file says what the checkpoint says, read by the gguf package; tests/test_elsewhere.py runs it."""

from __future__ import annotations

import sys

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader

import gpt2
from gpt2.tokenizer import ENDOFTEXT
from train import gguf


@pytest.fixture
def tiny(tiny_checkpoint, tmp_path) -> GGUFReader:
    gguf.write(tiny_checkpoint, tmp_path / "tiny.gguf")
    return GGUFReader(tmp_path / "tiny.gguf")


def test_the_file_says_what_the_model_is(tiny, tiny_model):
    config = tiny_model.config
    said = {name: field.contents() for name, field in tiny.fields.items()}
    assert (said["general.architecture"], said["general.name"]) == ("gpt2", "tiny")
    assert said["gpt2.context_length"] == config.block_size
    assert said["gpt2.embedding_length"] == config.n_embd
    assert said["gpt2.feed_forward_length"] == 4 * config.n_embd
    assert said["gpt2.block_count"] == config.n_layer
    assert said["gpt2.attention.head_count"] == config.n_head
    assert said["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


def test_the_file_holds_the_vocabulary(tiny, tiny_tokenizer):
    said = {name: field.contents() for name, field in tiny.fields.items() if name.startswith("tokenizer")}
    assert (said["tokenizer.ggml.model"], said["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert said["tokenizer.ggml.tokens"][-7:] == ["th", "the", "an", "and", "ou", "in", ENDOFTEXT]
    assert said["tokenizer.ggml.token_type"] == [1] * 262 + [3]  # normal tokens, and one that no text contains
    assert said["tokenizer.ggml.merges"] == ["t h", "th e", "a n", "an d", "o u", "i n"]
    assert said["tokenizer.ggml.bos_token_id"] == said["tokenizer.ggml.eos_token_id"] == tiny_tokenizer.endoftext
    assert said["tokenizer.ggml.add_bos_token"] is False


def test_every_weight_is_in_the_file_once_and_unchanged(tiny, tiny_model):
    tensors = {tensor.name: torch.tensor(tensor.data) for tensor in tiny.tensors}
    ours = dict(tiny_model.named_parameters())
    assert len(tensors) == len(ours)
    assert torch.equal(tensors["token_embd.weight"], ours["transformer.wte.weight"])
    assert torch.equal(tensors["blk.1.attn_qkv.weight"], ours["transformer.h.1.attn.c_attn.weight"])
    assert torch.equal(tensors["blk.0.ffn_down.bias"], ours["transformer.h.0.mlp.c_proj.bias"])
    assert sum(tensor.numel() for tensor in tensors.values()) == tiny_model.config.n_parameters


def test_what_is_stored_as_float16_stays_so_but_for_the_vectors(tiny_model, tiny_tokenizer, tmp_path):
    gpt2.save(tmp_path / "half", tiny_model, tiny_tokenizer, dtype="float16")
    gguf.write(tmp_path / "half", tmp_path / "half.gguf")
    for tensor in GGUFReader(tmp_path / "half.gguf").tensors:
        matrix = len(tensor.shape) > 1
        assert tensor.tensor_type == (GGMLQuantizationType.F16 if matrix else GGMLQuantizationType.F32), tensor.name


def test_without_its_package_a_sentence_says_what_to_install(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"^a GGUF file needs one more package: pip install gguf\.$"):
        gguf.write(tiny_checkpoint, tmp_path / "model.gguf")


def test_a_failure_leaves_the_file_of_before(tiny_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "model.gguf").write_bytes(b"before")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", full)
    with pytest.raises(OSError, match="No space left"):
        gguf.write(tiny_checkpoint, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == b"before"
