"""The checkpoint directory: transformers' own GPT-2 files, saved, found and loaded.

There is no private format: what save() writes opens in AutoModelForCausalLM, and load() opens what transformers
wrote. Everything read is untrusted: sizes are bounded before memory is taken, only JSON and safetensors are
opened, never a pickle. Knows nothing of training.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt2.config import GPTConfig, chosen_id
from gpt2.device import DTYPES, INT8_FROM, inference_dtype, pick_device
from gpt2.files import WEIGHTS, CheckpointError, Found, check_file, lack, read_json
from gpt2.hub import find_on_hub
from gpt2.model import GPT
from gpt2.quantize import can_compile, dtype_of, quantized, suited
from gpt2.tokenizer import Tokenizer

BUNDLED = Path(__file__).resolve().parent.parent / "checkpoints" / "shakespeare"
PAD_ROWS_ON_GPU = 128  # rows of the head in multiples of this are faster there, and cost nothing to speak of

# GPT-2's Conv1D keeps these weights as (in, out); torch's Linear, which is what we compute with, as (out, in).
_TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
_MASK = re.compile(r"\.attn\.(masked_)?bias$")  # buffers that other versions left in the file; gpt2 itself has them
_HEAD, _WTE = "lm_head.weight", "transformer.wte.weight"  # one matrix under two names
_WRAPPERS = re.compile(r"^((_orig_mod|module)\.)+")  # what torch.compile and DistributedDataParallel put in front
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@(?!.*\.\.)[\w.-]+(/[\w.-]+)*)?")


def find(source: str | Path) -> Found:
    """Locate a checkpoint: a directory, a run directory (its best/ is meant), or a Hub id like "user/repo@v1".

    A Hub id is asked of the Hub, then of the Hub's cache on this disk.

    Raises:
        CheckpointError: where it is in neither place.
    """
    name, path = str(source), Path(source)
    if path.is_dir():
        if not (path / "config.json").exists() and (path / "best").is_dir():
            path = path / "best"
        return Found(path, name)
    if path.exists():
        raise CheckpointError(f"{name} is a file; a checkpoint is the directory that holds config.json and {WEIGHTS}.")
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise CheckpointError(f"no checkpoint at {name}: give a directory, or a Hub id like user/repo or user/repo@v1.")
    return find_on_hub(name)


def load(source: str | Path = BUNDLED, device: str = "auto", dtype: str = "auto") -> tuple[GPT, Tokenizer]:
    """Load the model, ready to generate, and its tokenizer. On a CPU, small models and those in int8 write by step.c,
    which is compiled where there is a compiler.

    Args:
        source: as for find().
        device: "auto", "cpu", "cuda" or "mps".
        dtype: "auto", "float32", "bfloat16", "float16" or, on the CPU, "int8", which can only generate.

    Raises:
        CheckpointError: where the checkpoint is missing, damaged, of another architecture or too large.
        ValueError: where this machine lacks the device or dtype.
    """
    where = pick_device(device)
    inference_dtype(where, dtype)  # refuses before anything is read
    directory = find(source).directory
    config, tokenizer = read_config(directory), _read_tokenizer(directory)
    if config.vocab_size < tokenizer.vocab_size:
        raise CheckpointError(
            f"{directory}: the tokenizer has {tokenizer.vocab_size:,} tokens, the model only {config.vocab_size:,}; "
            "these files do not belong together."
        )
    read_weight = _open_weights(directory / WEIGHTS, config)
    what = inference_dtype(where, dtype, config.n_parameters)
    largest, compiled = None, False
    if what == torch.int8:
        (largest, why), compiled = suited(), can_compile()
        if largest is None:
            logging.getLogger("gpt2").warning(
                "float32 is used and not int8: PyTorch %s, but %s.", torch.__version__, why
            )
        what = torch.float32  # as which it is read
    model = _empty_model(_fitted(config, tokenizer, directory), where, what)
    with torch.no_grad():
        # By names, module by module: so that of an int8 model only one in float32 is ever in memory.
        for prefix in [prefix for prefix, _ in model.named_modules()]:
            module = model.get_submodule(prefix)
            for name, parameter in module.named_parameters(prefix, recurse=False):
                tensor = read_weight(name)
                if name == _WTE:
                    parameter.zero_()
                    parameter[: tokenizer.vocab_size] = tensor[: tokenizer.vocab_size].to(where)
                else:
                    parameter.copy_(tensor.t() if name.endswith(_TRANSPOSED) else tensor)
            if largest is not None and (small := quantized(module, largest, compiled)) is not module:
                model.set_submodule(prefix, small)
    model.eval().requires_grad_(False)
    # A large model in float32 is as fast without, and faster for many rows: there it is the arithmetic that takes time.
    small = config.n_parameters < INT8_FROM
    if where.type == "cpu" and what == torch.float32 and (compiled or (largest is None and small)):
        model.compile_step()
    return model, tokenizer


def save(directory: str | Path, model: GPT, tokenizer: Tokenizer, *, dtype: str = "float32", **provenance: Any) -> None:
    """Write a checkpoint that transformers and load() open. Other files in the directory are left alone.

    Each file is written under a temporary name, flushed to the disk, then renamed.

    Args:
        directory: created where it is missing.
        dtype: how the weights are stored; config.json says float32 all the same, for that is how to compute.
        provenance: anything JSON can hold; becomes training.json.

    Raises:
        ValueError: for an int8 model, which has lost what should be saved.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    model = getattr(model, "_orig_mod", model)  # what torch.compile wraps
    if dtype_of(model).startswith("int8"):
        raise ValueError("an int8 model can only generate; to save one, load it with dtype='float32'.")
    for left in directory.glob(".saving-*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=".saving-", dir=directory))
    try:
        write_tensors(_to_file(model, DTYPES[dtype]), stage / WEIGHTS, {"format": "pt"})
        (stage / WEIGHTS).chmod(0o644)  # safetensors lets the owner alone read it
        tokenizer.save(stage)
        ends = {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 50}
        records = {"config.json": model.config.to_json(), "generation_config.json": {**ends, **sampling}}
        for name, record in (records | ({"training.json": provenance} if provenance else {})).items():
            (stage / name).write_text(json_text(record), encoding="utf-8", newline="\n")
        for path in sorted(stage.iterdir()):
            with path.open("r+b") as file:
                os.fsync(file.fileno())
            os.replace(path, directory / path.name)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: where it can not be written; safetensors has an error of its own for a full disk.
    """
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"can not write {path} ({error}): free some space, or write elsewhere") from None


def read_config(directory: Path) -> GPTConfig:
    """The checked config.json of a checkpoint directory.

    Raises:
        CheckpointError: where it is missing, damaged, not a GPT-2 or too large.
    """
    try:
        return GPTConfig.from_json(read_json(Path(directory) / "config.json"))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{directory}/config.json: {error}") from error


def _fitted(config: GPTConfig, tokenizer: Tokenizer, directory: Path) -> GPTConfig:
    """config without the rows that no token owns: padding by another name, never offered to the sampler."""
    given = read_json(directory / "config.json")
    ends = {name: tokenizer.endoftext for name in ("bos_token_id", "eos_token_id") if chosen_id(given, name) is None}
    try:
        return replace(config, vocab_size=tokenizer.vocab_size, **ends)
    except ValueError as error:
        raise CheckpointError(f"{directory}/config.json does not fit its tokenizer: {error}") from error


def json_text(content: Any) -> str:
    """How checkpoints write JSON: indented, UTF-8, ending in a newline."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _read_tokenizer(directory: Path) -> Tokenizer:
    has_vocab, has_fast = (directory / "vocab.json").exists(), (directory / "tokenizer.json").exists()
    if not has_vocab and not has_fast:
        raise CheckpointError(f"{directory} {lack(os.listdir(directory))}")
    for name in ["vocab.json", "merges.txt"] if has_vocab else ["tokenizer.json"]:  # transformers 5 writes only that
        check_file(directory / name)
    try:
        return Tokenizer.from_directory(directory)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the tokenizer of {directory} can not be used: {error}") from error


def _open_weights(path: Path, config: GPTConfig) -> Callable[[str], Tensor]:
    """Check names and shapes against config before a single weight is read; return what reads one by our name."""
    check_file(path)
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in GPT(config).named_parameters()}
    try:
        file = safe_open(path, framework="pt")
        names, head = {}, None
        for key in file.keys():  # noqa: SIM118 (not a dict)
            name = _WRAPPERS.sub("", key)
            if _MASK.search(name):
                continue
            if name == _HEAD:
                head = key
                continue
            name = name if name.startswith("transformer.") else f"transformer.{name}"
            if name in names:
                raise CheckpointError(f"{path} holds {name} twice, as {names[name]} and {key}; save it again.")
            names[name] = key
        if head is not None:
            names.setdefault(_WTE, head)  # safetensors' save_model() keeps this name of the two
        missing, unexpected = sorted(expected.keys() - names), sorted(names.keys() - expected.keys())
        if missing or unexpected:
            raise CheckpointError(
                f"{path} does not match its config.json: {len(missing)} tensors missing ({_some(missing)}), "
                f"{len(unexpected)} unexpected ({_some(unexpected)})."
            )
        for name, key in names.items():
            part = file.get_slice(key)
            shape = tuple(part.get_shape())
            if (shape[::-1] if name.endswith(_TRANSPOSED) else shape) != expected[name]:
                raise CheckpointError(f"{path}: {key} has shape {list(shape)}, which config.json does not allow.")
            if part.get_dtype() not in ("F32", "F16", "BF16", "F64"):
                raise CheckpointError(f"{path}: {key} holds {part.get_dtype()} numbers; expected floating point.")
        if head is not None and not _equal(file, head, names[_WTE]):
            raise CheckpointError(f"{path}: {head} is not the token embedding; plain GPT-2 has one matrix for both.")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); download or save it again.") from error
    return lambda name: file.get_tensor(names[name])


def _equal(file: Any, a: str, b: str) -> bool:
    shapes = [file.get_slice(key).get_shape() for key in (a, b)]  # before a tensor is read
    return shapes[0] == shapes[1] and torch.equal(file.get_tensor(a).float(), file.get_tensor(b).float())


def _empty_model(config: GPTConfig, device: torch.device, dtype: torch.dtype) -> GPT:
    with torch.device("meta"):
        model = GPT(config, pad_vocab_to=PAD_ROWS_ON_GPU if device.type == "cuda" else 1)
    try:
        return model.to(dtype).to_empty(device=device)
    except RuntimeError as error:
        raise CheckpointError(
            f"not enough memory on {device} for {config.n_parameters / 1e6:,.0f} million parameters."
        ) from error


def _to_file(model: GPT, dtype: torch.dtype) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach().to("cpu", dtype)
        if name == _WTE:
            tensor = tensor[: model.config.vocab_size]
        tensors[name] = (tensor.t() if name.endswith(_TRANSPOSED) else tensor).contiguous()
    return tensors


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") or "none"
