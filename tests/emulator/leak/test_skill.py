"""Shares of skill above chance, and their errors."""

import math
import random

import pytest

from offsite.emulator.leak.skill import chance_level, skill_share
from offsite.emulator.questions import Question
from offsite.emulator.scoring import ChoiceScores


def scores(right: list[bool]) -> list[ChoiceScores]:
    """Of questions with four choices, answered as said."""
    answers = {True: (-1.0, -2.0, -3.0, -4.0), False: (-4.0, -3.0, -2.0, -1.0)}
    return [ChoiceScores(answers[is_right], (1, 1, 1, 1), 0) for is_right in right]


def drawn(generator: random.Random, n: int, full: float, drop: float) -> tuple[list[bool], ...]:
    """Answers of a model, and of one that loses some of its right ones to chance."""
    over = [generator.random() < full for _ in range(n)]
    own = [r if generator.random() > drop else generator.random() < 0.25 for r in over]
    return own, over


def test_chance_is_one_in_the_number_of_choices() -> None:
    two, four = Question("q", ("a", "b"), 0), Question("q", ("a", "b", "c", "d"), 1)
    assert chance_level([two, four]) == pytest.approx((0.5 + 0.25) / 2)


def test_the_share_is_of_what_is_above_chance() -> None:
    over, own = scores([True] * 60 + [False] * 40), scores([True] * 40 + [False] * 60)
    found = skill_share(own, over, 0.25, whose="x")
    assert found.value == pytest.approx((0.40 - 0.25) / (0.60 - 0.25))
    same = skill_share(over, over, 0.25, whose="x")
    assert (same.value, same.stderr) == (pytest.approx(1.0), pytest.approx(0.0))


def test_it_can_be_above_one_and_below_zero() -> None:
    over = scores([True] * 60 + [False] * 40)
    better, worse = scores([True] * 70 + [False] * 30), scores([True] * 10 + [False] * 90)
    assert (skill_share(better, over, 0.25, whose="x").value or 0) > 1
    assert (skill_share(worse, over, 0.25, whose="x").value or 0) < 0


def test_the_error_is_what_repeating_shows() -> None:
    """The spread of the share over many draws of questions, against what one draw claims."""
    generator = random.Random(4)
    found = []
    for _ in range(400):
        own, over = drawn(generator, 200, 0.6, 0.4)
        found.append(skill_share(scores(own), scores(over), 0.25, whose="x"))
    values = [figure.value or 0 for figure in found]
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    claimed = sum(figure.stderr or 0 for figure in found) / len(found)
    assert claimed == pytest.approx(spread, rel=0.12)


def test_without_skill_to_share_there_is_no_figure_but_a_reason() -> None:
    barely = scores([True] * 28 + [False] * 72)  # 0.28 ± 0.045, chance 0.25
    found = skill_share(barely, barely, 0.25, whose="the full model")
    assert found.value is None and found.stderr is None
    assert found.reason.startswith("the full model is not above chance on these questions (0.280")
    assert found.to_json() == {"value": None, "reason": found.reason}


def test_scores_of_other_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="the same questions"):
        skill_share(scores([True]), scores([True, True]), 0.25, whose="x")
