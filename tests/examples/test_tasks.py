"""The problems have the answers they claim, and the held-out ones stay out of training."""

from random import Random

import pytest

from examples.tasks import (
    DRILLS,
    NOT_SPLIT,
    SKILLS,
    SUM_FORMS,
    WORDS,
    Problem,
    count_on_problem,
    count_problem,
    draw,
    is_right,
    sort_problem,
    split_of,
    sum_problem,
)

HELD_OUT_WITH_34 = [10, 33, 46, 67, 71, 84]


def test_a_sum_asks_and_answers() -> None:
    problem = sum_problem(34, 57)
    assert (problem.prompt, problem.answer) == ("What is 34+57?", "91")
    assert problem.skill == "sum2"
    assert sum_problem(999, 1).skill == "sum3"


def test_counting_includes_both_ends() -> None:
    problem = count_problem(8, 11)
    assert (problem.prompt, problem.answer) == ("Count from 8 to 11.", "8 9 10 11")


def test_counting_on_starts_after_the_number() -> None:
    problem = count_on_problem(7)
    assert problem.prompt == "Count on from 7."
    assert problem.answer == "8 9 10 11 12 13 14 15 16 17 18 19"


def test_sorting_digits_and_words() -> None:
    digits = sort_problem(["7", "3", "9", "3"])
    assert (digits.skill, digits.prompt, digits.answer) == (
        "sort_digits",
        "Sort: 7 3 9 3",
        "3 3 7 9",
    )
    words = sort_problem(["pear", "fig", "apple"])
    assert (words.skill, words.answer) == ("sort_words", "apple fig pear")


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_seed_draws_the_same_problems(skill: str) -> None:
    first, second = Random(3), Random(3)
    assert [draw(skill, first) for _ in range(20)] == [draw(skill, second) for _ in range(20)]


@pytest.mark.parametrize("skill", sorted(SKILLS.keys() - NOT_SPLIT))
def test_both_sides_of_the_split_are_drawn_and_never_meet(skill: str) -> None:
    rng = Random(5)
    train = {draw(skill, rng, "train").key for _ in range(200)}
    held_out = {draw(skill, rng, "held-out").key for _ in range(50)}
    assert train
    assert held_out
    assert not train & held_out


@pytest.mark.parametrize("skill", SKILLS)
def test_a_drawn_problem_names_its_skill(skill: str) -> None:
    assert draw(skill, Random(1)).skill == skill


def test_every_wording_of_a_sum_is_on_one_side_of_the_split() -> None:
    for first in range(10, 60):
        sides = {split_of(sum_problem(first, 77, form)) for form in SUM_FORMS}
        assert len(sides) == 1


def test_about_one_sum_in_ten_is_held_out() -> None:
    sums = [sum_problem(a, b) for a in range(10, 100) for b in range(10, 100)]
    held_out = sum(split_of(problem) == "held-out" for problem in sums)
    assert 0.08 < held_out / len(sums) < 0.12


def test_the_split_is_the_same_on_every_machine() -> None:
    held_out = [b for b in range(10, 100) if split_of(sum_problem(34, b)) == "held-out"]
    assert held_out == HELD_OUT_WITH_34


def test_counting_on_is_drawn_from_both_sides() -> None:
    rng = Random(6)
    sides = {split_of(draw("count_on", rng)) for _ in range(100)}
    assert sides == {"train", "held-out"}


def test_an_unknown_skill_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        draw("juggling", Random(0))


@pytest.mark.parametrize(
    ("text", "right"),
    [("91", True), (" 91\n", True), ("90", False), ("091", False), ("91 ", True), ("", False)],
)
def test_only_the_exact_answer_is_right(text: str, right: bool) -> None:
    assert is_right(sum_problem(34, 57), text) is right


def test_words_are_plain_and_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS)
    assert all(word.isalpha() and word.islower() for word in WORDS)


def test_a_problem_cannot_be_changed() -> None:
    problem = Problem("sum2", "1+1", "2", "1+1")
    with pytest.raises(AttributeError):
        problem.answer = "3"  # type: ignore[misc]


@pytest.mark.parametrize("drill", DRILLS)
def test_a_drill_asks_what_its_skill_asks_from_a_single_digit(drill: str) -> None:
    rng = Random(4)
    for _ in range(50):
        problem = draw(drill, rng)
        assert problem.skill == drill.removesuffix("_from_digit")
        assert problem.skill in NOT_SPLIT or split_of(problem) == "train"
        assert problem.key.split("..")[0] in "0123456789"
