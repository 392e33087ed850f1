"""A checkpoint as one GGUF file, which llama.cpp and the programs around it run.

Knows what llama.cpp calls the sizes, tensors and tokens of a GPT-2. Knows nothing of quantizing: that is
llama.cpp's own business, from this file.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import torch
from safetensors import safe_open

from gpt2.checkpoint import WEIGHTS, find, load
from gpt2.config import ACCEPTED
from gpt2.tokenizer import ENDOFTEXT, byte_alphabet
from train.state import staged_file


def write(directory: Path, file: Path) -> None:
    """Write a checkpoint directory as a GGUF file, which takes the place of file when it is whole.

    Matrices stored as float16 stay float16. All else is float32, vectors too: llama.cpp adds them to float32 sums.

    Raises:
        ValueError: where the checkpoint can not be used, or the gguf package is missing.
        OSError: where file can not be written.
    """
    try:
        import gguf
    except ImportError:
        raise ValueError("a GGUF file needs one more package: pip install gguf.") from None
    directory = find(directory).directory
    model, tokenizer = load(directory, "cpu", "float32")
    config, char_of = model.config, byte_alphabet()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.n_layer)
    with safe_open(directory / WEIGHTS, framework="pt") as stored:
        is_half = {stored.get_slice(key).get_dtype() for key in stored.keys()} == {"F16"}  # noqa: SIM118 (not a dict)

    def visible(token: bytes) -> str:
        return "".join(char_of[b] for b in token)

    tokens = [visible(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
    tokens[tokenizer.endoftext] = ENDOFTEXT
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[tokenizer.endoftext] = gguf.TokenType.CONTROL
    with staged_file(file) as temporary, closing(gguf.GGUFWriter(temporary, "gpt2")) as writer:
        writer.add_name(file.stem)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_half else gguf.LlamaFileType.ALL_F32)
        writer.add_context_length(config.block_size)
        writer.add_embedding_length(config.n_embd)
        writer.add_feed_forward_length(4 * config.n_embd)
        writer.add_block_count(config.n_layer)
        writer.add_head_count(config.n_head)
        writer.add_layer_norm_eps(ACCEPTED["layer_norm_epsilon"][0])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")  # how text is split before the merges: as GPT-2 does, in every vocabulary
        writer.add_token_list(tokens)
        writer.add_token_types(types)
        writer.add_token_merges([f"{visible(left)} {visible(right)}" for left, right in tokenizer.merges])
        writer.add_bos_token_id(config.bos_token_id)
        writer.add_eos_token_id(config.eos_token_id)
        writer.add_add_bos_token(False)  # a prompt begins with its own first token
        # No output matrix: without one llama.cpp takes the token embedding, GPT-2's tied head. Our matrices are
        # (out, in), as it wants them.
        for name, parameter in model.named_parameters():
            dtype = torch.float16 if is_half and parameter.dim() > 1 else torch.float32
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), parameter.to(dtype).numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
