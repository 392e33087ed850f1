"""gpt2/quantize.py: eight bits that say nearly what thirty-two did, in any company, or a sentence why not."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.nn.functional as F

import gpt2
from gpt2 import checkpoint, quantize
from gpt2.quantize import Fbgemm, Int8, IntMM, dtype_of, quantized, suited, why_not

EXTREMES = [[0.0] * 40, [5.0] * 40, [-7.0] + [7.0] * 39, [1e-20] * 40, [100.0, -100.0] * 20, [3.0, 3.0001] * 20]
EXTREMES += [[0.0, 5e-13] * 20]
there = torch.backends.quantized.supported_engines
each_product = pytest.mark.parametrize(
    "product",
    [IntMM, pytest.param(Fbgemm, marks=pytest.mark.skipif("fbgemm" not in there, reason="PyTorch lacks FBGEMM here"))],
)


@pytest.fixture
def int8_model(tiny_checkpoint, monkeypatch, product):
    monkeypatch.setattr(checkpoint, "suited", lambda: product)
    return gpt2.load(tiny_checkpoint, "cpu", "int8")[0]


def layer(product, n_in: int = 40, n_out: int = 24) -> tuple[Int8, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(n_out, n_in, generator=generator), torch.randn(n_out, generator=generator)
    weight[0], weight[1] = 0, 1
    return Int8(weight, bias, product), weight, bias


@each_product
def test_it_is_what_floating_point_makes_of_the_same_eight_bits(product):
    x = torch.cat([torch.randn(29, 40, generator=torch.Generator().manual_seed(1)), torch.tensor(EXTREMES)])
    int8, _, _ = layer(product)
    torch.testing.assert_close(int8(x), int8.emulate(x), atol=1e-3, rtol=1e-6)
    assert int8(x.view(3, 12, 40)).shape == (3, 12, 24)


@each_product
def test_it_is_close_to_the_product_that_was_rounded(product):
    x = torch.randn(200, 40, generator=torch.Generator().manual_seed(1))
    int8, weight, bias = layer(product)
    expected = F.linear(x, weight, bias)
    assert (int8(x) - expected).std() < {IntMM: 0.01, Fbgemm: 0.015}[product] * expected.std()


@each_product
def test_no_row_depends_on_the_rows_beside_it_not_even_in_its_last_bit(product):
    x = torch.randn(33, 768, generator=torch.Generator().manual_seed(1))
    x[4], x[5], x[32] = 3, 1e-13 * x[5], 1000 * x[32]
    int8 = Int8(torch.randn(1001, 768, generator=torch.Generator().manual_seed(2)), None, product)
    together = int8(x)
    for first, last in ((0, 1), (5, 6), (3, 7), (0, 16), (32, 33)):
        assert torch.equal(int8(x[first:last]), together[first:last])


@each_product
def test_the_largest_products_are_not_cut_off(product):
    """255 * 127 * 2 does not fit into 16 bits, in which some instructions would add it."""
    if reason := why_not():
        pytest.skip(reason)
    x, weight = torch.full((5, 3072), 3.0), torch.ones(16, 3072)
    x[:, 0] = -2
    torch.testing.assert_close(Int8(weight, None, product)(x), F.linear(x, weight), atol=1e-2, rtol=1e-5)


@each_product
def test_a_model_scores_as_its_emulation_and_nearly_as_in_float32(int8_model, tiny_model, monkeypatch, product):
    idx = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    scores, exact = int8_model(idx)[0], tiny_model(idx)[0]
    monkeypatch.setattr(Int8, "forward", Int8.emulate)
    torch.testing.assert_close(scores, int8_model(idx)[0], atol=1e-3, rtol=0)
    assert (scores - exact).std() < {IntMM: 0.03, Fbgemm: 0.05}[product] * exact.std()


@each_product
def test_no_weight_is_kept_in_float32_but_what_is_looked_up(int8_model, product):
    large = [name for name, p in int8_model.named_parameters() if p.dim() > 1]
    assert large == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert dtype_of(int8_model) == {IntMM: "int8", Fbgemm: "int8-w7"}[product]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_models_are_called_by_the_format_of_their_weights(tiny_checkpoint, dtype):
    assert dtype_of(gpt2.load(tiny_checkpoint, "cpu", dtype)[0]) == dtype


@pytest.mark.parametrize(("fast", "expected"), [("int_mm", IntMM), ("fbgemm", Fbgemm), (None, IntMM)])
def test_the_product_is_the_one_that_suits_the_cpu(monkeypatch, fast, expected):
    monkeypatch.setattr(quantize, "int8_product", lambda: fast)
    assert suited() is expected


def test_what_has_no_large_weight_stays_as_it_is():
    norm = torch.nn.LayerNorm(3)
    assert quantized(norm, suited()) is norm


@each_product
def test_alone_and_in_company_it_writes_the_same(int8_model, tiny_tokenizer, product):
    wishes = [("the land"[: 1 + seed % 8], gpt2.SamplingParams(max_new_tokens=25, seed=seed)) for seed in range(24)]
    with gpt2.Engine(int8_model, tiny_tokenizer) as engine:
        requests = [engine.submit(*wish) for wish in wishes]
        texts = ["".join(request) for request in requests]
    assert texts == ["".join(gpt2.generate(int8_model, tiny_tokenizer, *wish)) for wish in wishes]


@each_product
def test_an_int8_model_refuses_to_be_saved(int8_model, tiny_tokenizer, tmp_path, product):
    with pytest.raises(ValueError, match="load it with dtype='float32'"):
        gpt2.save(tmp_path / "x", int8_model, tiny_tokenizer)


def cut_off(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product as instructions without VNNI compute it: pairs are added in 16 bits."""
    pairs = (a.long().unsqueeze(2) * b.long().unsqueeze(0)).unflatten(1, (-1, 2)).sum(2)  # (M, K / 2, N)
    return pairs.clamp(-(2**15), 2**15 - 1).sum(1).int()


def missing(a, b):
    raise NotImplementedError("Could not run 'aten::_int_mm'\nand much more")


@pytest.mark.parametrize(("product", "reason"), [(cut_off, "wrong by"), (missing, "no int8 product")])
def test_a_wrong_or_missing_product_is_found_and_float32_used_with_a_sentence(
    monkeypatch, caplog, tiny_checkpoint, product, reason
):
    monkeypatch.setattr(torch, "_int_mm", product)
    monkeypatch.setattr(quantize, "int8_product", lambda: "int_mm")
    monkeypatch.setattr(checkpoint, "why_not", quantize.why_not.__wrapped__)
    with caplog.at_level(logging.WARNING):
        model, _ = gpt2.load(tiny_checkpoint, "cpu", "int8")
    assert dtype_of(model) == "float32"
    (record,) = caplog.records
    assert reason in record.getMessage() and "\n" not in record.getMessage()
