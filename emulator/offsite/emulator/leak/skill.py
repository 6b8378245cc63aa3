"""Skill above chance, and what share of one model's another one has.

    share = (acc - chance) / (acc of the other - chance)

`acc` is that of lm-evaluation-harness, chance the accuracy of picking blindly. Both accuracies are
measured on the same questions, so the standard error is that of a ratio of paired means (delta
method): with x, y = 1 for a right answer and r the share, the spread of x - r·y over the questions,
divided by the other's skill and √n.

Rule: where the other model is not above chance, by two standard errors, there is no skill to take
a share of; the figure is None and says so.

Source of the measure: (EmuZS - 25)/(FullZS - 25), derived from the tables of Offsite-Tuning
(arXiv 2302.04870).
"""

import math
from collections.abc import Sequence

from offsite.emulator.figures import Figure
from offsite.emulator.questions import Question
from offsite.emulator.scoring import ChoiceScores, summarise

STANDARD_ERRORS = 2.0
"""How far above chance an accuracy must be to count as skill."""


def chance_level(questions: Sequence[Question]) -> float:
    """Accuracy of picking blindly among the choices of at least one question."""
    return sum(1 / len(question.choices) for question in questions) / len(questions)


def skill_share(
    scores: Sequence[ChoiceScores], over: Sequence[ChoiceScores], chance: float, *, whose: str
) -> Figure:
    """The share of the skill of ``over`` that ``scores`` have, of the same questions.

    ``whose`` names the model that gave ``over``, for the reason where there is no figure.
    """
    if len(scores) != len(over) or not over:
        raise ValueError(f"expected scores of the same questions, found {len(scores)}, {len(over)}")
    other = summarise(over)
    skill, n = other.acc - chance, len(over)
    if n < 2 or skill <= STANDARD_ERRORS * other.acc_stderr:
        return Figure(None, None, _no_skill(whose, other.acc, other.acc_stderr, chance, n))
    share = (summarise(scores).acc - chance) / skill
    spread = [
        (mine.correct - chance) - share * (theirs.correct - chance)
        for mine, theirs in zip(scores, over, strict=True)
    ]
    variance = sum(value * value for value in spread) / (n - 1)
    return Figure(share, math.sqrt(variance / n) / skill)


def _no_skill(whose: str, acc: float, stderr: float, chance: float, n: int) -> str:
    return (
        f"{whose} is not above chance on these questions ({acc:.3f} ± {stderr:.3f} of {n} right, "
        f"chance {chance:.3f}); expected at least {STANDARD_ERRORS:g} standard errors"
    )
