"""Membership inference: can it be told from the adapter which rows were tuned on?

    (1) either side, members and held-out rows, is split at random: to calibrate, to measure
    (2) on the calibration rows: the strongest score, and its threshold with the largest advantage
    (3) on the others: advantage and rates (Clopper-Pearson), AUC (bootstrap), a test against chance

Notable: what was used to choose is never used to measure. The best threshold picked on the audited
rows themselves "finds" something in four adapters out of ten that hold nothing.

What it says: how much *this* attack gains on *this* adapter. It is a lower bound of what an attacker
could do and never shows that there is no leak. It holds where the held-out rows were drawn at random
from the same rows as the members (`held_out.draw_held_out`); rows of another kind are told apart
without having been learnt.
"""

import math
from dataclasses import dataclass

import numpy as np

from offsite.audit.attack.intervals import (
    Floats,
    Interval,
    area,
    auc,
    clopper_pearson,
    difference,
    permutation,
)
from offsite.audit.attack.losses import Pair
from offsite.audit.attack.scores import Difficulty, Score, score
from offsite.audit.attack.settings import AttackSettings
from offsite.emulator.strict_json import JsonObject
from offsite.secure.errors import ConfigError

LEAST_ROWS = 20
"""Of either side; with fewer no interval says anything."""


@dataclass(frozen=True, slots=True)
class LowRate:
    """How many members are named at a threshold that names few others."""

    target: float
    false_positives: Interval
    true_positives: Interval

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "target": self.target,
            "false_positive_rate": self.false_positives.to_json(),
            "true_positive_rate": self.true_positives.to_json(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """What the strongest attack achieved on rows that it had not seen."""

    score: Score
    threshold: float
    members: Floats
    """Scores of the measured members."""
    held_out: Floats
    """Scores of the measured rows that were held out."""
    area: Interval
    p_value: float
    """How often chance alone gives such an area."""
    true_positives: Interval
    false_positives: Interval
    advantage: Interval
    low_rate: LowRate | None
    """None where there are too few held-out rows to set its threshold."""

    def is_beyond_chance(self, confidence: float) -> bool:
        """Whether chance alone would give it less often than the confidence leaves."""
        return self.p_value < 1 - confidence

    def to_json(self) -> JsonObject:
        """The figures, without the scores."""
        low_rate = self.low_rate
        return {
            "score": self.score.value,
            "threshold": self.threshold,
            "members_measured": len(self.members),
            "held_out_measured": len(self.held_out),
            "auc": self.area.to_json(),
            "p_value": self.p_value,
            "true_positive_rate": self.true_positives.to_json(),
            "false_positive_rate": self.false_positives.to_json(),
            "advantage": self.advantage.to_json(),
            "low_rate": None if low_rate is None else low_rate.to_json(),
        }


def infer_membership(
    members: Pair, held_out: Pair, settings: AttackSettings, random: np.random.Generator
) -> Membership:
    """The attack on the losses of members and held-out rows.

    Raises ConfigError where there are too few rows of either side.
    """
    for name, rows in (("members", members), ("held-out rows", held_out)):
        if len(rows) < LEAST_ROWS:
            raise ConfigError(
                f"expected at least {LEAST_ROWS} {name} to measure an attack on, found {len(rows)}"
            )
    (chosen_in, tested_in), (chosen_out, tested_out) = (
        _split(rows, settings.calibration_share, random) for rows in (members, held_out)
    )
    difficulty = Difficulty.fitted(chosen_out)
    calibration = {
        kind: (score(kind, chosen_in, difficulty), score(kind, chosen_out, difficulty))
        for kind in Score
    }
    best = max(Score, key=lambda kind: area(*calibration[kind]))
    inside, outside = (score(best, rows, difficulty) for rows in (tested_in, tested_out))
    threshold = _best_threshold(*calibration[best])
    return Membership(
        best,
        threshold,
        inside,
        outside,
        auc(inside, outside, settings.confidence, settings.resamples, random),
        permutation(inside, outside, settings.resamples, random),
        _rate(inside, threshold, settings.confidence),
        _rate(outside, threshold, settings.confidence),
        difference(_named(inside, threshold), _named(outside, threshold), settings.confidence),
        _at_low_rate(calibration[best][1], inside, outside, settings),
    )


def _split(rows: Pair, share: float, random: np.random.Generator) -> tuple[Pair, Pair]:
    """Rows to calibrate with and rows to measure; at least one of each."""
    order = random.permutation(len(rows))
    count = min(max(round(share * len(rows)), 1), len(rows) - 1)
    return rows.take(order[:count]), rows.take(order[count:])


def _best_threshold(members: Floats, others: Floats) -> float:
    """The score from which on a row is named, with the largest advantage on calibration rows."""
    candidates = np.unique(np.concatenate([members, others]))
    hits = 1 - np.searchsorted(np.sort(members), candidates, "left") / len(members)
    alarms = 1 - np.searchsorted(np.sort(others), candidates, "left") / len(others)
    return float(candidates[np.argmax(hits - alarms)])


def _named(scores: Floats, threshold: float) -> tuple[int, int]:
    return int((scores >= threshold).sum()), len(scores)


def _rate(scores: Floats, threshold: float, confidence: float) -> Interval:
    return clopper_pearson(*_named(scores, threshold), confidence)


def _at_low_rate(
    calibration: Floats, inside: Floats, outside: Floats, settings: AttackSettings
) -> LowRate | None:
    """Named is a row above the k-th largest of n scores that were not learnt, k = rate·(n + 1).

    An unlearnt row is then named with probability at most the rate (split conformal, exact for
    exchangeable rows).
    """
    place = math.floor(settings.low_rate * (len(calibration) + 1))
    if place < 1:
        return None
    threshold = float(np.nextafter(np.sort(calibration)[-place], np.inf))
    return LowRate(
        settings.low_rate,
        _rate(outside, threshold, settings.confidence),
        _rate(inside, threshold, settings.confidence),
    )
