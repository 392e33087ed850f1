"""gpt2/checkpoint.py: transformers' own directory, written whole or not at all, and trusted in nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPT2Model

import gpt2
from gpt2 import CheckpointError, SamplingParams, checkpoint
from gpt2.config import ACCEPTED
from gpt2.files import NEEDED, WEIGHTS, check_file

FILES = {
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
    "vocab.json",
}
POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daa\nsize 2\n"
)


@pytest.fixture
def directory(tiny_checkpoint, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


@pytest.fixture
def other_model(make_model, tiny_model) -> gpt2.GPT:
    return make_model(tiny_model.config, seed=1)


def refusal(source, **kwargs) -> str:
    """The sentence with which load() refuses."""
    with pytest.raises(CheckpointError) as error:
        gpt2.load(source, **kwargs)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 600
    return sentence


def same_weights(a: gpt2.GPT, b: gpt2.GPT) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


def edit_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps(fields), encoding="utf-8")


def edit_weights(directory: Path, edit: Callable[[dict], dict]) -> None:
    tensors = edit(load_file(directory / WEIGHTS))
    save_file({name: t.contiguous() for name, t in tensors.items()}, directory / WEIGHTS, metadata={"format": "pt"})


# What is saved is what is loaded


def test_what_was_saved_is_loaded_to_the_bit(tiny_model, tiny_tokenizer, tiny_checkpoint):
    model, tokenizer = gpt2.load(tiny_checkpoint)
    assert same_weights(model, tiny_model)
    assert model.config == tiny_model.config
    assert tokenizer.sha256 == tiny_tokenizer.sha256


def test_a_loaded_model_is_ready_to_generate(tiny_checkpoint):
    model, _ = gpt2.load(tiny_checkpoint)
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_checkpoint_has_these_files(tiny_checkpoint):
    assert {path.name for path in tiny_checkpoint.iterdir()} == FILES


def test_the_weights_have_the_names_and_orientation_of_gpt2(tiny_model, tiny_checkpoint):
    stored = load_file(tiny_checkpoint / WEIGHTS)
    assert stored.keys() == tiny_model.state_dict().keys()
    assert stored["transformer.h.0.attn.c_attn.weight"].shape == (32, 96)
    assert torch.equal(stored["transformer.h.1.mlp.c_proj.weight"], tiny_model.transformer.h[1].mlp.c_proj.weight.T)


def test_float16_storage_halves_the_file_and_rounds_the_weights_once(tiny_model, tiny_tokenizer, tmp_path):
    for dtype in ("float32", "float16"):
        gpt2.save(tmp_path / dtype, tiny_model, tiny_tokenizer, dtype=dtype)
    sizes = [(tmp_path / dtype / WEIGHTS).stat().st_size for dtype in ("float16", "float32")]
    assert sizes[0] < 0.55 * sizes[1]
    model, _ = gpt2.load(tmp_path / "float16", dtype="float32")
    for name, p in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], p.half().float()), name
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "float16").dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_are_loaded_as_the_dtype_asked_for(tiny_model, tiny_checkpoint, dtype):
    model, _ = gpt2.load(tiny_checkpoint, dtype=dtype)
    expected = getattr(torch, dtype)
    for name, p in model.state_dict().items():
        assert torch.equal(p, tiny_model.state_dict()[name].to(expected)), name


@pytest.mark.parametrize("argument", [{"device": "tpu"}, {"device": "gpu:zero"}, {"dtype": "int3"}])
def test_an_unknown_device_or_dtype_is_refused(tiny_checkpoint, argument):
    with pytest.raises(ValueError, match="choose auto"):
        gpt2.load(tiny_checkpoint, **argument)


def test_provenance_becomes_training_json(tiny_model, tiny_tokenizer, tmp_path):
    gpt2.save(tmp_path, tiny_model, tiny_tokenizer, corpus=[{"name": "\u65e5\u672c", "sha256": "00"}], steps=7)
    training = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    assert training == {"corpus": [{"name": "\u65e5\u672c", "sha256": "00"}], "steps": 7}


def test_padded_rows_stay_out_of_the_file(make_model, tiny_model, tiny_tokenizer, tmp_path):
    padded = make_model(tiny_model.config, pad_vocab_to=128)
    gpt2.save(tmp_path, padded, tiny_tokenizer)
    assert load_file(tmp_path / WEIGHTS)["transformer.wte.weight"].shape == (263, 32)
    idx = torch.arange(10)[None]
    torch.testing.assert_close(gpt2.load(tmp_path)[0](idx)[0], padded(idx)[0])


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_model_leaves_no_prefix_in_the_file(tiny_model, tiny_tokenizer, tiny_checkpoint, tmp_path):
    compiled = torch.compile(tiny_model)
    assert all(name.startswith("_orig_mod.") for name in compiled.state_dict())
    gpt2.save(tmp_path, compiled, tiny_tokenizer)
    assert (tmp_path / WEIGHTS).read_bytes() == (tiny_checkpoint / WEIGHTS).read_bytes()


# transformers reads ours, we read transformers'


def test_transformers_goes_on_with_the_same_50_tokens(make_model, tiny_tokenizer, tmp_path):
    config = gpt2.GPTConfig(block_size=64, vocab_size=tiny_tokenizer.vocab_size, n_layer=2, n_head=2, n_embd=32)
    gpt2.save(tmp_path, make_model(config, seed=3), tiny_tokenizer)
    model, tokenizer = gpt2.load(tmp_path)
    params = SamplingParams(max_new_tokens=50, temperature=0)
    ours = "".join(gpt2.generate(model, tokenizer, "the land", params))

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    their_tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    prompt = their_tokenizer("the land", return_tensors="pt")
    ids = theirs.generate(**prompt, max_new_tokens=50, do_sample=False, top_k=None)[0, prompt["input_ids"].size(1) :]
    assert len(ids) == 50
    assert their_tokenizer.decode(ids) == ours


def test_transformers_finds_no_weight_missing_or_left_over(tiny_checkpoint):
    _, report = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]


@pytest.fixture(scope="module")
def theirs() -> GPT2LMHeadModel:
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    sizes = {"n_positions": 16, "vocab_size": 263, "n_layer": 2, "n_head": 2, "n_embd": 32, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=262, eos_token_id=262)).eval()
    torch.set_rng_state(torch_state)
    return model


def assert_same_logits(model: gpt2.GPT, theirs: GPT2LMHeadModel) -> None:
    idx = torch.randint(263, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            model(idx)[0], theirs(idx).logits[..., : model.config.vocab_size], rtol=1e-4, atol=1e-4
        )


def test_we_read_what_transformers_saved(theirs, tiny_tokenizer, tmp_path):
    theirs.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    assert_same_logits(gpt2.load(tmp_path)[0], theirs)


def test_we_read_a_directory_that_transformers_wrote_alone(theirs, tiny_checkpoint, tmp_path):
    theirs.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    model, tokenizer = gpt2.load(tmp_path)
    assert_same_logits(model, theirs)
    assert tokenizer.sha256 == gpt2.load(tiny_checkpoint)[1].sha256


def test_we_read_keys_without_the_transformer_prefix(theirs, tiny_tokenizer, tmp_path):
    """As GPT2Model saves them, and as gpt2 itself lies on the Hub."""
    bare = GPT2Model(theirs.config)
    bare.load_state_dict(theirs.transformer.state_dict())
    bare.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / WEIGHTS)
    tiny_tokenizer.save(tmp_path)
    assert_same_logits(gpt2.load(tmp_path)[0], theirs)


def as_on_the_hub(directory: Path, theirs: GPT2LMHeadModel) -> None:
    """Lay theirs down as openai-community/gpt2 lies on the Hub: names without a prefix, the causal masks of an old
    transformers, a config.json that names neither dtype nor many a newer field."""
    tensors = {name: p.detach().clone() for name, p in theirs.transformer.named_parameters()}
    for layer in range(theirs.config.n_layer):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1024, 1024).tril().view(1, 1, 1024, 1024)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    given = ("n_embd", "n_head", "n_layer", "n_positions", "vocab_size", "activation_function", "layer_norm_epsilon")
    given += ("bos_token_id", "eos_token_id", "attn_pdrop", "embd_pdrop", "resid_pdrop", "initializer_range")
    fields = {name: getattr(theirs.config, name) for name in given}
    fields |= {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_ctx": 1024}
    fields |= {"summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True}
    fields |= {"summary_type": "cls_index", "summary_use_proj": True}
    fields |= {"task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}
    (directory / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    gpt2.Tokenizer.gpt2().save(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).unlink()


@pytest.fixture(scope="module")
def hub_gpt2(tmp_path_factory) -> Path:
    torch_state = torch.get_rng_state()
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("gpt2")
    as_on_the_hub(directory, GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=16, initializer_range=0.3)))
    torch.set_rng_state(torch_state)
    return directory


def test_we_read_gpt2_as_it_lies_on_the_hub(hub_gpt2):
    model, tokenizer = gpt2.load(hub_gpt2)
    assert (model.config.vocab_size, model.config.block_size, model.config.eos_token_id) == (50257, 1024, 50256)
    idx = torch.tensor([tokenizer.encode("Before we proceed any further, hear me speak.")])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(hub_gpt2)(idx).logits
    torch.testing.assert_close(model(idx)[0], theirs, rtol=1e-4, atol=1e-4)


def test_a_scalar_mask_of_old_checkpoints_is_passed_over(hub_gpt2, tmp_path):
    copy = Path(shutil.copytree(hub_gpt2, tmp_path / "copy"))
    edit_weights(copy, lambda tensors: {**tensors, "h.1.attn.masked_bias": torch.tensor(-1e4)})
    assert same_weights(gpt2.load(copy)[0], gpt2.load(hub_gpt2)[0])


def test_we_read_a_model_whose_end_nobody_chose(tiny_tokenizer, tmp_path):
    """GPT2Config writes GPT-2's own 50256 whatever the vocabulary; transformers opens it all the same."""
    config = GPT2Config(n_positions=16, vocab_size=320, n_layer=1, n_head=2, n_embd=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    config = gpt2.load(tmp_path)[0].config
    assert (config.bos_token_id, config.eos_token_id) == (tiny_tokenizer.endoftext,) * 2


@pytest.mark.parametrize("activation", ACCEPTED["activation_function"])
def test_an_accepted_activation_computes_what_transformers_does(theirs, tiny_tokenizer, tmp_path, activation):
    theirs.save_pretrained(tmp_path)
    tiny_tokenizer.save(tmp_path)
    edit_config(tmp_path, activation_function=activation)
    assert_same_logits(gpt2.load(tmp_path)[0], AutoModelForCausalLM.from_pretrained(tmp_path))


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
@pytest.mark.parametrize("transformer", ["transformer.", ""])
def test_we_read_the_keys_that_wrappers_leave(directory, tiny_model, prefix, transformer):
    def rename(tensors):
        return {prefix + name.replace("transformer.", transformer): t for name, t in tensors.items()}

    edit_weights(directory, rename)
    assert same_weights(gpt2.load(directory)[0], tiny_model)


@pytest.mark.parametrize("transformer", ["transformer.", ""])
def test_mask_buffers_and_a_second_head_are_passed_over(directory, tiny_model, transformer):
    def add(tensors):
        tensors = {name.replace("transformer.", transformer): t for name, t in tensors.items()}
        for layer in range(2):
            tensors[f"{transformer}h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16)
            tensors[f"{transformer}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        return {**tensors, "lm_head.weight": tensors[f"{transformer}wte.weight"].clone()}

    edit_weights(directory, add)
    assert same_weights(gpt2.load(directory)[0], tiny_model)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_head_that_is_not_the_embedding_is_refused(directory, prefix):
    def untie(tensors):
        return {**tensors, f"{prefix}lm_head.weight": tensors["transformer.wte.weight"] + 1e-3}

    edit_weights(directory, untie)
    sentence = refusal(directory)
    assert f"{prefix}lm_head.weight is not the token embedding" in sentence


def test_a_head_with_more_rows_than_the_embedding_is_refused(directory):
    edit_weights(directory, lambda tensors: {**tensors, "lm_head.weight": torch.zeros(264, 32)})
    assert "lm_head.weight is not the token embedding" in refusal(directory)


def test_a_tied_matrix_stored_only_as_the_head_is_read(directory, tiny_model):
    """As safetensors' save_model() leaves it."""
    edit_weights(directory, lambda tensors: {"lm_head.weight": tensors.pop("transformer.wte.weight"), **tensors})
    assert same_weights(gpt2.load(directory)[0], tiny_model)


def more_rows(directory: Path, rows: int, **config) -> None:
    """As a checkpoint that was saved with its padding: more rows than the tokenizer has tokens, and likely ones."""

    def pad(tensors):
        wte = tensors["transformer.wte.weight"]
        loud = torch.full((rows - len(wte), wte.size(1)), 5.0)
        return {**tensors, "transformer.wte.weight": torch.cat([wte, loud])}

    edit_weights(directory, pad)
    edit_config(directory, vocab_size=rows, **config)


def test_rows_that_no_token_owns_are_never_sampled(directory, tiny_tokenizer):
    more_rows(directory, 320)
    model, tokenizer = gpt2.load(directory)
    assert model.config.vocab_size == 263
    assert model(torch.zeros(1, 3, dtype=torch.int64))[0].shape == (1, 3, 263)
    params = SamplingParams(max_new_tokens=200, top_k=0, temperature=100.0, seed=1)
    "".join(gpt2.generate(model, tokenizer, "the", params))


def test_with_more_rows_than_tokens_and_no_ids_given_endoftext_is_the_tokenizers(directory, tiny_tokenizer):
    more_rows(directory, 320, bos_token_id=None, eos_token_id=None)
    model, _ = gpt2.load(directory)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (tiny_tokenizer.endoftext,) * 2


def test_an_end_that_no_token_owns_is_refused(directory):
    more_rows(directory, 320, eos_token_id=300)
    assert "eos_token_id=300" in refusal(directory)


# Saving is all or nothing


def test_other_files_in_the_directory_survive(directory, other_model, tiny_tokenizer):
    (directory / "README.md").write_text("mine", encoding="utf-8")
    (directory / "sub").mkdir()
    (directory / "sub" / "x").write_text("mine too", encoding="utf-8")
    gpt2.save(directory, other_model, tiny_tokenizer, steps=1)
    assert same_weights(gpt2.load(directory)[0], other_model)
    assert {p.name for p in directory.iterdir()} == FILES | {"README.md", "sub"}
    assert (directory / "README.md").read_text(encoding="utf-8") == "mine"
    assert (directory / "sub" / "x").read_text(encoding="utf-8") == "mine too"


@pytest.mark.parametrize("fails_at", range(len(FILES)))
def test_a_save_that_is_cut_off_leaves_whole_files(
    monkeypatch, directory, other_model, tiny_tokenizer, tmp_path, fails_at
):
    gpt2.save(tmp_path / "new", other_model, tiny_tokenizer, steps=1)
    old, new = ({p.name: p.read_bytes() for p in d.iterdir()} for d in (directory, tmp_path / "new"))
    calls = iter(range(100))
    replace = os.replace

    def cut_off(*args):
        if next(calls) == fails_at:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        gpt2.save(directory, other_model, tiny_tokenizer, steps=1)
    left = {p.name: p.read_bytes() for p in directory.iterdir()}
    assert left.keys() == old.keys()
    assert all(left[name] in (old[name], new[name]) for name in left)
    assert fails_at or left == old


@pytest.mark.parametrize("function", ["save_file", "json_text"])
def test_a_full_disk_leaves_the_old_checkpoint(monkeypatch, directory, other_model, tiny_tokenizer, function):
    before = {p.name: p.read_bytes() for p in directory.iterdir()}

    def full(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, function, full)
    with pytest.raises(OSError, match="No space left"):
        gpt2.save(directory, other_model, tiny_tokenizer)
    assert {p.name: p.read_bytes() for p in directory.iterdir()} == before


def test_what_a_killed_save_left_behind_is_swept_by_the_next(directory, tiny_model, tiny_tokenizer, run_python):
    code = """
import os, sys, gpt2
model, tokenizer = gpt2.load(sys.argv[1])
os.replace = lambda *args: os._exit(9)
gpt2.save(sys.argv[1], model, tokenizer)
"""
    assert run_python("-c", code, str(directory)).returncode == 9
    assert same_weights(gpt2.load(directory)[0], tiny_model)
    gpt2.save(directory, tiny_model, tiny_tokenizer)
    assert {p.name for p in directory.iterdir()} == FILES


@pytest.mark.skipif(sys.platform == "win32", reason="file modes are a POSIX thing")
def test_whoever_may_read_one_file_may_read_them_all(tiny_checkpoint):
    modes = {path.name: oct(path.stat().st_mode) for path in tiny_checkpoint.iterdir()}
    assert len(set(modes.values())) == 1, modes


# Where a checkpoint is


def test_a_run_directory_means_its_best(tiny_checkpoint, tiny_model, tmp_path):
    shutil.copytree(tiny_checkpoint, tmp_path / "best")
    (tmp_path / "last").mkdir()
    assert gpt2.find(tmp_path).directory == tmp_path / "best"
    assert same_weights(gpt2.load(tmp_path)[0], tiny_model)


def test_a_checkpoint_that_has_a_folder_called_best_means_itself(directory):
    (directory / "best").mkdir()
    assert gpt2.find(directory).directory == directory


def test_a_local_directory_has_no_commit(tiny_checkpoint):
    assert gpt2.find(str(tiny_checkpoint)) == checkpoint.Found(tiny_checkpoint, str(tiny_checkpoint), None)


@pytest.mark.skipif(not Path("/etc/hosts").is_file(), reason="no file that is always there")
def test_a_folder_directly_below_the_root_is_one_like_any_other():
    check_file(Path("/etc/hosts"))


@pytest.mark.parametrize(
    "name", ["nowhere", "./no/where", "/no/where/at all", "a/b/c", "~/x", "a b/c", "../up", "a/b@/c"]
)
def test_a_missing_directory_is_answered_with_what_would_work(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "give a directory, or a Hub id like user/repo" in refusal(name)


def test_a_path_object_is_never_taken_for_a_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert "give a directory" in refusal(Path("user/repo"))


def test_a_file_is_answered_with_what_was_meant(tiny_checkpoint):
    assert "is a file; a checkpoint is the directory" in refusal(tiny_checkpoint / WEIGHTS)


@pytest.mark.parametrize("name", NEEDED)
def test_a_missing_file_is_named(directory, name):
    (directory / name).unlink()
    if name in ("vocab.json", "merges.txt"):
        (directory / "tokenizer.json").unlink()
    assert name in refusal(directory)


def test_an_empty_directory_is_no_checkpoint(tmp_path):
    assert "has no config.json" in refusal(tmp_path)


# Damage


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.2, 0.5, -1])
def test_truncated_weights_are_recognised(directory, keep):
    path = directory / WEIGHTS
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 1 if keep == -1 else int(keep * size) if isinstance(keep, float) else keep)
    sentence = refusal(directory)
    assert WEIGHTS in sentence
    assert "truncated" in sentence and "download" in sentence


@pytest.mark.parametrize("name", NEEDED)
def test_a_git_lfs_pointer_is_recognised(directory, name):
    (directory / name).write_text(POINTER, encoding="utf-8")
    if name in ("vocab.json", "merges.txt"):
        (directory / "tokenizer.json").write_text(POINTER, encoding="utf-8")
    sentence = refusal(directory)
    assert name in sentence
    assert "git lfs pull" in sentence


@pytest.mark.parametrize("garbage", [b"", b"{", b"not json", b"\xff\xfe\x00", b'{"a": 1e', b"9" * 5000, b"[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
def test_garbage_where_json_should_be_is_recognised(directory, name, garbage):
    (directory / name).write_bytes(garbage)
    assert name in refusal(directory)


@pytest.mark.parametrize("content", ["null", "[]", "3", '"gpt2"', "{}"])
def test_json_that_is_no_configuration_is_recognised(directory, content):
    (directory / "config.json").write_text(content, encoding="utf-8")
    assert "not a GPT-2 checkpoint" in refusal(directory)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n_head": 3}, "try n_head=2"),
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"n_layer": -1}, "n_layer=-1"),
        ({"n_embd": "32"}, "n_embd="),
        ({"n_embd": 1e400}, "n_embd="),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon"),
        ({"n_positions": [16]}, "block_size="),
        ({"n_positions": 65_536, "n_layer": 512}, "keys and values"),
        ({"eos_token_id": 999}, "eos_token_id=999"),
    ],
)
def test_a_configuration_that_is_no_gpt2_is_refused_by_field(directory, changes, word):
    edit_config(directory, **changes)
    sentence = refusal(directory)
    assert word in sentence
    assert "config.json" in sentence


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt"])
def test_a_huge_text_file_is_refused_unread(directory, name):
    with (directory / name).open("r+b") as file:
        file.truncate(100 * 2**20)
    sentence = refusal(directory)
    assert name in sentence
    assert "larger than" in sentence


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"n_layer": 400, "n_embd": 2304, "n_head": 2}, "billion parameters"),  # 100 GB
        ({"n_layer": 45, "n_embd": 2304, "n_head": 2}, "tensors missing"),  # 11 GB, within the bound, of 140 kB
        ({"n_embd": 16_000, "n_layer": 2}, "billion parameters"),
        ({"n_embd": 8_000}, "has shape"),
        ({"n_positions": 10**12}, "block_size="),
        ({"n_positions": 65_536}, "has shape"),
        ({"vocab_size": 1_000_000}, "has shape"),
    ],
)
def test_a_lie_about_the_size_is_found_before_memory_is_taken(directory, changes, word):
    import resource

    edit_config(directory, **changes)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 100 * 2**20, limits[1]))
    try:
        sentence = refusal(directory)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert word in sentence


