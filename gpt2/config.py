"""The shape of a GPT-2, and how much of it we are willing to believe.

Knows the fields of transformers' GPT2Config that change what the network computes, the named sizes, and
the bounds that a config.json from elsewhere must respect before any memory is taken. Knows nothing of
tensors, files or devices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# GPT-2 XL, the largest of the family, has 1.56 billion parameters. Twice that is 12 GB in float32: the most
# that a config.json read from the network may make us allocate.
MAX_PARAMETERS = 3_000_000_000
# A text's keys, and as many values: three times GPT-2 XL's. Some twenty texts are held at a time.
MAX_CACHED = 240_000_000
# No published GPT-2 comes near these; beyond them a single field could exhaust memory by itself.
MAX_FIELD = {"block_size": 65_536, "vocab_size": 1_000_000, "n_layer": 512, "n_head": 512, "n_embd": 16_384}

GPT2_END = 50256  # <|endoftext|> of GPT-2's own vocabulary


@dataclass(frozen=True)
class GPTConfig:
    """Sizes of one GPT-2. The defaults are the 124M model of the 2019 paper.

    Raises:
        ValueError: where the sizes can not be a GPT-2 that fits in memory.
    """

    block_size: int = 1024  # positions the model can look back on; each one has a learned embedding
    vocab_size: int = 50257  # GPT-2's own: 256 bytes + 50,000 merges + <|endoftext|>
    n_layer: int = 12
    n_head: int = 12  # heads of 64 channels, as in every GPT-2
    n_embd: int = 768
    dropout: float = 0.0  # only training uses it; 0.1 in GPT-2's own, 0 where each text is seen once
    bos_token_id: int | None = None  # what an empty prompt starts from; None means the last id
    eos_token_id: int | None = None  # what ends a text; None means the last id, <|endoftext|> in GPT-2

    def __post_init__(self):
        for name, bound in MAX_FIELD.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= bound:
                raise ValueError(f"{name}={value!r} must be a whole number from 1 to {bound:,}.")
        if self.n_embd % self.n_head:
            fits = max(n for n in range(1, self.n_head + 1) if self.n_embd % n == 0)
            raise ValueError(
                f"n_embd={self.n_embd} must be divisible by n_head={self.n_head}; "
                f"try n_head={fits} or n_embd={-(-self.n_embd // self.n_head) * self.n_head}."
            )
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout!r} must be at least 0 and below 1.")
        for name in ("bos_token_id", "eos_token_id"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, self.vocab_size - 1)
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < self.vocab_size:
                raise ValueError(f"{name}={value!r} must be an id below vocab_size={self.vocab_size}.")
        if self.n_parameters > MAX_PARAMETERS:
            raise ValueError(
                f"this configuration asks for {self.n_parameters / 1e9:,.1f} billion parameters "
                f"({self.n_parameters * 4 / 1e9:,.0f} GB); the largest accepted is {MAX_PARAMETERS / 1e9:.0f} billion."
            )
        if self.n_layer * self.block_size * self.n_embd > MAX_CACHED:
            raise ValueError(
                f"n_layer={self.n_layer} x block_size={self.block_size} x n_embd={self.n_embd}: keys and values of one "
                f"text would be more than {2 * MAX_CACHED / 1e6:,.0f} million numbers, the most that is accepted."
            )

    @property
    def n_parameters(self) -> int:
        """Parameters of the unpadded model, the tied head counted once: 124,439,808 for the default."""
        C = self.n_embd
        block = 12 * C * C + 13 * C  # qkv, projection, two MLP layers, their biases, two layer norms
        return (self.vocab_size + self.block_size) * C + self.n_layer * block + 2 * C

    @classmethod
    def named(cls, name: str) -> GPTConfig:
        """The configuration of a named size, e.g. "gpt2-medium"; see SIZES."""
        if name not in SIZES:
            raise ValueError(f"unknown model size {name!r}; known: {', '.join(SIZES)}.")
        return cls(**SIZES[name])

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> GPTConfig:
        """Read transformers' config.json, refusing what is not exactly a GPT-2.

        Raises:
            ValueError: naming the field that is missing, out of bounds or of another architecture.
        """
        if not isinstance(fields, dict) or fields.get("model_type") != "gpt2":
            found = fields.get("model_type") if isinstance(fields, dict) else type(fields).__name__
            raise ValueError(f"this is not a GPT-2 checkpoint: model_type is {found!r}, expected 'gpt2'.")
        for name, accepted in ACCEPTED.items():
            value = fields.get(name, accepted[0])
            if isinstance(value, (dict, list)) or value not in accepted:
                raise ValueError(f"{name}={value!r} is not plain GPT-2, which has {accepted[0]!r}.")
        missing = [name for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head") if name not in fields]
        if missing:
            raise ValueError(f"config.json lacks {', '.join(missing)}.")
        if fields.get("n_inner") not in (None, 4 * fields["n_embd"] if isinstance(fields["n_embd"], int) else None):
            raise ValueError(f"n_inner={fields['n_inner']!r} is not plain GPT-2, which has 4 * n_embd.")
        return cls(
            block_size=fields["n_positions"],
            vocab_size=fields["vocab_size"],
            n_layer=fields["n_layer"],
            n_head=fields["n_head"],
            n_embd=fields["n_embd"],
            bos_token_id=chosen_id(fields, "bos_token_id"),
            eos_token_id=chosen_id(fields, "eos_token_id"),
        )

    def to_json(self) -> dict[str, Any]:
        """The fields of transformers' config.json. Always float32: what every reader should compute in."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": self.vocab_size,
            "n_positions": self.block_size,
            "n_ctx": self.block_size,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": None,
            "initializer_range": 0.02,
            **{name: values[0] for name, values in ACCEPTED.items()},
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), self.dropout),
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "use_cache": True,
            "dtype": "float32",
        }


def chosen_id(fields: dict[str, Any], name: str) -> int | None:
    """bos_token_id or eos_token_id of a config.json; None where nobody chose one: transformers writes GPT-2's own
    id into the files of smaller vocabularies too."""
    vocab_size, value = fields.get("vocab_size"), fields.get(name)
    return None if value == GPT2_END and isinstance(vocab_size, int) and vocab_size <= GPT2_END else value


# What the fields that change the arithmetic must say; the first value is GPT-2's own and the default. All five
# activations are the tanh form of GELU under transformers' names; "gelu" is the exact one, which differs by 5e-4.
ACCEPTED: dict[str, tuple] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
    "add_cross_attention": (False,),
}

# GPT-2's four, and the small ones that this project trains on two CPU cores.
SIZES: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    "mini": {"n_layer": 6, "n_head": 5, "n_embd": 320, "block_size": 256, "vocab_size": 2048},
    "tiny": {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "vocab_size": 512},
}
