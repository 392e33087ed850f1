"""What models that were trained on the same text expect next, on average: targets softer than the text itself.

The mean of several models predicts better than each of them, and one model can learn most of that from it (Distilling
the Knowledge in a Neural Network, Hinton et al., 2015). Knows checkpoints; knows nothing of steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gpt2
from gpt2 import checkpoint
from gpt2.files import WEIGHTS
from gpt2.model import IGNORE
from train.config import TrainConfig
from train.dataset import Dataset


class Teachers:
    """The models that a run learns from.

    Args:
        models: with one vocabulary, as load() gives them.
        share: of the loss that is their word; the rest is the text's.
        sha256: of the file of each model's weights.
    """

    def __init__(self, models: list[gpt2.GPT], share: float, sha256: list[str]):
        self.models, self.share, self.sha256 = models, share, sha256

    @classmethod
    def load(cls, config: TrainConfig, data: Dataset, documents: set[str], device: torch.device) -> Teachers | None:
        """Those of config.distill_from; None where there are none.

        Args:
            documents: the sha256 of every document of the run.

        Raises:
            gpt2.CheckpointError: where one can not be read.
            ValueError: where one has another vocabulary, or may know anything that the run holds out.
        """
        models, digests = [], []
        for source in config.distill_from:
            directory = checkpoint.find(source).directory
            model, tokenizer = gpt2.load(directory, str(device), "float32")
            if tokenizer.sha256 != data.tokenizer.sha256:
                raise ValueError(f"{source} has another vocabulary: train it with the same text and --tokenizer.")
            if model.config.block_size < config.block_size:
                raise ValueError(f"{source} looks back {model.config.block_size} tokens: use a --block-size like that.")
            _check_split(source, directory / "training.json", config, documents)
            with (directory / WEIGHTS).open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
            models.append(model)
        return cls(models, config.distill_share, digests) if models else None

    @torch.no_grad()
    def probabilities(self, idx: Tensor) -> Tensor:
        """Of every next token after idx (B, T), the models' mean, (B, T, V)."""
        return sum(model(idx)[0].softmax(-1, dtype=torch.float32) for model in self.models) / len(self.models)

    def loss(self, network: Callable[[Tensor], tuple[Tensor, None]], idx: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy of the network's scores, in nats, with the models' word and the text's mixed."""
        log_p = network(idx)[0].log_softmax(-1, dtype=torch.float32)  # (B, T, V)
        soft = -(self.probabilities(idx) * log_p).sum(-1)[targets != IGNORE].mean()
        hard = F.nll_loss(log_p.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
        return self.share * soft + (1 - self.share) * hard


def _check_split(source: str, path: Path, config: TrainConfig, documents: set[str]) -> None:
    """Refuse a teacher that may know what this run will be judged by."""
    record: Any = checkpoint.read_json(path) if path.is_file() else None
    try:
        theirs = record["config"]
        same = {document["sha256"] for document in record["data"]} == documents
        same &= theirs["holdout"] == config.holdout and theirs["validation"] >= config.validation
        is_sound = same and not theirs.get("init_from")
    except (KeyError, TypeError, AttributeError):
        is_sound = False
    if not is_sound:
        raise ValueError(
            f"{source} may know what is held out here, which would then be no test: its training.json has to name the "
            "same text, --holdout and --validation, and a start from fresh weights."
        )
