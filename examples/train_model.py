"""Train the bundled model from nothing, with a seed, on a laptop's processor.

python -m examples.train_model --out DIR [--seed 0] [--steps N]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from examples.measure_model import LONGEST_ANSWER, accuracy, held_out_problems
from examples.tasks import SKILLS, draw
from examples.tokenizer import PAD, build_tokenizer, dialogue_encoder, token_id

LONGEST = 512
WEIGHT_DECAY = 0.1
IGNORED = -100

# The skill the model is to stay weak at is trained only while it is below its target.
WEAK_SKILL = "sum3"
WEAK_TARGET = 0.25
PROBE_PROBLEMS = 128


@dataclass(frozen=True)
class Stage:
    """Some steps of training with a schedule of their own.

    `batches` says how many problems of which skill a step takes; every batch weighs
    the same. `probe_every` is in steps.
    """

    steps: int
    warmup_steps: int
    peak_rate: float
    probe_every: int
    batches: Mapping[str, Mapping[str, int]]


BASICS = Stage(
    steps=1000,
    warmup_steps=60,
    peak_rate=3e-3,
    probe_every=25,
    batches={
        "sums": {"sum2": 104, "sum3": 8},
        "sorting": {"sort_digits": 20, "sort_words": 30},
        "counting": {"count": 22, "count_on": 4},
    },
)
LAST_TOUCHES = Stage(
    steps=300,
    warmup_steps=20,
    peak_rate=1e-3,
    probe_every=10,
    batches={
        "sums": {"sum2": 80, "sum3": 24},
        "sorting": {"sort_digits": 20, "sort_words": 30},
        "counting": {
            "count": 16,
            "count_on": 6,
            "count_from_digit": 10,
            "count_on_from_digit": 4,
        },
    },
)


def build_model(tokenizer: PreTrainedTokenizerBase, seed: int) -> LlamaForCausalLM:
    """Make an untrained model of eight layers and about 0.9 million float32 weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


Row = tuple[list[int], int]
Batch = tuple[torch.Tensor, torch.Tensor]


def draw_rows(
    counts: Mapping[str, int], rng: Random, encode: Callable[[str, str], Row]
) -> list[Row]:
    """Draw training problems as (tokens, prompt tokens), the shortest first."""
    rows = []
    for skill, count in counts.items():
        for _ in range(count):
            problem = draw(skill, rng)
            rows.append(encode(problem.prompt, problem.answer))
    return sorted(rows, key=lambda row: len(row[0]))


def make_batch(rows: Sequence[Row], pad: int) -> Batch:
    """Lay rows side by side: input and target tokens, int64 `[batch, tokens]` each.

    Targets are the answers alone; the prompt and the padding are ignored.
    """
    width = max(len(tokens) for tokens, _ in rows) - 1
    inputs = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), IGNORED)
    for row, (tokens, prompt) in enumerate(rows):
        ids = torch.tensor(tokens)
        inputs[row, : len(ids) - 1] = ids[:-1]
        targets[row, prompt - 1 : len(ids) - 1] = ids[prompt:]
    return inputs, targets


def answer_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Cross-entropy summed over the answer tokens, in nats."""
    inputs, targets = batch
    # Padding stands on the right, where causal attention keeps it from every answer.
    hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
    wanted = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[wanted]), targets[wanted], reduction="sum")


def add_gradient(model: LlamaForCausalLM, rows: Sequence[Row], pad: int) -> float:
    """Add the gradient of the mean loss per answer token, and return that loss in nats.

    The shorter and the longer half of the rows go apart, so that little is padding.
    """
    tokens = sum(len(row) - prompt for row, prompt in rows)
    half = len(rows) // 2
    total = 0.0
    for part in filter(None, (rows[:half], rows[half:])):
        loss = answer_loss(model, make_batch(part, pad)) / tokens
        torch.autograd.backward(loss)
        total += loss.item()
    return total


def make_optimizer(model: LlamaForCausalLM, rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    matrices = [weight for weight in model.parameters() if weight.dim() > 1]
    vectors = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, stage: Stage
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm up along a line, then fall along a cosine to a hundredth."""
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=stage.warmup_steps)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, max(1, stage.steps - stage.warmup_steps), eta_min=stage.peak_rate / 100
    )
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, fall], [stage.warmup_steps])


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path) -> None:
    """Write an ordinary model folder."""
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=LONGEST_ANSWER,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def report(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, problems: int, seed: int = 0
) -> str:
    """Measure every skill on a few held-out problems, in one line."""
    shares = (
        f"{skill} {accuracy(model, tokenizer, held_out_problems(skill, problems, seed)):.0%}"
        for skill in SKILLS
    )
    return "  ".join(shares)


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, seed: int, stage: Stage
) -> None:
    """Train in place, print the losses and save what there is now and then."""
    rng = Random(seed)
    encode = dialogue_encoder(tokenizer)
    pad = token_id(tokenizer, PAD)
    optimizer = make_optimizer(model, stage.peak_rate)
    schedule = make_schedule(optimizer, stage)
    started = time.monotonic()
    left_out: set[str] = set()
    for step in range(1, stage.steps + 1):
        losses = {}
        for name, counts in stage.batches.items():
            wanted = {skill: count for skill, count in counts.items() if skill not in left_out}
            losses[name] = add_gradient(model, draw_rows(wanted, rng, encode), pad)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % stage.probe_every == 0:
            probe = [draw(WEAK_SKILL, rng) for _ in range(PROBE_PROBLEMS)]
            enough = accuracy(model, tokenizer, probe) >= WEAK_TARGET
            left_out = {WEAK_SKILL} if enough else set()
        if step % 50 == 0:
            spent = time.monotonic() - started
            now = "  ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
            state = f"  without {WEAK_SKILL}" if left_out else ""
            print(f"step {step}/{stage.steps}  {spent:.0f} s  {now}{state}", flush=True)
        if step % 200 == 0 or step == stage.steps:
            save(model, tokenizer, out)
            print("  " + report(model, tokenizer, 60), flush=True)


def main() -> None:
    """Train, measure and save."""
    parser = argparse.ArgumentParser(description="Train the bundled model.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=BASICS.steps, help="of the first stage")
    parser.add_argument("--start", type=Path, help="model folder to do the last stage on")
    parser.add_argument("--threads", type=int, default=1, help="processor threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer: PreTrainedTokenizerBase = build_tokenizer(LONGEST)
    if options.start:
        model = LlamaForCausalLM.from_pretrained(options.start)
        tokenizer = AutoTokenizer.from_pretrained(options.start)
    else:
        model = build_model(tokenizer, options.seed)
        train(model, tokenizer, options.out, options.seed, replace(BASICS, steps=options.steps))
    train(model, tokenizer, options.out, options.seed + 1, LAST_TOUCHES)


if __name__ == "__main__":
    main()
