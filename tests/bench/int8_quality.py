"""What int8 costs: how much worse it predicts text that the model never read, and how often it likes another token.

    python tests/bench/int8_quality.py [CHECKPOINT] [--tokens 20000] [--per-layer-tokens 4000]

Scores the held-out part of the checkpoint's own text in float32, and with both kinds of gpt2/quantize.py's weights:
"int8" (eight bits; emulated where this CPU would cut their sums off) and "int8-w7" (seven bits). Then with one layer at
a time in int8, for the layer that costs most. "As served" is what this CPU takes, token by token, with the keys and
values as it keeps them. Prints tables and adds to tests/bench/results/int8_quality.json. No
figure of it is a time.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import gpt2  # noqa: E402
from gpt2 import device  # noqa: E402
from gpt2.quantize import LARGEST, LARGEST_IN_PAIRS, Int8, can_compile, quantized, suited  # noqa: E402
from tests.bench.record import RESULTS, here  # noqa: E402
from train.dataset import Part  # noqa: E402
from train.evaluate import Trained  # noqa: E402
from train.scoring import IGNORE, windows  # noqa: E402

KINDS = {"int8": LARGEST, "int8-w7": LARGEST_IN_PAIRS}
PATH = RESULTS / "int8_quality.json"


def in_int8(model: gpt2.GPT, largest: int, chosen: Callable[[str], bool] = lambda name: True) -> gpt2.GPT:
    """A copy with the chosen layers in int8."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if chosen(name) and (small := quantized(module, largest, can_compile())) is not module:
            model.set_submodule(name, small)
    if largest > suited()[0]:
        for layer in (module for module in model.modules() if isinstance(module, Int8)):
            layer.forward = layer.emulate
    return model


def at_once(model: gpt2.GPT, idx: Tensor) -> Tensor:
    """The logits (B, T, V) of all tokens (B, T)."""
    return model(idx)[0]


def as_served(model: gpt2.GPT, idx: Tensor) -> Tensor:
    """The same as if every token had just been written: from the keys and values of those before it."""
    cache = model.new_cache(len(idx))
    return torch.cat([model(one, cache=cache)[0] for one in idx.split(1, dim=1)], dim=1)


def scores(
    model: gpt2.GPT, part: Part, tokens: int, read: Callable[[gpt2.GPT, Tensor], Tensor] = at_once
) -> Iterator[tuple[Tensor, Tensor]]:
    """-log p of every token, in nats, and the likeliest one in its place."""
    size = model.config.block_size
    cuts = islice(windows(part, size, overlap=False), max(1, tokens // size))
    while batch := list(islice(cuts, max(1, 1024 // size))):
        idx, targets = (torch.stack(column) for column in zip(*batch, strict=True))  # (B, T), (B, T)
        log_p = read(model, idx).log_softmax(-1)  # (B, T, V)
        scored = targets != IGNORE
        each = -log_p[scored].gather(1, targets[scored].unsqueeze(1)).squeeze(1)  # (n,)
        yield each, log_p[scored].argmax(-1)


def compare(exact: list[tuple[Tensor, Tensor]], rounded: Iterator[tuple[Tensor, Tensor]]) -> dict[str, float]:
    (a, liked), (b, liked_too) = ([torch.cat(column) for column in zip(*of, strict=True)] for of in (exact, rounded))
    return {
        "tokens": len(a),
        "float32, nats": float(a.double().mean()),
        "rise, nats": float((b.double() - a.double()).mean()),
        "same likeliest token": float((liked == liked_too).double().mean()),
    }


@torch.inference_mode()
def measure(
    model: gpt2.GPT, served: gpt2.GPT, part: Part, tokens: int, per_layer: int
) -> dict[str, dict[str, dict[str, float]]]:
    """The rows of the tables; served is what the page would load in int8 here."""
    whole = list(scores(model, part, tokens))
    short = list(scores(model, part, per_layer))
    rows = {"as served": {"all layers": compare(whole, scores(served, part, tokens, as_served))}}
    print("as served", rows["as served"]["all layers"], flush=True)
    for kind, largest in KINDS.items():
        rows[kind] = {"all layers": compare(whole, scores(in_int8(model, largest), part, tokens))}
        for name in (*(f"transformer.h.{i}" for i in range(model.config.n_layer)), "transformer.wte"):
            one = in_int8(model, largest, lambda n, name=name: n == name or n.startswith(name + "."))
            rows[kind][f"{name} alone"] = compare(short, scores(one, part, per_layer))
        for name, row in rows[kind].items():
            said = f"{row['rise, nats']:+.5f} nats a token, same likeliest token {row['same likeliest token']:.2%}"
            print(f"{kind:8} {name:24} {said}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", nargs="?", default=str(gpt2.BUNDLED))
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--per-layer-tokens", type=int, default=4_000)
    args = parser.parse_args()
    device.prepare(torch.device("cpu"))
    found = gpt2.find(args.checkpoint)
    model, tokenizer = gpt2.load(found.directory, "cpu", "float32")
    served, _ = gpt2.load(found.directory, "cpu", "int8")
    trained = Trained.read(found.directory)
    if trained is None:
        sys.exit(f"{found.name} has no training.json that names its text.")
    _, text = trained.text(tokenizer, print)
    record = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    record[f"{model.config.n_parameters / 1e6:.1f} million parameters"] = {
        "run": trained.config,
        "kinds": measure(model, served, text.holdout, args.tokens, args.per_layer_tokens),
        "largest whole weight of this CPU": suited()[0],
        **here("torch"),
    }
    PATH.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
