"""Group-relative policy optimization (GRPO) for answers a program can check.

For each problem a group of answers is sampled and scored; an answer's advantage is
its reward less its group's mean (Shao et al. 2024, arXiv:2402.03300). What travels
between workers and a learner is plain: `Rollout` holds numpy arrays, and weights are
bytes in the safetensors format. Nothing here knows of a network.

python -m examples.grpo [--seed N] [--steps N] runs the whole loop in one process.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load, save
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from examples.generation import complete
from examples.measure_model import BUNDLED_MODEL, accuracy
from examples.tasks import Problem, is_right, split_of, sum_problem
from examples.tokenizer import END, encode_prompt, token_id

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Settings:
    """What a run is tuned by. `problems` and `group` are per step, over all workers."""

    problems: int = 96
    group: int = 8
    steps: int = 40
    temperature: float = 1.0
    learning_rate: float = 3e-4
    clip: float = 0.2
    longest_answer: int = 6


@dataclass(frozen=True)
class Rollout:
    """Sampled and scored groups of answers.

    `version` numbers the weights that sampled them. `prompts` is int64
    `[problems, prompt_tokens]`; `answers` int64, `log_probs` float32 and `mask` bool are
    `[problems, group, answer_tokens]`; `rewards` is float32 `[problems, group]`.
    """

    version: int
    prompts: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    log_probs: FloatArray
    mask: npt.NDArray[np.bool_]
    rewards: FloatArray


@dataclass(frozen=True)
class StepReport:
    """What one policy step saw: the mean reward, the share of groups that disagreed
    within themselves (only those teach), the share of clipped tokens."""

    reward: float
    useful: float
    clipped: float


def draw_sums(rng: Random, number: int) -> list[Problem]:
    """Draw three-digit sums in one wording, from the training side of the split."""
    return _sums(rng, number, "train")


def held_out_sums(number: int) -> list[Problem]:
    """The same `number` three-digit sums each time, which no training ever saw."""
    return _sums(Random("held-out sums"), number, "held-out")


def _sums(rng: Random, number: int, split: str) -> list[Problem]:
    found: list[Problem] = []
    while len(found) < number:
        problem = sum_problem(rng.randint(100, 999), rng.randint(100, 999))
        if split_of(problem) == split:
            found.append(problem)
    return found


def sample_rollout(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    settings: Settings,
    *,
    seed: int,
    version: int = 0,
) -> Rollout:
    """Sample a group of answers to each problem and score it: 1 if right, else 0.

    All prompts must have one length in tokens; otherwise `ValueError`.
    """
    prompts = [encode_prompt(tokenizer, problem.prompt) for problem in problems]
    if len({len(prompt) for prompt in prompts}) != 1:
        raise ValueError("the prompts of one rollout must have one length in tokens")
    batch = torch.tensor(prompts)
    sampled = complete(
        model,
        batch,
        end=token_id(tokenizer, END),
        longest=settings.longest_answer,
        copies=settings.group,
        temperature=settings.temperature,
        generator=torch.Generator().manual_seed(seed),
    )
    texts = tokenizer.batch_decode(sampled.tokens, skip_special_tokens=True)
    owners = [problem for problem in problems for _ in range(settings.group)]
    right = [float(is_right(*pair)) for pair in zip(owners, texts, strict=True)]
    shape = (len(problems), settings.group, -1)
    return Rollout(
        version=version,
        prompts=batch.numpy(),
        answers=sampled.tokens.numpy().reshape(shape),
        log_probs=sampled.log_probs.numpy().reshape(shape),
        mask=sampled.mask.numpy().reshape(shape),
        rewards=np.array(right, dtype=np.float32).reshape(shape[:2]),
    )


def join(rollouts: Sequence[Rollout]) -> Rollout:
    """Join rollouts over their problems; shorter answers are filled up and masked out.

    The result carries the oldest version. An empty sequence is a `ValueError`.
    """
    if not rollouts:
        raise ValueError("there is no rollout to join")
    width = max(rollout.answers.shape[2] for rollout in rollouts)

    def widen(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        return np.pad(array, ((0, 0), (0, 0), (0, width - array.shape[2])))

    return Rollout(
        version=min(rollout.version for rollout in rollouts),
        prompts=np.concatenate([rollout.prompts for rollout in rollouts]),
        answers=np.concatenate([widen(rollout.answers) for rollout in rollouts]),
        log_probs=np.concatenate([widen(rollout.log_probs) for rollout in rollouts]),
        mask=np.concatenate([widen(rollout.mask) for rollout in rollouts]),
        rewards=np.concatenate([rollout.rewards for rollout in rollouts]),
    )


def group_advantages(rewards: FloatArray) -> FloatArray:
    """Centre and scale rewards within each group: `[problems, group]` in and out.

    A group whose answers all scored alike gets zeros.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    scale = rewards.std(axis=1, keepdims=True)
    return np.asarray(centred / (scale + 1e-4), dtype=np.float32)


