"""Measure a model's skills: greedy answers to seeded problems that training never saw,
but for the few skills that have no problems to spare.

python -m examples.measure_model [--model DIR] [--problems N] [--seed N]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from random import Random

from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from examples.generation import answer_greedily
from examples.tasks import SKILLS, Problem, draw, is_right
from examples.tokenizer import END, encode_prompt, token_id

BUNDLED_MODEL = Path(__file__).parent / "model"
LONGEST_ANSWER = 128


def held_out_problems(skill: str, number: int, seed: int) -> list[Problem]:
    """Draw `number` different held-out problems of a skill (fewer if there are not so many).

    A skill that holds nothing out gives all kinds of problems.
    """
    rng = Random(f"{seed}:{skill}")
    found: dict[str, Problem] = {}
    for _ in range(20 * number):
        problem = draw(skill, rng, "held-out")
        found.setdefault(problem.key, problem)
        if len(found) == number:
            break
    return list(found.values())


def answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    longest: int = LONGEST_ANSWER,
) -> list[str]:
    """Answer each prompt greedily, in at most `longest` tokens."""
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    tokens = answer_greedily(model, encoded, end=token_id(tokenizer, END), longest=longest)
    return [str(tokenizer.decode(row)) for row in tokens]


def accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem]
) -> float:
    """Give the share of problems, between 0 and 1, whose greedy answer is right."""
    longest = 1 + max(len(problem.answer) for problem in problems)
    given = answers(model, tokenizer, [problem.prompt for problem in problems], longest)
    right = sum(map(is_right, problems, given))
    return right / len(problems)


def main() -> None:
    """Print one line per skill: right answers, problems asked, and an example."""
    parser = argparse.ArgumentParser(description="Measure a model's skills on held-out problems.")
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL, help="model folder")
    parser.add_argument("--problems", type=int, default=500, help="problems per skill")
    parser.add_argument("--seed", type=int, default=1, help="which problems")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    print(f"{'skill':<12} {'right':>7} {'asked':>6}  example")
    for skill in SKILLS:
        problems = held_out_problems(skill, options.problems, options.seed)
        share = accuracy(model, tokenizer, problems)
        example = min(problems, key=lambda problem: len(problem.answer))
        text = answers(model, tokenizer, [example.prompt])[0]
        print(f"{skill:<12} {share:>7.1%} {len(problems):>6}  {example.prompt} -> {text}")


if __name__ == "__main__":
    main()
