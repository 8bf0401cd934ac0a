"""A character tokenizer with a chat template, built from nothing but printable ASCII."""

from __future__ import annotations

import string
from collections.abc import Callable

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, END, USER, ASSISTANT, UNKNOWN = "<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|unk|>"
SPECIAL_TOKENS = (PAD, END, USER, ASSISTANT, UNKNOWN)
CHARACTERS = "\n" + "".join(sorted(set(string.printable) - set(string.whitespace) | {" "}))

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<|user|>' + message['content'] | trim }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + message['content'] | trim + '<|end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(longest: int) -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token per character, special tokens first.

    `longest` is the longest sequence in tokens that the model was made for.
    """
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *CHARACTERS))}
    # Byte-pair encoding without a single merge leaves one token per character.
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=UNKNOWN))
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        additional_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=longest,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """Look one token up; `ValueError` if the tokenizer does not have it."""
    found = tokenizer.get_vocab().get(token)
    if found is None:
        raise ValueError(f"the tokenizer has no token {token}")
    return found


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """Turn one user message into the tokens that an answer is to follow."""
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(str(text), add_special_tokens=False))


def dialogue_encoder(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[str, str], tuple[list[int], int]]:
    """Return a fast encoder of (prompt, answer) for training.

    It gives the tokens of the whole dialogue, the end token included, and the
    number of them that belong to the prompt.
    """
    ids = tokenizer.get_vocab()
    user, assistant, end = ids[USER], ids[ASSISTANT], ids[END]

    def encode(prompt: str, answer: str) -> tuple[list[int], int]:
        head = [user, *(ids[char] for char in prompt), assistant]
        return [*head, *(ids[char] for char in answer), end], len(head)

    return encode