def answer_log_probs(
    model: PreTrainedModel, prompts: torch.Tensor, answers: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Log-probabilities of answer tokens, with gradient.

    `prompts` is `[problems, prompt_tokens]`, `answers` and the result are
    `[problems, group, answer_tokens]`. Each prompt is read once for its whole group.
    """
    group = answers.shape[1]
    flat = answers.flatten(0, 1)
    cache = DynamicCache(config=model.config)
    first = model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
    logits = first.logits.repeat_interleave(group, dim=0)
    if flat.shape[1] > 1:
        cache.batch_repeat_interleave(group)
        rest = model(input_ids=flat[:, :-1], past_key_values=cache, use_cache=True)
        logits = torch.cat([logits, rest.logits], dim=1)
    scores = torch.log_softmax(logits.float() / temperature, dim=-1)
    return scores.gather(2, flat[:, :, None])[:, :, 0].view_as(answers)


class Learner:
    """A policy and its optimizer: takes rollouts, one gradient step each."""

    def __init__(self, model: PreTrainedModel, settings: Settings) -> None:
        self.model = model
        self.settings = settings
        self.version = 0
        self._optimizer = torch.optim.AdamW(
            model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0
        )

    def step(self, rollout: Rollout) -> StepReport:
        """Raise the clipped policy objective once and count up `version`."""
        advantages = group_advantages(rollout.rewards)
        useful = np.abs(advantages).max(axis=1) > 0
        clipped = 0.0
        if useful.any():
            clipped = self._ascend(rollout, advantages, useful)
        self.version += 1
        return StepReport(float(rollout.rewards.mean()), float(useful.mean()), clipped)

    def _ascend(
        self, rollout: Rollout, advantages: FloatArray, useful: npt.NDArray[np.bool_]
    ) -> float:
        answers = torch.from_numpy(rollout.answers[useful])
        mask = torch.from_numpy(rollout.mask[useful])
        sampled = torch.from_numpy(rollout.log_probs[useful])[mask]
        gain = torch.from_numpy(advantages[useful])[:, :, None].expand(answers.shape)[mask]
        prompts = torch.from_numpy(rollout.prompts[useful])
        now = answer_log_probs(self.model, prompts, answers, self.settings.temperature)[mask]
        ratio = (now - sampled).exp()
        near = ratio.clamp(1 - self.settings.clip, 1 + self.settings.clip)
        # One scale for every token, whatever its answer's length (Dr. GRPO, arXiv:2503.20783).
        loss = -torch.minimum(ratio * gain, near * gain).sum() / rollout.rewards.size
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float((ratio != near).float().mean())


def weights_to_bytes(model: PreTrainedModel) -> bytes:
    """Serialize the weights in the safetensors format; tied weights appear once."""
    return save({name: weight.detach() for name, weight in model.named_parameters()})


def load_weights(model: PreTrainedModel, data: bytes) -> None:
    """Put serialized weights into a model of the same shape; `ValueError` if they do not fit."""
    weights = load(data)
    own = dict(model.named_parameters())
    if weights.keys() != own.keys():
        raise ValueError("the weights belong to another model")
    with torch.no_grad():
        for name, weight in weights.items():
            if weight.shape != own[name].shape:
                raise ValueError(f"the weight {name} has the wrong shape")
            own[name].copy_(weight)


def improve(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: Settings, seed: int
) -> Iterator[StepReport]:
    """Run the loop in this process, one report per step."""
    learner = Learner(model, settings)
    rng = Random(seed)
    for step in range(settings.steps):
        problems = draw_sums(rng, settings.problems)
        seed_now = rng.getrandbits(32)
        yield learner.step(
            sample_rollout(model, tokenizer, problems, settings, seed=seed_now, version=step)
        )


def main() -> None:
    """Improve the bundled model in one process and print its held-out accuracy."""
    parser = argparse.ArgumentParser(description="Improve three-digit sums in one process.")
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="model folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--learning-rate", type=float, default=Settings.learning_rate)
    options = parser.parse_args()
    settings = Settings(steps=options.steps, learning_rate=options.learning_rate)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    problems = held_out_sums(400)
    started = time.monotonic()
    print(f"before: {accuracy(model, tokenizer, problems):.1%}", flush=True)
    for step, seen in enumerate(improve(model, tokenizer, settings, options.seed), 1):
        if step % 10 == 0:
            spent = time.monotonic() - started
            share = accuracy(model, tokenizer, problems)
            print(
                f"step {step}  {spent:.0f} s  reward {seen.reward:.2f}"
                f"  useful {seen.useful:.0%}  clipped {seen.clipped:.1%}  held-out {share:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
