"""What a run hands on: its checkpoint directories, and what they say about where they come from.

Knows which files lie in best/ and last/ beside the weights. Knows nothing of steps, gradients or when to save.
"""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import gpt2
from gpt2 import checkpoint, overlap
from train import memory, scoring, state
from train.config import TrainConfig
from train.corpus import Corpus
from train.dataset import Dataset
from train.journal import FILES, draw_losses, read_jsonl
from train.state import staged_directory, write_file

RUN = "run.json"  # what the run is; written before its first step


class Exporter:
    """Writes the checkpoint directories of one run.

    Args:
        about: facts that hold for the whole run and for every export of it, e.g. the hardware.
        on_save: called with every checkpoint directory that is written, to add to it.
        on_saved: called with every one that is complete and in its place.
    """

    def __init__(
        self,
        run_dir: Path,
        config: TrainConfig,
        corpus: Corpus,
        data: Dataset,
        about: dict,
        on_save: Callable[[Path], None],
        on_saved: Callable[[Path], None],
    ):
        self.run_dir, self.config, self.corpus, self.data = run_dir, config, corpus, data
        self.about, self.on_save, self.on_saved = about, on_save, on_saved

    def take_up(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """The newest whole state of the run directory; where there is none it is begun, and says what it is."""
        for directory in (self.run_dir, self.run_dir / "state"):
            state.sweep(directory)
        if found := state.load_state(self.run_dir / "state"):
            return found
        write_file(self.run_dir / RUN, checkpoint.json_text(self.facts()))
        return None

    def save(self, name: str, model: gpt2.GPT, step: int, seconds: float, figures: dict[str, float]) -> None:
        """Export the model as run_dir/name, complete in itself, in place of the one before."""
        with staged_directory(self.run_dir / name) as stage:
            record = self.provenance(model, step, seconds, figures)
            gpt2.save(stage, model, self.data.tokenizer, dtype=self.config.store, **record)
            self.add_overlap(stage)
            self.add_records(stage)
        self.on_saved(self.run_dir / name)

    def finish(
        self, directory: Path, step: int, seconds: float, say: Callable, check_stop: Callable[[], None]
    ) -> dict[str, float]:
        """Score a finished checkpoint's file, its held-out part for the only time; write the figures beside it."""
        torch.set_float32_matmul_precision("highest")  # no TensorFloat-32 in a figure
        model, _ = gpt2.load(directory, self.config.device, "float32")
        figures = {}
        for name, part in (("validation", self.data.validation), ("held_out", self.data.holdout)):
            if len(part) > 1:
                say(f"Scoring the {name.replace('_', '-')} part ({part.bytes:,} bytes) ...")
                result = scoring.score(model, part, before_batch=check_stop)
                figures[f"{name}_bits_per_byte"] = round(result.bits_per_byte, 4)
                figures[f"{name}_perplexity"] = round(result.perplexity, 3)
                if name == "held_out":
                    half = scoring.score(model, part, overlap=True, before_batch=check_stop)
                    figures["held_out_bits_per_byte_half_overlap"] = round(half.bits_per_byte, 4)
        if losses := [entry["loss"] for entry in read_jsonl(self.run_dir / "metrics.jsonl") if "loss" in entry]:
            figures["train_loss"] = losses[-1]
        record = checkpoint.read_json(directory / "training.json")
        record |= {"figures": figures, "seconds": round(seconds, 1), "run_steps": step}
        say("Looking for what it learned by heart ...")
        names = [document.name for document in self.corpus.documents]
        record["memorisation"] = memory.report(model, self.data, names, check_stop, self.config.window)
        write_file(directory / "training.json", checkpoint.json_text(record))
        self.add_records(directory)
        return figures

    @cached_property
    def overlap(self) -> dict[str, torch.Tensor]:
        """What overlap.safetensors holds; nothing for a text that is too large, or that is to stay private."""
        data = self.data
        if not self.config.overlap or data.train.bytes > memory.MAX_TEXT:
            return {}
        seen = torch.zeros(data.tokenizer.vocab_size, dtype=torch.bool)
        seen[data.train.ids.long()] = True
        return overlap.build(data.train.texts(data.tokenizer), seen)

    def add_overlap(self, directory: Path) -> None:
        """Write overlap.safetensors, where there is to be one."""
        if self.overlap:
            path = directory / overlap.FILE
            checkpoint.write_tensors(self.overlap, path, {"format": "pt"})
            path.chmod(0o644)  # safetensors lets the owner alone read it

    def add_records(self, directory: Path) -> None:
        """Copy the journals so far, draw the curve, and let the hook add what it wants."""
        for name in FILES:
            shutil.copyfile(self.run_dir / name, directory / name)
        entries = read_jsonl(directory / "metrics.jsonl")
        draw_losses(entries, directory / "loss.png", f"{self.corpus.name}: loss by step")
        self.on_save(directory)

    def provenance(self, model: gpt2.GPT, step: int, seconds: float, figures: dict[str, float]) -> dict[str, Any]:
        """What training.json says about where these weights come from."""
        return self.facts() | {
            "parameters": model.config.n_parameters,
            "steps": step,
            "tokens_seen": step * self.config.batch_size * self.config.block_size,
            "seconds": round(seconds, 1),
            "figures": figures,
        }

    def facts(self) -> dict[str, Any]:
        """What holds for the whole run: the command, the text, the machine."""
        config, corpus, data = self.config.public(), self.corpus, self.data
        parts = {"train": data.train, "validation": data.validation, "holdout": data.holdout}
        libraries = ("torch", "tiktoken", "safetensors", "tokenizers")
        return {
            "preset": config.preset,
            "command": config.command(),
            "config": config.to_json(),
            "corpus": {key: getattr(corpus, key) for key in ("name", "origin", "license", "language")},
            "data": [{"name": d.name, "sha256": d.sha256, "bytes": d.bytes} for d in corpus.documents],
            "parts": {name: {"tokens": len(part), "bytes": part.bytes} for name, part in parts.items()},
            "tokenizer_sha256": data.tokenizer.sha256,
            **self.about,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
        }
