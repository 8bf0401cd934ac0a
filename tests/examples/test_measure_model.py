"""Measuring: the same problems for the same seed, and a table of every skill."""

import sys

import pytest

from examples.measure_model import held_out_problems, main
from examples.tasks import NOT_SPLIT, SKILLS, split_of


@pytest.mark.parametrize("skill", SKILLS)
def test_problems_are_distinct_held_out_and_repeatable(skill: str) -> None:
    problems = held_out_problems(skill, 30, seed=1)
    assert problems == held_out_problems(skill, 30, seed=1)
    assert len({problem.key for problem in problems}) == len(problems)
    if skill not in NOT_SPLIT:
        assert {split_of(problem) for problem in problems} == {"held-out"}


def test_another_seed_asks_other_problems() -> None:
    assert held_out_problems("sum3", 10, seed=1) != held_out_problems("sum3", 10, seed=2)


def test_a_skill_with_few_problems_gives_those_it_has() -> None:
    assert len(held_out_problems("count_on", 500, seed=1)) == 88


def test_the_table_names_every_skill(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["measure_model", "--problems", "4"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["skill", *SKILLS]
