"""gpt2/native.py: a token of each text in step.c, the same in any company, and nothing of it where it can not be."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import gpt2
from gpt2 import checkpoint, native
from gpt2.model import can_step
from gpt2.quantize import LARGEST_IN_PAIRS, can_compile, quantized

pytestmark = pytest.mark.skipif(not can_step(), reason="there is no C compiler")
SIZES = [
    gpt2.GPTConfig(block_size=130, vocab_size=263, n_layer=2, n_head=2, n_embd=32),
    gpt2.GPTConfig(block_size=70, vocab_size=131, n_layer=3, n_head=3, n_embd=57),
    gpt2.GPTConfig(block_size=80, vocab_size=50, n_layer=1, n_head=1, n_embd=1),
    gpt2.GPTConfig(block_size=70, vocab_size=50, n_layer=1, n_head=3, n_embd=255),  # heads of 64 + 16 + 5
]
whatever_size = pytest.mark.parametrize("config", SIZES, ids=lambda config: f"{config.n_embd} wide")


def texts_of(config: gpt2.GPTConfig) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(config.vocab_size, (n,), generator=generator).tolist() for n in (2, 63, 64, 65, 30)]


@torch.inference_mode()
def last_scores(model: gpt2.GPT, texts: list[list[int]]) -> torch.Tensor:
    """Scores after each text, (B, V): all but its last token read by itself, the last ones in one pass."""
    together = model.new_cache(len(texts) + 2)  # more rows than texts
    together.pos = []
    for text in texts:
        own = model.new_cache()
        model(torch.tensor([text[:-1]]), cache=own)
        together.join(own)
    return model(torch.tensor([text[-1:] for text in texts]), cache=together)[0][:, 0]


@pytest.fixture
def compiled(make_model, config) -> gpt2.GPT:
    model = make_model(config)
    model.compile_step()
    return model


def make_int8(model: gpt2.GPT) -> None:
    if not can_compile():
        pytest.skip("step.c and FBGEMM differ")
    for name, module in list(model.named_modules()):
        if (small := quantized(module, LARGEST_IN_PAIRS, True)) is not module:
            model.set_submodule(name, small)


@whatever_size
def test_it_scores_as_the_readable_forward_pass(compiled, make_model, config):
    texts = texts_of(config)
    torch.testing.assert_close(last_scores(compiled, texts), last_scores(make_model(config), texts), atol=1e-4, rtol=0)


@whatever_size
@torch.inference_mode()
def test_a_text_read_token_by_token_is_scored_as_read_at_once(compiled, config):
    text = torch.tensor([texts_of(config)[1]])
    cache = gpt2.KVCache(config)
    one_by_one = [compiled(text[:, i : i + 1], cache=cache)[0][0, 0] for i in range(text.size(1))]
    torch.testing.assert_close(torch.stack(one_by_one), compiled(text)[0][0], atol=1e-4, rtol=0)
    assert cache.pos == [text.size(1)]


@whatever_size
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_no_score_depends_on_the_rows_beside_it_or_on_the_number_of_threads(compiled, config, dtype):
    if dtype == "int8":
        make_int8(compiled)
        compiled.compile_step()
    texts = texts_of(config)
    alone = [last_scores(compiled, [text])[0] for text in texts]
    for chosen in ([0, 1], [4, 0], [2, 3, 4], [4, 3, 2, 1, 0], list(range(5)) * 3):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                scores = last_scores(compiled, [texts[i] for i in chosen])
            finally:
                torch.set_num_threads(1)
            assert all(torch.equal(row, alone[i]) for i, row in zip(chosen, scores, strict=True))


@pytest.mark.parametrize("config", SIZES[:1])
def test_int8_scores_nearly_as_without_it(compiled, config):
    make_int8(compiled)
    texts, compiled.step = texts_of(config), None
    expected = last_scores(compiled, texts)
    compiled.compile_step()
    # Where a number lies between two whole ones the last bit decides, and the layers after it see the difference.
    assert (last_scores(compiled, texts) - expected).std() < 0.02 * expected.std()


@whatever_size
@torch.inference_mode()
def test_keys_and_values_of_16_bits_are_those_of_32_rounded_and_change_the_scores_little(compiled, config):
    text, scores = torch.tensor([texts_of(config)[1]]), []
    caches = [gpt2.KVCache(config, dtype=dtype) for dtype in (torch.float32, torch.float16)]
    for cache in caches:
        scores.append([compiled(text[:, i : i + 1], cache=cache)[0] for i in range(text.size(1))])
    whole, half = caches
    assert torch.equal(half.k[0], whole.k[0].half()) and torch.equal(half.v[0], whole.v[0].half())
    of_whole, of_half = map(torch.cat, scores)
    assert (of_half - of_whole).std() < 0.005 * of_whole.std()


@torch.inference_mode()
def test_numbers_of_every_size_are_rounded_to_16_bits_as_pytorch_does(make_model):
    numbers = [0.0, -0.0, 1.0, -1 / 3, 65504.0, -65504.0, 6.1e-5, 6.0e-5, -3e-6, 6e-8, 2.9e-8, 1e-30, 2049.0, 2051.0]
    numbers += [
        1 + 2**-11,
        1 + 3 * 2**-11,
        2**-14 - 2**-26,
        -2047.4,
        0.1,
        3e-5,
        65519.0,
        65520.0,
        -7e4,
        math.inf,
        math.nan,
    ]
    model = make_model(gpt2.GPTConfig(block_size=64, vocab_size=50, n_layer=1, n_head=1, n_embd=len(numbers)))
    layer, width = model.transformer.h[0].attn.c_attn, len(numbers)
    layer.weight.zero_()
    layer.bias[width : 2 * width] = torch.tensor(numbers)  # the keys
    layer.bias[2 * width :] = torch.tensor(numbers[::-1])  # the values
    model.compile_step()
    cache = gpt2.KVCache(model.config, dtype=torch.float16)
    model(torch.tensor([[1]]), cache=cache)
    for found, expected in ((cache.k, numbers), (cache.v, numbers[::-1])):
        torch.testing.assert_close(found[0, 0, 0, 0], torch.tensor(expected).half(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("less", ["-mno-avx512f", "-mno-avx512f -mno-f16c", "-mno-avx", "-O1"])
def test_it_is_right_for_lesser_cpus_too(run_python, less):
    asks = "from gpt2 import model, native; assert model.can_step() or native.library() is None"
    finished = run_python("-c", asks, CC=f"cc {less}")
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("config", SIZES[:1])
def test_int8_keeps_keys_and_values_in_16_bits_and_nothing_else_does(compiled, config, make_model):
    assert compiled.new_cache().k.dtype == make_model(config).new_cache().k.dtype == torch.float32
    make_int8(compiled)
    assert compiled.new_cache(3).k.dtype == torch.float16
    compiled.step = None  # where nothing is compiled, PyTorch reads floats of 32 bits faster
    assert compiled.new_cache().k.dtype == torch.float32


@pytest.mark.parametrize("config", SIZES[:1])
def test_a_full_window_is_refused_as_without_it(compiled, config):
    cache = gpt2.KVCache(config)
    cache.pos = [config.block_size]
    with pytest.raises(ValueError, match="do not fit"):
        compiled(torch.tensor([[1]]), cache=cache)


@pytest.mark.parametrize("config", SIZES[:1])
def test_weights_that_move_are_not_looked_for_where_they_were(compiled, config, make_model):
    texts = texts_of(config)
    copied = copy.deepcopy(compiled)
    assert copied.step is None
    torch.testing.assert_close(last_scores(copied, texts), last_scores(make_model(config), texts))
    doubled = make_model(config).double().float()
    compiled.double().float()
    assert torch.equal(last_scores(compiled, texts), last_scores(doubled, texts))


@pytest.mark.parametrize("config", SIZES[:1])
def test_what_it_is_not_made_for_is_computed_as_without_it(compiled, config, make_model):
    """Nothing of these may reach step.c, which would write past the end of what it is given."""
    plain, ids = make_model(config), torch.tensor([[1], [2], [3]])
    with torch.inference_mode(), pytest.raises(RuntimeError):  # three rows for a cache of one
        compiled(ids, cache=gpt2.KVCache(config))
    for cache in (gpt2.KVCache(config, 1, dtype=torch.float64), gpt2.KVCache(SIZES[1], 1), gpt2.KVCache(SIZES[2], 1)):
        with torch.inference_mode():
            assert not compiled.step.fits(compiled, ids[:1], cache)
    cache = gpt2.KVCache(config)
    assert not compiled.step.fits(compiled, ids[:1], cache)  # gradients are on
    with torch.inference_mode():
        assert compiled.step.fits(compiled, ids[:1], cache)
        assert not compiled.step.fits(compiled, ids[:2].view(1, 2), cache)
        assert not compiled.step.fits(compiled.train(), ids[:1], cache)
        compiled.eval()
        _, loss = compiled(ids[:1], targets=ids[1:2], cache=gpt2.KVCache(config))
        torch.testing.assert_close(loss, plain(ids[:1], targets=ids[1:2], cache=gpt2.KVCache(config))[1])


def test_an_int8_layer_refuses_rows_of_another_width_or_format():
    layer = native.Int8Linear(torch.ones(3, 4, dtype=torch.int8), torch.ones(3), torch.ones(3), None)
    for x in (torch.ones(2, 5), torch.ones(2, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match="a row here has 4"):
            layer(x)


@pytest.mark.parametrize("config", SIZES[:1])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_damaged_model_gives_no_numbers(compiled, config, dtype, number):
    if dtype == "int8":
        make_int8(compiled)
        compiled.compile_step()
    block = compiled.transformer.h[0]
    for bias, at in ((block.mlp.c_fc.bias, 3), (block.attn.c_attn.bias, 40), (block.attn.c_attn.bias, 70)):
        with torch.no_grad():
            sound, bias[at] = float(bias[at]), number  # of the MLP, of a key, of a value
        for texts in (texts_of(config), [[1, 2]]):
            assert not last_scores(compiled, texts).isfinite().any()
        with torch.no_grad():
            bias[at] = sound
    assert last_scores(compiled, texts_of(config)).isfinite().all()


def test_small_models_and_int8_are_loaded_with_it_and_large_ones_in_float32_without(tiny_checkpoint, monkeypatch):
    assert gpt2.load(tiny_checkpoint, "cpu", "float32")[0].step is not None
    assert (gpt2.load(tiny_checkpoint, "cpu", "int8")[0].step is not None) == can_compile()
    assert gpt2.load(tiny_checkpoint, "cpu", "bfloat16")[0].step is None
    monkeypatch.setattr(checkpoint, "INT8_FROM", 1)
    assert gpt2.load(tiny_checkpoint, "cpu", "float32")[0].step is None


def test_without_a_compiler_it_loads_and_writes_all_the_same(run_python, tiny_checkpoint):
    code = f"""
import gpt2
model, tokenizer = gpt2.load({str(tiny_checkpoint)!r}, "cpu", "float32")
print(model.step is None, len(list(gpt2.generate(model, tokenizer, "a", gpt2.SamplingParams(max_new_tokens=5)))))
"""
    assert run_python("-c", code, CC="").stdout.split()[0] == "True"


@pytest.mark.parametrize("compiler", ["", "false", "no-such-compiler", "echo", '"cc'])
def test_a_compiler_that_fails_is_none_and_leaves_nothing_behind(monkeypatch, tmp_path, compiler):
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(native.tempfile, "tempdir", str(tmp_path))
    assert native.library.__wrapped__() is None
    assert not list(tmp_path.iterdir())
