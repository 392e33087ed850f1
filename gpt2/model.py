"""GPT-2, the whole network: token ids in, logits or a loss out.

The names are those of GPT-2's own checkpoints (wte, wpe, h.0.attn.c_attn, ...), so saving one for transformers
only transposes. Knows nothing of text, sampling, files or training schedules.

Language Models are Unsupervised Multitask Learners, Radford et al., 2019.

Shapes: B batch, T time (tokens), C channels (n_embd), nh heads, hs head size (C / nh), V vocabulary.
"""

from __future__ import annotations

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt2.cache import KVCache, weighted_sum
from gpt2.config import GPTConfig
from gpt2.dropout import Dropout, dropout
from gpt2.linear import Embedding, Linear, TokenEmbedding
from gpt2.native import Step, library

IGNORE = -1  # a target that is not scored
# Positions whose logits exist at the same time during training: 2,048 x 50,304 in float32 are 0.4 GB, where
# all 16 x 1,024 of a GPT-2 batch would be 3.3 GB. A CPU is as fast with a quarter of that.
LOSS_CHUNK, LOSS_CHUNK_ON_CPU = 2048, 512
ROWS = 128  # of the attention that drops, at a time


class CausalSelfAttention(nn.Module):
    """Every token gathers from itself and from those before it."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.resid_dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # 3 x (B, T, C)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))  # (B, nh, T, hs)
        if cache is not None:
            y = attend(q, *cache.update(layer, k, v), mask)
        elif self.training and self.dropout and x.is_cpu:
            y = attend_and_drop(q, k, v, self.dropout)
        else:
            p = self.dropout if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)  # (B, nh, T, hs)
        y = y.transpose(1, 2).reshape(B, T, C)  # (B, T, C)
        return self.resid_dropout(self.c_proj(y))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of q (B, nh, T, hs) over the S positions of k and v (B, nh, S, hs) that mask (B, 1, T, S) allows.

    Written out: F.scaled_dot_product_attention is no faster for single tokens, and on a CPU it computes one row in
    another way than several, so that the last bits of a text would depend on what is written beside it.
    """
    scores = (q * q.size(-1) ** -0.5) @ k.transpose(2, 3)  # (B, nh, T, S)
    return weighted_sum(torch.where(mask, scores, -math.inf).softmax(-1), v)  # (B, nh, T, hs)


def attend_and_drop(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """Causal attention of q over k and v, all (B, nh, T, hs), a share p of whose weights is dropped; for a CPU, where
    PyTorch's own drops slowly and scores the future, too, before it masks it.

    So many rows at a time, each with what came before them alone; in the inputs' own type, where autocast would have
    softmax write floats.
    """
    T, q = q.size(2), q * q.size(-1) ** -0.5
    future = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
    y = []
    with torch.autocast("cpu", enabled=False):
        for start in range(0, T, ROWS):
            end = min(T, start + ROWS)
            scores = q[:, :, start:end] @ k[:, :, :end].transpose(2, 3) + future[start:end, :end]  # (B, nh, rows, end)
            y.append(dropout(scores.softmax(-1), p) @ v[:, :, :end])
    return torch.cat(y, 2)  # (B, nh, T, hs)


class MLP(nn.Module):
    """Every token thinks for itself."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.c_fc = Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = Linear(4 * config.n_embd, config.n_embd)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.c_proj(F.gelu(self.c_fc(x), approximate="tanh")))


class Block(nn.Module):
    """One layer: attention, then the MLP, each added to the stream (pre-norm)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layer: int, cache: KVCache | None, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, cache, mask)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 with a tied head: the token embedding also scores the next token.

    Args:
        config: the sizes.
        pad_vocab_to: round the rows of the embedding up to a multiple of this. 128 makes the head's matrix
            product faster on GPUs (50257 -> 50304). The extra rows never leave the model: logits, losses and
            checkpoints have config.vocab_size entries.
    """

    def __init__(self, config: GPTConfig, pad_vocab_to: int = 1):
        super().__init__()
        self.config = config
        rows = math.ceil(config.vocab_size / pad_vocab_to) * pad_vocab_to
        self.transformer = nn.ModuleDict({
            "wte": TokenEmbedding(rows, config.n_embd),
            "wpe": Embedding(config.block_size, config.n_embd),
            "drop": Dropout(config.dropout),
            "h": nn.ModuleList(Block(config) for _ in range(config.n_layer)),
            "ln_f": nn.LayerNorm(config.n_embd, eps=1e-5),
        })
        self.step: Step | None = None  # forward() for one token of each row, compiled; load() asks for it

    def compile_step(self) -> None:
        """Compute single tokens in step.c from now on, where it can be compiled. The weights must stay where they are,
        on the CPU, in float32 or in int8 by step.c."""
        if can_step():
            self.step = Step(self)

    def new_cache(self, rows: int = 1) -> KVCache:
        """An empty cache for so many texts. With step.c and int8 weights it holds floats of 16 bits, which is far more
        exact than these, and half as much to read for every token."""
        weight = self.transformer.wte.weight
        half = self.step is not None and hasattr(self.transformer.wte, "head")
        return KVCache(self.config, rows, weight.device, torch.float16 if half else weight.dtype)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> GPT:
        """Draw fresh weights as GPT-2 did: N(0, 0.02), biases 0, and the projections that end in the residual
        stream scaled by 1/sqrt(2 n_layer), for 2 n_layer of them add up there."""
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                p.normal_(0.0, 0.02 / math.sqrt(2 * self.config.n_layer), generator=generator)
            elif p.dim() > 1:
                p.normal_(0.0, 0.02, generator=generator)
            elif name.endswith("weight"):
                p.fill_(1.0)  # layer norms
            else:
                p.zero_()
        return self

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, cache: KVCache | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Score the next token at every position.

        Args:
            idx: token ids, (B, T) int64, T at most config.block_size.
            targets: the ids that should come next, (B, T) int64, -1 where none is scored.
            cache: keys and values of what came before; idx continues each row from its position.

        Returns:
            (logits (B, T, V), None) plainly; (logits of the last position (B, 1, V), None) with a cache;
            (None, mean loss in nats) with targets, computed without ever holding all the logits.
        """
        B, T = idx.shape
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens are more than block_size={self.config.block_size}; give the last ones only.")
        if cache is not None and targets is None and self.step is not None and self.step.fits(self, idx, cache):
            return self.step(self.transformer.wte(idx) + self.transformer.wpe(cache.positions(1)), cache), None
        if cache is None:
            mask, pos = None, torch.arange(T, device=idx.device)  # (T,)
        else:
            mask, pos = cache.mask(T).to(idx.device), cache.positions(T).to(idx.device)  # (B, 1, T, S), (B, T)

        x = self.transformer.wte(idx) + self.transformer.wpe(pos)  # (B, T, C)
        x = self.transformer.drop(x)
        for layer, block in enumerate(self.transformer.h):
            x = block(x, layer, cache, mask)
        if cache is not None:
            cache.advance(T)
            x = x[:, -1:]  # (B, 1, C)
        x = self.transformer.ln_f(x)

        if targets is not None:
            head = self.transformer.wte.weight  # (rows, C)
            return None, chunked_cross_entropy(x.flatten(0, 1), head, targets.flatten(), self.config.vocab_size)
        return self.transformer.wte.scores(x)[..., : self.config.vocab_size], None


