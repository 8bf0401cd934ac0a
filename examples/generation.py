"""Batched answers from a causal language model, greedy or sampled, with log-probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel


@dataclass(frozen=True)
class Completions:
    """Answers to `batch` prompts of one length.

    `tokens` is int64 `[batch, tokens]`, filled with the end token after the first
    one; `log_probs` is float32 `[batch, tokens]` under the sampling distribution;
    `mask` is bool `[batch, tokens]`, true up to and including the first end token.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor
    mask: torch.Tensor


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    prompts: torch.Tensor,
    *,
    end: int,
    longest: int,
    copies: int = 1,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Completions:
    """Answer every prompt `copies` times; row `i * copies + j` is copy `j` of prompt `i`.

    `prompts` is int64 `[prompts, tokens]`: equal lengths, so nothing is padded.
    `longest` bounds an answer in tokens. Temperature 0 means greedy. Each prompt is
    read once, and its cache repeated for the copies.
    """
    cache = DynamicCache(config=model.config)
    output = model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits = output.logits[:, -1].float().repeat_interleave(copies, dim=0)
    if copies > 1:
        cache.batch_repeat_interleave(copies)

    live = torch.ones(logits.shape[0], dtype=torch.bool)
    tokens, log_probs, mask = [], [], []
    for step in range(longest):
        scores = torch.log_softmax(logits / temperature if temperature else logits, dim=-1)
        if temperature:
            chosen = torch.multinomial(scores.exp(), 1, generator=generator)
        else:
            chosen = scores.argmax(dim=-1, keepdim=True)
        chosen = torch.where(live[:, None], chosen, end)
        tokens.append(chosen[:, 0])
        log_probs.append(scores.gather(1, chosen)[:, 0])
        mask.append(live)
        live = live & (chosen[:, 0] != end)
        if step + 1 == longest or not live.any():
            break
        output = model(input_ids=chosen, past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1].float()
    return Completions(torch.stack(tokens, 1), torch.stack(log_probs, 1), torch.stack(mask, 1))


def answer_greedily(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, end: int, longest: int
) -> list[list[int]]:
    """Answer prompts of any lengths greedily; the end token is left out of the answers."""
    same_length: dict[int, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        same_length[len(prompt)].append(index)
    answers: list[list[int]] = [[] for _ in prompts]
    for indices in same_length.values():
        batch = torch.tensor([list(prompts[index]) for index in indices])
        tokens = complete(model, batch, end=end, longest=longest).tokens.tolist()
        for index, row in zip(indices, tokens, strict=True):
            answers[index] = row[: row.index(end)] if end in row else row
    return answers
