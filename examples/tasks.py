"""The bundled model's skills: seeded problems with answers a program can check.

Every problem has one right answer, so a reward needs no judge. One tenth of all
problems is held out: it is never used to train, only to measure. Counting on has too
few problems for that; it is trained and measured on all of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Literal

Split = Literal["train", "held-out"]

WORDS = (
    "ant", "apple", "bear", "bee", "cat", "cow", "dog", "duck", "egg", "fig", "fish", "fox",
    "goat", "hat", "hen", "ice", "jam", "kite", "lamp", "leaf", "lion", "milk", "moon", "nut",
    "owl", "pear", "pig", "plum", "rain", "rose", "sea", "snow", "star", "sun", "tea", "tree",
    "wolf", "yak", "zebra",
)  # fmt: skip

SUM_FORMS = ("{}+{}", "{}+{}=", "What is {}+{}?", "What is {} + {}?")
COUNT_ON_LENGTH = 12
LONGEST_COUNT = 40
HELD_OUT_ONE_IN = 10
NOT_SPLIT = frozenset({"count_on"})


@dataclass(frozen=True)
class Problem:
    """One question and its only right answer.

    `key` names the problem without its wording, so that two wordings of the same
    sum fall on the same side of the split.
    """

    skill: str
    prompt: str
    answer: str
    key: str


def sum_problem(first: int, second: int, form: str = SUM_FORMS[2]) -> Problem:
    """Ask for `first + second` in the words of `form`."""
    digits = max(len(str(first)), len(str(second)))
    return Problem(
        skill=f"sum{digits}",
        prompt=form.format(first, second),
        answer=str(first + second),
        key=f"{first}+{second}",
    )


def count_problem(first: int, last: int) -> Problem:
    """Ask to count from `first` to `last`, both included."""
    answer = " ".join(str(number) for number in range(first, last + 1))
    return Problem("count", f"Count from {first} to {last}.", answer, f"{first}..{last}")


def count_on_problem(start: int) -> Problem:
    """Ask for the `COUNT_ON_LENGTH` numbers after `start`."""
    numbers = range(start + 1, start + 1 + COUNT_ON_LENGTH)
    answer = " ".join(str(number) for number in numbers)
    return Problem("count_on", f"Count on from {start}.", answer, f"{start}..")


def sort_problem(items: list[str]) -> Problem:
    """Ask to sort single digits or lower-case words."""
    text = " ".join(items)
    skill = "sort_digits" if items[0].isdigit() else "sort_words"
    return Problem(skill, f"Sort: {text}", " ".join(sorted(items)), text)


def _sum2(rng: Random) -> Problem:
    return sum_problem(rng.randint(10, 99), rng.randint(10, 99), rng.choice(SUM_FORMS))


def _sum3(rng: Random) -> Problem:
    return sum_problem(rng.randint(100, 999), rng.randint(100, 999), rng.choice(SUM_FORMS))


def _count_length(rng: Random) -> int:
    # Short counts are the commoner ones: from them a model learns where to stop.
    return rng.randint(3, rng.choice((6, 12, 24, LONGEST_COUNT)))


def _count(rng: Random) -> Problem:
    length = _count_length(rng)
    first = rng.randint(1, 100 - length)
    return count_problem(first, first + length - 1)


def _count_on(rng: Random) -> Problem:
    return count_on_problem(rng.randint(0, 99 - COUNT_ON_LENGTH))


def _count_from_digit(rng: Random) -> Problem:
    first = rng.randint(0, 9)
    return count_problem(first, first + _count_length(rng) - 1)


def _count_on_from_digit(rng: Random) -> Problem:
    return count_on_problem(rng.randint(0, 9))


def _sort_digits(rng: Random) -> Problem:
    return sort_problem([str(rng.randint(0, 9)) for _ in range(rng.randint(3, 6))])


def _sort_words(rng: Random) -> Problem:
    return sort_problem(rng.sample(WORDS, rng.randint(3, 5)))


SKILLS: Mapping[str, Callable[[Random], Problem]] = MappingProxyType(
    {
        "sum2": _sum2,
        "sum3": _sum3,
        "count": _count,
        "count_on": _count_on,
        "sort_digits": _sort_digits,
        "sort_words": _sort_words,
    }
)

# More of what a skill's own draw makes rarely; used to train, not to measure.
DRILLS: Mapping[str, Callable[[Random], Problem]] = MappingProxyType(
    {"count_from_digit": _count_from_digit, "count_on_from_digit": _count_on_from_digit}
)


def split_of(problem: Problem) -> Split:
    """Say on which side of the split a problem falls; stable across machines and runs."""
    name = f"{problem.skill}:{problem.key}".encode()
    return "held-out" if zlib.crc32(name) % HELD_OUT_ONE_IN == 0 else "train"


def draw(skill: str, rng: Random, split: Split = "train") -> Problem:
    """Draw one problem of a skill or a drill from one side of the split.

    The skills in `NOT_SPLIT` are drawn from both sides.
    Raises `KeyError` for a skill that does not exist.
    """
    make = DRILLS[skill] if skill in DRILLS else SKILLS[skill]
    while True:
        problem = make(rng)
        if problem.skill in NOT_SPLIT or split_of(problem) == split:
            return problem


def is_right(problem: Problem, text: str) -> bool:
    """Check a finished answer; only white space around it is forgiven."""
    return text.strip() == problem.answer