@cache
@torch.inference_mode()
def can_step() -> bool:
    """Whether step.c can be compiled here, and gives what forward() gives, for each row whatever is beside it."""
    if library() is None:
        return False
    with torch.random.fork_rng([]):  # PyTorch draws weights of its own first
        model = GPT(GPTConfig(vocab_size=70, block_size=80, n_layer=2, n_head=3, n_embd=57)).eval()
    for p in model.parameters():
        p.normal_(0, 0.2, generator=torch.Generator().manual_seed(p.numel()))
    idx, ends = torch.arange(5 * 67).view(5, 67) % 70, (3, 66, 1, 64, 30)  # (B, T)

    def last_scores(rows: slice, step: Step | None, dtype: torch.dtype) -> Tensor:
        """Of texts of various lengths, whose last tokens are read at the same time."""
        some = idx[rows]
        cache, model.step = KVCache(model.config, len(some), dtype=dtype), None
        model(some[:, :-1], cache=cache)
        cache.pos, model.step = list(ends[rows]), step
        model(some[:, -2:-1], cache=cache)
        return model(some[:, -1:], cache=cache)[0]

    def is_right(dtype: torch.dtype, off: float) -> bool:
        found, expected = (last_scores(slice(0, 5), step, dtype) for step in (Step(model), None))
        alone = torch.cat([last_scores(slice(r, r + 1), Step(model), dtype) for r in range(5)])
        return bool((found - expected).abs().max() < off) and torch.equal(found, alone)

    return is_right(torch.float32, 1e-4) and is_right(torch.float16, 1e-2)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of x @ head.T, chunk by chunk; the gradients are taken on the way, while the logits
    of the chunk still exist, so that nothing of size (N, V) is ever kept. Ordinary ops only: autocast,
    torch.compile and DistributedDataParallel see nothing unusual."""

    @staticmethod
    def forward(ctx, x: Tensor, head: Tensor, targets: Tensor, vocab_size: int, with_grad: bool) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):  # once, not once a chunk
            x, head = (t.to(torch.get_autocast_dtype(device)) for t in (x, head))
        total = torch.zeros((), device=x.device)
        grad_x = torch.empty_like(x) if with_grad else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if with_grad else None
        scored = (targets != IGNORE).unsqueeze(1)  # (N, 1)
        n = scored.sum().clamp(min=1)
        chunk = LOSS_CHUNK_ON_CPU if device == "cpu" else LOSS_CHUNK
        for start in range(0, x.size(0), chunk):
            rows = slice(start, start + chunk)
            x_chunk, y, mask = x[rows], targets[rows].clamp(min=0).unsqueeze(1), scored[rows]
            logits = torch.mm(x_chunk, head.t())  # (n, rows of head)
            logits[:, vocab_size:] = -math.inf  # padding can not be predicted, and learns nothing
            p = logits.softmax(dim=1, dtype=torch.float32)
            # log sum exp: the largest logit less the log of its probability, which is never too small for a float
            log_sum = logits.amax(1, keepdim=True).float() - p.amax(1, keepdim=True).log()
            total = total + ((log_sum - logits.gather(1, y).float()) * mask).sum()
            if with_grad:
                p.scatter_add_(1, y, -torch.ones_like(p[:, :1]))  # softmax - one-hot
                p, x_scored = p.to(x.dtype), x_chunk * mask
                grad_x[rows] = torch.mm(p, head) * mask  # (n, C)
                if p.dtype == torch.float32:
                    grad_head.addmm_(p.t(), x_scored)  # (rows of head, C); adds while it multiplies
                else:
                    grad_head += torch.mm(p.t(), x_scored)
        if with_grad:
            ctx.save_for_backward(grad_x, grad_head, n)
        return total / n

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad_x, grad_head, n = ctx.saved_tensors
        return grad_x * (grad / n), grad_head * (grad / n), None, None, None


def chunked_cross_entropy(x: Tensor, head: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """Mean negative log-likelihood in nats of targets (N,) under softmax(x @ head.T), x (N, C), head (rows, C)."""
    return _ChunkedCrossEntropy.apply(x, head, targets, vocab_size, torch.is_grad_enabled())
