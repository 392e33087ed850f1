"""gpt2/config.py: sizes, bounds, and transformers' config.json."""

from __future__ import annotations

import pytest
from transformers import GPT2Config

from gpt2 import GPTConfig
from gpt2.config import SIZES


def plain(**changes) -> dict:
    return {**GPTConfig(16, 257, 2, 2, 32).to_json(), **changes}


def test_the_default_is_the_124_million_model():
    assert GPTConfig().n_parameters == 124_439_808
    assert GPTConfig() == GPTConfig.named("gpt2")


@pytest.mark.parametrize("name", SIZES)
def test_every_named_size_is_valid(name):
    assert GPTConfig.named(name).n_embd == SIZES[name]["n_embd"]


def test_an_unknown_size_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'gpt3'.*gpt2-xl"):
        GPTConfig.named("gpt3")


def test_endoftext_is_the_last_id_unless_told_otherwise():
    assert (GPTConfig().bos_token_id, GPTConfig().eos_token_id) == (50256, 50256)
    config = GPTConfig(vocab_size=300, bos_token_id=10, eos_token_id=0)
    assert (config.bos_token_id, config.eos_token_id) == (10, 0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (field, value)
        for field in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
        for value in (0, -1, 12.0, "12", True, None, 10**12)
    ]
    + [("dropout", value) for value in (-0.1, 1, float("nan"), True, "0", None)]
    + [(field, value) for field in ("bos_token_id", "eos_token_id") for value in (-1, 50257, 1.0, True, "0")],
)
def test_a_field_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}="):
        GPTConfig(**{field: value})


def test_an_indivisible_width_is_answered_with_sizes_that_work():
    with pytest.raises(ValueError, match="n_embd=100.*n_head=12.*try n_head=10 or n_embd=108"):
        GPTConfig(n_embd=100, n_head=12)
    GPTConfig(n_embd=100, n_head=10)
    GPTConfig(n_embd=108, n_head=12)


def test_more_than_three_billion_parameters_are_refused():
    with pytest.raises(ValueError, match="billion parameters"):
        GPTConfig(n_layer=512, n_embd=16_384, n_head=512)


def test_json_round_trip_keeps_everything_but_dropout():
    config = GPTConfig(16, 300, 2, 2, 32, dropout=0.1, bos_token_id=5, eos_token_id=7)
    assert GPTConfig.from_json(config.to_json()) == GPTConfig(16, 300, 2, 2, 32, bos_token_id=5, eos_token_id=7)


def test_transformers_reads_our_fields_as_we_mean_them():
    theirs = GPT2Config(**plain())
    assert (theirs.n_positions, theirs.vocab_size, theirs.n_layer, theirs.n_head, theirs.n_embd) == (16, 257, 2, 2, 32)
    assert (theirs.bos_token_id, theirs.eos_token_id) == (256, 256)
    assert theirs.activation_function == "gelu_new"


def test_we_read_the_fields_that_transformers_writes():
    theirs = GPT2Config(n_positions=16, vocab_size=300, n_layer=2, n_head=2, n_embd=32, bos_token_id=3, eos_token_id=4)
    assert GPTConfig.from_json(theirs.to_dict()) == GPTConfig(16, 300, 2, 2, 32, bos_token_id=3, eos_token_id=4)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"model_type": ["gpt2"]}, "model_type"),
        ({"activation_function": "relu"}, "activation_function='relu'"),
        ({"activation_function": "gelu"}, "activation_function='gelu'"),
        ({"activation_function": ["gelu_new"]}, "activation_function"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"n_inner": 64}, "n_inner=64"),
        ({"n_embd": "32"}, "n_embd="),
        ({"n_embd": None}, "n_embd="),
        ({"n_positions": 1e9}, "block_size="),
        ({"vocab_size": [257]}, "vocab_size="),
        ({"eos_token_id": [256]}, "eos_token_id="),
        ({"eos_token_id": 257}, "eos_token_id=257"),
    ],
)
def test_what_is_not_plain_gpt2_is_refused_by_name(change, word):
    with pytest.raises(ValueError) as error:
        GPTConfig.from_json(plain(**change))
    assert word in str(error.value)


def test_fields_that_change_no_logit_may_say_anything():
    harmless = {"reorder_and_upcast_attn": True, "summary_type": "cls_index", "n_ctx": 5, "use_cache": False}
    assert GPTConfig.from_json(plain(**harmless)) == GPTConfig(16, 257, 2, 2, 32)


@pytest.mark.filterwarnings("ignore")
def test_gpt2s_own_end_in_a_smaller_vocabulary_means_that_none_was_chosen():
    theirs = GPT2Config(n_positions=16, vocab_size=257, n_layer=2, n_head=2, n_embd=32).to_dict()
    assert theirs["eos_token_id"] == 50256
    assert GPTConfig.from_json(theirs) == GPTConfig(16, 257, 2, 2, 32)


def test_four_times_n_embd_is_an_allowed_n_inner():
    assert GPTConfig.from_json(plain(n_inner=128)) == GPTConfig(16, 257, 2, 2, 32)


@pytest.mark.parametrize("fields", [None, [], "gpt2", 3, {}])
def test_json_that_is_no_configuration_is_refused(fields):
    with pytest.raises(ValueError, match="not a GPT-2 checkpoint"):
        GPTConfig.from_json(fields)


def test_missing_fields_are_listed():
    fields = plain()
    del fields["n_layer"], fields["n_embd"]
    with pytest.raises(ValueError, match="lacks n_embd, n_layer"):
        GPTConfig.from_json(fields)
