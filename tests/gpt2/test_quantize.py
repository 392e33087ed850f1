"""gpt2/quantize.py: eight bits that say nearly what thirty-two did, in any company, or a sentence why not."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import gpt2
from gpt2 import checkpoint, quantize
from gpt2.device import has_int8
from gpt2.quantize import LARGEST, LARGEST_IN_PAIRS, Int8, can_compile, dtype_of, quantized, suited

EXTREMES = [[0.0] * 40, [5.0] * 40, [-7.0] + [7.0] * 39, [1e-20] * 40, [100.0, -100.0] * 20, [3.0, 3.0001] * 20]
EXTREMES += [[0.0, 5e-13] * 20]
pytestmark = pytest.mark.skipif(not has_int8(), reason="PyTorch has no FBGEMM for this CPU")
CAN = suited()[0] if has_int8() else 0  # the largest whole weight here
each = pytest.mark.parametrize(
    "how",
    [
        pytest.param(
            (largest, compiled),
            id=f"{largest}-{'step.c' if compiled else 'FBGEMM'}",
            marks=[
                pytest.mark.skipif(CAN < largest, reason="this CPU lacks VNNI"),
                pytest.mark.skipif(compiled and not can_compile(), reason="there is no C compiler"),
            ],
        )
        for largest in (LARGEST, LARGEST_IN_PAIRS)
        for compiled in (False, True)
    ],
)


@pytest.fixture
def int8_model(tiny_checkpoint, monkeypatch, how):
    monkeypatch.setattr(checkpoint, "suited", lambda: (how[0], ""))
    monkeypatch.setattr(checkpoint, "can_compile", lambda: how[1])
    return gpt2.load(tiny_checkpoint, "cpu", "int8")[0]


def layer(how, n_in: int = 40, n_out: int = 26) -> tuple[Int8, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(n_out, n_in, generator=generator), torch.randn(n_out, generator=generator)
    weight[0], weight[1] = 0, 1
    return Int8(weight, bias, *how), weight, bias


@each
def test_it_is_what_floating_point_makes_of_the_same_eight_bits(how):
    x = torch.cat([torch.randn(29, 40, generator=torch.Generator().manual_seed(1)), torch.tensor(EXTREMES)])
    int8, _, _ = layer(how)
    torch.testing.assert_close(int8(x), int8.emulate(x), atol=1e-3, rtol=1e-6)
    assert int8(x.view(3, 12, 40)).shape == (3, 12, 26)


@each
def test_it_is_close_to_the_product_that_was_rounded(how):
    x = torch.randn(200, 40, generator=torch.Generator().manual_seed(1))
    int8, weight, bias = layer(how)
    expected = F.linear(x, weight, bias)
    assert (int8(x) - expected).std() < {LARGEST: 0.01, LARGEST_IN_PAIRS: 0.015}[how[0]] * expected.std()


@each
def test_no_row_depends_on_the_rows_beside_it_not_even_in_its_last_bit(how):
    x = torch.randn(33, 768, generator=torch.Generator().manual_seed(1))
    x[4], x[5], x[32] = 3, 1e-13 * x[5], 1000 * x[32]
    int8 = Int8(torch.randn(1001, 768, generator=torch.Generator().manual_seed(2)), None, *how)
    together = int8(x)
    for first, last in ((0, 1), (5, 6), (3, 7), (0, 16), (32, 33)):
        assert torch.equal(int8(x[first:last]), together[first:last])


@each
def test_the_largest_products_are_not_cut_off(how):
    """255 * 127 * 2 does not fit into 16 bits, in which some instructions would add it."""
    x, weight = torch.full((5, 3072), 3.0), torch.ones(16, 3072)
    x[:, 0] = -2
    torch.testing.assert_close(Int8(weight, None, *how)(x), F.linear(x, weight), atol=1e-2, rtol=1e-5)


@each
def test_a_model_scores_as_its_emulation_and_nearly_as_in_float32(int8_model, tiny_model, monkeypatch, how):
    idx = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    scores, exact = int8_model(idx)[0], tiny_model(idx)[0]
    monkeypatch.setattr(Int8, "forward", Int8.emulate)
    torch.testing.assert_close(scores, int8_model(idx)[0], atol=1e-3, rtol=0)
    assert (scores - exact).std() < {LARGEST: 0.03, LARGEST_IN_PAIRS: 0.05}[how[0]] * exact.std()


@each
def test_no_weight_is_kept_in_float32_but_what_is_looked_up(int8_model, how):
    large = [name for name, p in int8_model.named_parameters() if p.dim() > 1]
    assert large == ["transformer.wte.weight", "transformer.wpe.weight"]
    assert dtype_of(int8_model) == {LARGEST: "int8", LARGEST_IN_PAIRS: "int8-w7"}[how[0]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_models_are_called_by_the_format_of_their_weights(tiny_checkpoint, dtype):
    assert dtype_of(gpt2.load(tiny_checkpoint, "cpu", dtype)[0]) == dtype


def test_what_has_no_large_weight_stays_as_it_is():
    norm = torch.nn.LayerNorm(3)
    assert quantized(norm, LARGEST, False) is norm


@each
def test_alone_and_in_company_it_writes_the_same(int8_model, tiny_tokenizer):
    wishes = [("the land"[: 1 + seed % 8], gpt2.SamplingParams(max_new_tokens=25, seed=seed)) for seed in range(24)]
    with gpt2.Engine(int8_model, tiny_tokenizer) as engine:
        requests = [engine.submit(*wish) for wish in wishes]
        texts = ["".join(request) for request in requests]
    assert texts == ["".join(gpt2.generate(int8_model, tiny_tokenizer, *wish)) for wish in wishes]


@each
def test_an_int8_model_refuses_to_be_saved(int8_model, tiny_tokenizer, tmp_path):
    with pytest.raises(ValueError, match="load it with dtype='float32'"):
        gpt2.save(tmp_path / "x", int8_model, tiny_tokenizer)


@each
def test_a_row_that_is_not_finite_spoils_no_other(how):
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    int8, _, _ = layer(how)
    expected = int8(x)
    for bad in (torch.nan, torch.inf, -torch.inf):
        x[2, 7] = bad
        found = int8(x)
        assert not found[2].isfinite().any()
        assert torch.equal(found[[0, 1, 3, 4]], expected[[0, 1, 3, 4]])


def whole_product(part, packed, limit: float) -> torch.Tensor:
    """The product as instructions without VNNI compute it: pairs are added in 16 bits."""
    weight = torch.ops.quantized.linear_unpack(packed)[0]
    a, b = part.mul(255).round().long(), weight.int_repr().long().t()
    pairs = (a.unsqueeze(2) * b.unsqueeze(0)).unflatten(1, (-1, 2)).sum(2)  # (M, K / 2, N)
    return pairs.clamp(-limit, limit).sum(1).float().div(255) * weight.q_per_channel_scales().float()


def missing(part, packed):
    raise NotImplementedError("Could not run 'quantized::linear_dynamic'\nand much more")


@pytest.mark.parametrize(
    ("product", "used", "reason"),
    [
        (lambda part, packed: whole_product(part, packed, 2**31), "int8", None),
        (lambda part, packed: whole_product(part, packed, 2**15 - 1), "int8-w7", None),
        (lambda part, packed: whole_product(part, packed, 2**12), "float32", "wrong by"),
        (missing, "float32", "no int8 product"),
    ],
)
def test_a_product_that_is_cut_off_gets_smaller_weights_and_one_that_is_wrong_is_not_used(
    monkeypatch, caplog, tiny_checkpoint, product, used, reason
):
    monkeypatch.setattr(torch.ops.quantized, "linear_dynamic", product)
    monkeypatch.setattr(checkpoint, "suited", quantize.suited.__wrapped__)
    with caplog.at_level(logging.WARNING):
        model, _ = gpt2.load(tiny_checkpoint, "cpu", "int8")
    assert dtype_of(model) == used
    for record in caplog.records:
        assert reason in record.getMessage() and "\n" not in record.getMessage()
    assert len(caplog.records) == (reason is not None)


@pytest.mark.skipif(not can_compile(), reason="there is no C compiler")
@pytest.mark.parametrize("largest", [LARGEST, LARGEST_IN_PAIRS])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 1), (40, 26), (768, 131), (3072, 7)])
def test_compiled_or_not_it_gives_the_same_to_the_last_bit(largest, n_in, n_out):
    if largest > CAN:
        pytest.skip("this CPU lacks VNNI")
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(n_out, n_in, generator=generator), torch.randn(n_out, generator=generator)
    x = torch.randn(70, n_in, generator=generator) * torch.logspace(-14, 14, 70).unsqueeze(1)
    x[1], x[2, 0] = -3, 0.0
    for b in (bias, None):
        compiled, plain = (Int8(weight, b, largest, how) for how in (True, False))
        for rows in (x, x[:1], x[5:8], x[::2], x.t().contiguous().t()):
            assert torch.equal(compiled(rows), plain(rows))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
def test_gpt2_124m_takes_less_than_450_mb(run_python, tmp_path):
    model = gpt2.GPT(gpt2.GPTConfig()).init_weights()
    gpt2.save(tmp_path, model, gpt2.Tokenizer.gpt2())
    code = """
import sys, torch, gpt2
def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
before = resident()
model, _ = gpt2.load(sys.argv[1], "cpu", "int8")
with torch.inference_mode():
    model(torch.zeros(1, 64, dtype=torch.int64), cache=gpt2.KVCache(model.config))
print(resident() - before)
"""
    assert float(run_python("-c", code, str(tmp_path)).stdout) < 450