def test_too_little_memory_is_said_in_a_sentence(directory, monkeypatch):
    def out_of_memory(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory\nat ...")

    monkeypatch.setattr(gpt2.GPT, "to_empty", out_of_memory)
    assert "not enough memory" in refusal(directory)


def test_missing_and_unexpected_tensors_are_named(directory):
    def edit(tensors):
        tensors["transformer.h.0.attn.rotary"] = tensors.pop("transformer.h.0.ln_1.bias")
        return tensors

    edit_weights(directory, edit)
    sentence = refusal(directory)
    assert "1 tensors missing (transformer.h.0.ln_1.bias)" in sentence
    assert "1 unexpected (transformer.h.0.attn.rotary)" in sentence


def test_a_layer_more_than_config_json_has_is_refused(directory):
    edit_config(directory, n_layer=1)
    sentence = refusal(directory)
    assert "0 tensors missing (none), 12 unexpected (transformer.h.1.attn.c_attn.bias, " in sentence


def test_of_many_missing_tensors_three_are_named(directory):
    edit_weights(directory, lambda tensors: {"transformer.wte.weight": tensors["transformer.wte.weight"]})
    sentence = refusal(directory)
    assert "27 tensors missing" in sentence
    assert sentence.count("transformer.") == 3


def test_a_tensor_that_is_there_twice_is_refused(directory):
    edit_weights(directory, lambda tensors: {**tensors, "ln_f.bias": torch.zeros(32)})
    assert "ln_f.bias" in refusal(directory)


def test_a_wrong_shape_is_named(directory):
    def transpose(tensors):
        tensors["transformer.h.0.attn.c_attn.weight"] = tensors["transformer.h.0.attn.c_attn.weight"].T
        return tensors

    edit_weights(directory, transpose)
    sentence = refusal(directory)
    assert "transformer.h.0.attn.c_attn.weight" in sentence
    assert "[96, 32]" in sentence


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers_are_refused(directory, dtype):
    def cast(tensors):
        return {**tensors, "transformer.ln_f.bias": tensors["transformer.ln_f.bias"].to(dtype)}

    edit_weights(directory, cast)
    assert "expected floating point" in refusal(directory)


def test_a_tokenizer_larger_than_the_model_is_refused(directory):
    gpt2.Tokenizer([(b"%d" % i, b"%d" % j) for i in range(5) for j in range(5)]).save(directory)
    assert "the tokenizer has 282 tokens, the model only 263" in refusal(directory)


def test_a_damaged_vocabulary_is_said_in_a_sentence(directory):
    (directory / "merges.txt").write_text("#version: 0.2\nt h e\n", encoding="utf-8")
    assert "merges.txt, line 2" in refusal(directory)


def test_a_pickle_is_never_opened(directory, monkeypatch):
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("opened a pickle"))
    assert f"has no {WEIGHTS}, only a pickle" in refusal(directory)


