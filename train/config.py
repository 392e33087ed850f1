"""What a training run is: every knob with its reason, and the presets.

A TrainConfig is the whole truth about a run; each field is a flag of `python -m train` with its comment as help.
Knows nothing of how training works.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from gpt2.config import GPTConfig

REPO_ID = r"[\w.-]+/[\w.-]+"  # of the Hugging Face Hub: user/name


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Raises:
        ValueError: naming the field that makes no sense, with the way out.
    """

    # Your text: files, folders of .txt, .md and .gz files, or quoted patterns such as "books/*.txt". None given: the
    # corpus.
    texts: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="[TEXT ...]")] = ()
    # Recipe to start from; every other flag overrides it. mini, short, tiny, seed, seed-fast or
    # finetune.
    preset: str = "mini"
    # A named text instead of your own: plays (Shakespeare's 38, needs no network), tinyshakespeare, or
    # hf:REPO[:COLUMN], a dataset of the Hugging Face Hub.
    corpus: str | None = None
    # Fine-tune instead of starting from nothing: a GPT-2 checkpoint, a directory or REPO[@REVISION] on the Hub. Its
    # sizes and its tokenizer are taken over.
    init_from: str | None = None
    # Learn from these checkpoints, too, directories or REPO[@REVISION], trained with the same text and tokenizer: what
    # they expect next, on average, becomes part of the target, and the model comes near to all of them together.
    distill_from: tuple[str, ...] = ()
    # How much of the target that is; the rest is the text.
    distill_share: float = 0.5
    # Name of the run, and of its directory under checkpoints/. Default: from the text.
    name: str | None = None
    # The run directory itself, where checkpoints/NAME is not what you want.
    out: Path | None = None
    # Go on with an interrupted run, with the settings it had. max-steps, micro-batch, device, compile, track, push-to,
    # private and the number of processes may differ.
    resume: bool = False
    # Say what the run would be (parameters, tokens, memory, time) and end.
    dry_run: bool = False

    # gpt2 (its own 50,257), bpe:N (N ids learned from the training part) or char. A large vocabulary on a small
    # text spends most of the model on tokens it hardly sees. inherited: that of init-from.
    tokenizer: str = "bpe:2048"
    # Share of every document, at its end, that is scored once when all is over and never looked at before. 1 or
    # more means that many tokens.
    holdout: float = 0.10
    # Share of every document before that, which decides what the best checkpoint is and when to stop.
    validation: float = 0.05
    # Put <|endoftext|> before every document, so that an empty prompt starts a new one.
    endoftext: bool = True

    # Layers: depth.
    n_layer: int = 6
    # Attention heads; must divide n_embd.
    n_head: int = 5
    # Channels: width. Parameters grow with its square.
    n_embd: int = 320
    # Tokens the model can look back on.
    block_size: int = 256
    # Begin with attention that can copy: two heads know the last two tokens, two more look for where these stood before
    # and what followed; for heads of 64 channels or more. Off: all weights begin as noise, as GPT-2's did.
    head_start: bool = False
    # Share of activations dropped while training; more for small texts that are read many times.
    dropout: float = 0.1
    # Share of input tokens replaced by others of the text (targets never are); against learning by heart.
    input_noise: float = 0.0

    # Share of tokens taken apart into the two that they were merged from, and these again; an end of the window makes
    # room. Pieces that the text never shows by themselves, of names for instance, are learned that way.
    bpe_dropout: float = 0.0

    # Share of the windows in which a part of the rare tokens trade places, the same way from the window's start to its
    # end. What stands above then says how a name goes on, and names that were never seen are copied, not mistaken.
    renaming: float = 0.0

    # Share of the windows in which a stretch stands a second time, further on, so that looking up what was said before
    # pays; where it begins and ends nothing is scored.
    echo: float = 0.0

    # Sequences of block_size tokens in one step.
    batch_size: int = 12
    # Sequences computed at once, at most: less memory, the same result but for dropout's draws. Unset: by hardware.
    micro_batch: int | None = None
    # Steps to train; the learning rate reaches its end there.
    max_steps: int = 1500
    # adamw, or muon: orthogonalised momentum for the hidden matrices and AdamW for the rest. Fewer, dearer steps.
    optimizer: Literal["adamw", "muon"] = "adamw"
    # Highest learning rate. Small models bear far more than the 6e-4 of GPT-2 124M.
    learning_rate: float = 2e-3
    # Learning rate at the end of cosine; never more than the highest. wsd ends at zero.
    min_learning_rate: float = 1e-4
    # How it falls: cosine, half a wave; or wsd (warm-up, stable, decay): constant, then in a line to zero.
    schedule: Literal["cosine", "wsd"] = "cosine"
    # Share of the steps, at the end, in which wsd falls.
    cooldown: float = 0.2
    # Steps of linear rise at the start, while AdamW's averages are still noise; at most half of all.
    warmup_steps: int = 80
    # Pull of the matrices and embeddings towards zero; biases and layer norms have none.
    weight_decay: float = 0.1
    # AdamW's memory of the gradient.
    beta1: float = 0.9
    # AdamW's memory of its square; 0.95 forgets sooner, for larger batches.
    beta2: float = 0.99
    # Longest gradient let through, in L2 norm; 0 for no limit.
    grad_clip: float = 1.0
    # Memory of a running average of the weights, e.g. 0.999; it is evaluated too, and the better of the two is
    # exported. 0: none.
    ema: float = 0.0
    # shuffled: each epoch cuts the text at another offset and shuffles. sequential: the same batches in the same
    # order every epoch, which memorises soonest.
    order: Literal["shuffled", "sequential"] = "shuffled"

    # Steps between evaluations: validation, samples, saved checkpoint.
    eval_every: int = 100
    # Evaluations without a better validation figure before stopping; 0 never stops early.
    patience: int = 5
    # Steps between lines of metrics.jsonl; each is the mean since the last.
    log_every: int = 10
    # Which checkpoint is the run's result: the best by validation, or the last.
    result: Literal["best", "last"] = "best"
    # How checkpoints store weights. float16 halves the file; figures are measured on the file as stored.
    store: Literal["float32", "float16"] = "float32"
    # Let checkpoints hold hashes of the runs of 8 words in a training part of up to 20 MB, by which the page marks what
    # was copied, and begin samples with two lines of the text. Whoever has eight words of it could find the others by
    # trying: --no-overlap for a private one.
    overlap: bool = True
    # Prompts sampled at every evaluation, always with the same seed. Default: some that suit the text.
    prompts: tuple[str, ...] = ()

    # Everything random follows from it: weights, order of the data, dropout.
    seed: int = 1337
    # auto, cpu, cuda or mps.
    device: str = "auto"
    # Arithmetic: auto takes bfloat16 where the hardware has it, float16 on older GPUs, else float32.
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # torch.compile, or --no-compile. Unset: on CUDA, where it pays.
    compile: Annotated[bool | None, tyro.conf.arg(metavar="")] = None
    # Also send every figure to a tracker: trackio, an optional package that keeps it on this machine.
    track: Literal["trackio"] | None = None
    # Also push every new best checkpoint to this repository of the Hugging Face Hub, user/name, in the background.
    push_to: str | None = None
    # Make that repository for your eyes only.
    private: bool = False

    def __post_init__(self):
        _at_least(1, self, "n_layer", "n_head", "n_embd", "block_size", "batch_size")
        _at_least(1, self, "max_steps", "eval_every", "log_every")
        _at_least(0, self, "warmup_steps", "patience", "seed")
        _at_least(0, self, "learning_rate", "min_learning_rate", "weight_decay", "grad_clip", "holdout")
        if self.micro_batch is not None:
            _at_least(1, self, "micro_batch")
        for field in ("dropout", "input_noise", "bpe_dropout", "renaming", "echo", "beta1", "beta2", "ema", "cooldown"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 0 and below 1.")
        if not 0 < self.distill_share <= 1:
            raise ValueError(f"distill_share={self.distill_share} must be above 0 and at most 1.")
        GPTConfig(n_layer=self.n_layer, n_head=self.n_head, n_embd=self.n_embd, block_size=self.block_size)  # checks
        if self.holdout >= 1 and self.tokenizer != "gpt2":
            raise ValueError("holdout in tokens needs --tokenizer gpt2: others are learned from the text itself.")
        if self.seed >= 2**63:
            raise ValueError(f"seed={self.seed} must be below 2**63.")
        if not 0 <= self.validation < 1 or self.validation + (self.holdout if self.holdout < 1 else 0) > 0.9:
            raise ValueError(
                f"holdout={self.holdout} and validation={self.validation} leave less than a tenth to train on."
            )
        if (self.tokenizer == "inherited") != (self.init_from is not None):
            raise ValueError(
                f"tokenizer={self.tokenizer!r} does not go with init_from={self.init_from!r}: a model to fine-tune "
                "brings its own, and nothing else does; leave out --tokenizer."
            )
        if not re.fullmatch(r"inherited|gpt2|char|bpe:\d{1,7}", self.tokenizer):
            raise ValueError(f"tokenizer={self.tokenizer!r} must be gpt2, char or bpe:N, e.g. bpe:2048.")
        if self.tokenizer.startswith("bpe:") and int(self.tokenizer[4:]) < 258:
            raise ValueError(f"tokenizer={self.tokenizer!r}: N counts 256 bytes and <|endoftext|>, so at least 258.")
        if self.head_start and self.init_from is not None:
            raise ValueError("head_start is for fresh weights, and init_from has its own: add --no-head-start.")
        if self.head_start and min(self.n_layer, self.n_head) < 2:
            raise ValueError("head_start needs at least 2 layers and 2 heads; or add --no-head-start.")
        if self.name is not None and not re.fullmatch(r"[\w][\w.-]*", self.name):
            raise ValueError(f"name={self.name!r} must be letters, digits, '-', '_' and '.'; --out takes a path.")
        if self.push_to is not None and not re.fullmatch(REPO_ID, self.push_to):
            raise ValueError(f"push_to={self.push_to!r} is no name on the Hub: it is user/name.")
        if self.private and self.push_to is None:
            raise ValueError("private says how to push: name the repository by --push-to user/name.")
        if self.ema and self.validation == 0:
            raise ValueError("ema needs a validation part to judge it by; use --validation 0.05, or leave it out.")
        if self.result == "best" and self.validation == 0:
            raise ValueError("result='best' needs a validation part; use --result last or --validation 0.05.")

    @property
    def window(self) -> int:
        """Tokens from one place where its windows may begin to the next."""
        return self.block_size if self.order == "sequential" else 1

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON holds them; from_json(to_json()) is equal. resume is no part of a run."""
        values = {k: [str(t) for t in v] if k == "texts" else _plain(v) for k, v in asdict(self).items()}
        return {k: v for k, v in values.items() if k not in ("resume", "dry_run")}

    def public(self) -> TrainConfig:
        """What others may read: files and folders by name alone."""

        def name(path: Path) -> str:
            return os.fsencode(path.resolve().name).decode("utf-8", "replace")  # a disk may hold any bytes

        texts = tuple(Path(name(path)) for path in self.texts)
        return self._with_sources(name, texts=texts, out=None, push_to=None, private=False)

    def absolute(self) -> TrainConfig:
        """The same from any working directory."""
        return self._with_sources(
            lambda path: str(path.absolute()), texts=tuple(path.absolute() for path in self.texts)
        )

    def _with_sources(self, rename: Callable[[Path], str], **changes: Any) -> TrainConfig:
        """Another one, its checkpoints renamed where they are directories, or were."""
        sources = (self.init_from or "", *self.distill_from)
        named = [rename(Path(s)) if Path(s).is_dir() or re.match(r"[/~.]", s) else s for s in sources]
        return replace(self, init_from=self.init_from and named[0], distill_from=tuple(named[1:]), **changes)

    def command(self) -> str:
        """The command line that repeats this run, as others may read it."""
        config = self.public()
        words = ["python", "-m", "train", *map(str, config.texts)]
        for field in fields(self):
            value = getattr(config, field.name)
            as_preset = field.name != "preset" and value == getattr(preset(self.preset), field.name)
            if as_preset or field.name in UNSAID or (field.name == "corpus" and self.texts):
                continue
            flag = field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else [value])]
        return shlex.join(words)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TrainConfig:
        """Read what to_json() wrote."""
        typed = {"texts": tuple(map(Path, values["texts"])), "prompts": tuple(values["prompts"])}
        typed["distill_from"] = tuple(values.get("distill_from", ()))
        return cls(**{**values, **typed, "out": values["out"] and Path(values["out"])})


def _at_least(low: float, config: TrainConfig, *names: str) -> None:
    for name in names:
        if not (math.isfinite(value := getattr(config, name)) and value >= low):
            raise ValueError(f"{name}={value} must be a finite number of at least {low}.")


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


# No part of what a run is: the text is named first, and where it goes is everyone's own.
UNSAID = ("texts", "out", "resume", "dry_run", "track", "push_to", "private")
# What may differ when a run is resumed: it changes how the run is computed, not what.
RESUMABLE = ("resume", "dry_run", "max_steps", "micro_batch", "device", "compile", "track", "push_to", "private")

# fmt: off
PRESETS: dict[str, TrainConfig] = {
    # 8 million parameters, on two CPU cores 15 minutes with AMX and an hour or more without. Read no more than a few
    # times, a text is learned sooner without dropout.
    "mini": TrainConfig(
        preset="mini", max_steps=1800, eval_every=150, optimizer="muon", schedule="wsd", cooldown=0.4, ema=0.998,
        head_start=True, dropout=0.0, weight_decay=0.3, store="float16",
    ),
    # 3.4 million parameters for a text of a megabyte or two, or less: found by tests/bench/tinyshakespeare.py.
    "short": TrainConfig(
        preset="short", tokenizer="bpe:512", n_layer=4, n_head=4, n_embd=256, block_size=512, head_start=True,
        dropout=0.0, renaming=0.5, echo=0.5, batch_size=4, max_steps=3000, eval_every=300, optimizer="muon",
        learning_rate=4e-3, schedule="wsd", cooldown=0.5, warmup_steps=100, weight_decay=0.3, ema=0.995,
        store="float16",
    ),
    # Seconds: to see everything work once.
    "tiny": TrainConfig(
        preset="tiny", tokenizer="bpe:512", n_layer=2, n_head=2, n_embd=64, block_size=64, dropout=0.0,
        batch_size=16, max_steps=200, warmup_steps=20, learning_rate=5e-3, min_learning_rate=5e-4, eval_every=50,
    ),
    # The run this project began with, to the letter: GPT-2 124M on tiny Shakespeare, the same 20 batches 250 times.
    # It memorises; the 10,345 tokens that its batches never reach are held out. Made for a GPU.
    "seed": TrainConfig(
        preset="seed", corpus="tinyshakespeare", tokenizer="gpt2", holdout=10_345, validation=0, endoftext=False,
        n_layer=12, n_head=12, n_embd=768, block_size=1024, dropout=0.0,
        batch_size=16, max_steps=5000, order="sequential", warmup_steps=60,
        learning_rate=6e-4, min_learning_rate=6e-5, weight_decay=0.1, beta2=0.95,
        log_every=1, eval_every=500, patience=0, result="last",
    ),
    # GPT-2 itself, or --init-from any other, learns your text on top of what it knows. Few steps, small rates.
    "finetune": TrainConfig(
        preset="finetune", init_from="openai-community/gpt2", tokenizer="inherited",
        n_layer=12, n_head=12, n_embd=768, block_size=1024, batch_size=8, max_steps=200, warmup_steps=20,
        learning_rate=1e-4, min_learning_rate=1e-5, beta2=0.95, eval_every=20, patience=3,
    ),
}
# The seed's task learned by heart in far fewer steps: tests/bench/race.py has what helped at a smaller size. The rate
# is the best one there (24e-4 to 36e-4, 192 wide) for 768 wide by 1 / sqrt(width).
PRESETS["seed-fast"] = replace(
    PRESETS["seed"], preset="seed-fast", max_steps=800, eval_every=100, optimizer="muon", warmup_steps=30,
    learning_rate=1.5e-3, min_learning_rate=0.0, weight_decay=0.0,
)
# fmt: on


def preset(name: str) -> TrainConfig:
    """The preset called name.

    Raises:
        ValueError: for an unknown name, listing the known.
    """
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; choose {', '.join(PRESETS)}.")
    return PRESETS[name]
