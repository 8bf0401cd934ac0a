"""Tiny random models of several families, saved as transformers saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCABULARY = 199
BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SMALL_HEADS = {**BASE, "head_dim": 8}
ALTERNATING = ["sliding_attention", "sliding_attention", "full_attention"] * 2

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**BASE),
    "llama-tied": lambda: transformers.LlamaConfig(**BASE, tie_word_embeddings=True),
    "qwen2": lambda: transformers.Qwen2Config(
        **BASE, use_sliding_window=True, sliding_window=8, max_window_layers=3
    ),
    "qwen3": lambda: transformers.Qwen3Config(**SMALL_HEADS),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=6, n_head=4, n_positions=256,
        bos_token_id=1, eos_token_id=2,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **SMALL_HEADS, sliding_window=8, layer_types=ALTERNATING
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **BASE, num_local_experts=4, num_experts_per_tok=2
    ),
    "bloom": lambda: transformers.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=32, n_layer=6, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "falcon": lambda: transformers.FalconConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=6, num_attention_heads=4,
        bos_token_id=1, eos_token_id=2,
    ),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, ffn_dim=64, num_hidden_layers=6,
        num_attention_heads=4, max_position_embeddings=256, word_embed_proj_dim=16,
    ),
    "qwen3-next": lambda: transformers.Qwen3NextConfig(
        **SMALL_HEADS, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, linear_num_key_heads=2, linear_num_value_heads=4,
        linear_key_head_dim=8, linear_value_head_dim=8,
        layer_types=["linear_attention", "full_attention"] * 3,
    ),
}  # fmt: skip


def build(family: str, directory: Path, *, shard: str = "5GB") -> Path:
    """Save a seeded random model of `family` and return its folder."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)  # far from ties, so that greedy choices are clear
    model.save_pretrained(directory, max_shard_size=shard)
    return directory


CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + m.role) }}{% endif %}"
    "{{ m.role }}:{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_letter(byte: int) -> str:
    """How byte-level tokenizers write a byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [b for b in range(256) if b not in printable].index(byte))


def build_chat(directory: Path) -> Path:
    """A Llama with a byte-level tokenizer: its random answers are random bytes."""
    alphabet = [byte_letter(byte) for byte in range(256)]
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(11)
    config = transformers.LlamaConfig(**{**BASE, "vocab_size": len(vocabulary)})
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3.0)
        # Mostly ASCII: bytes that begin no character would be held back to the end.
        model.lm_head.weight[3 + 128 :].mul_(0.1)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def reference(directory: Path, prompt: list[int], count: int) -> list[int]:
    """What unsharded transformers answers, greedily."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()