def test_a_checkpoint_in_shards_is_refused_with_the_way_out(theirs, tiny_tokenizer, tmp_path):
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    tiny_tokenizer.save(tmp_path)
    sentence = refusal(tmp_path)
    assert "cut into shards" in sentence
    assert "save_pretrained" in sentence


@pytest.mark.parametrize("name", ["spiece.model", "vocab.txt"])
def test_a_tokenizer_that_is_no_byte_level_bpe_is_refused(directory, name):
    for ours in ("vocab.json", "merges.txt", "tokenizer.json"):
        (directory / ours).unlink()
    (directory / name).write_bytes(b"[UNK]\n")
    assert "only byte-level BPE" in refusal(directory)


def test_a_tokenizer_json_of_another_kind_is_refused(directory):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"the": 0, "<|endoftext|>": 1}, "the"))
    for ours in ("vocab.json", "merges.txt"):
        (directory / ours).unlink()
    words.save(str(directory / "tokenizer.json"))
    assert "tokenizer.json" in refusal(directory)


def test_loading_waits_for_no_compiler(run_python, tiny_checkpoint):
    """PyTorch imports its compiler where a normal distribution is drawn for a model that is only outlined."""
    code = "import sys, gpt2; gpt2.load(sys.argv[1]); sys.exit('torch._dynamo' in sys.modules)"
    assert run_python("-c", code, str(tiny_checkpoint)).returncode == 0
