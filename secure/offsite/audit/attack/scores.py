"""What an attacker computes for a row: the larger, the more it looks like one that was learnt.

With b, a the loss of a row per learnt token before and after tuning, n its learnt tokens:

    tuned loss            -a               the adapter alone, without a reference
    mean difference       b - a            what tuning gained; the base model is the reference
    total difference      n·(b - a)        the logarithm of the likelihood ratio of the whole row
    adjusted difference   b - a - f(b)     less what rows as difficult gain that were not learnt

f is a straight line fitted to held-out rows that are measured nowhere else.

Sources: Yeom et al. 2018 (arXiv 1709.01604) for the loss; Carlini et al. 2021 (2012.07805),
section 5.2, for the reference model; Watson et al. 2022 (2111.08440) for the difficulty.
"""

from dataclasses import dataclass
from enum import StrEnum

from offsite.audit.attack.intervals import Floats
from offsite.audit.attack.losses import Pair


class Score(StrEnum):
    """The attacks that are tried."""

    TUNED_LOSS = "tuned_loss"
    MEAN_DIFFERENCE = "mean_difference"
    TOTAL_DIFFERENCE = "total_difference"
    ADJUSTED_DIFFERENCE = "adjusted_difference"


@dataclass(frozen=True, slots=True)
class Difficulty:
    """The line that says how much an unlearnt row of some loss before tuning gains."""

    slope: float
    intercept: float

    @classmethod
    def fitted(cls, held_out: Pair) -> "Difficulty":
        """By least squares; flat where the rows are all as difficult, or a single one."""
        losses = held_out.before.per_token
        gains = losses - held_out.after.per_token
        spread = losses - losses.mean()
        variance = float(spread @ spread)
        slope = float(spread @ gains) / variance if variance > 0 else 0.0
        return cls(slope, float(gains.mean()) - slope * float(losses.mean()))

    def gain(self, losses: Floats) -> Floats:
        """Expected of rows that were not learnt."""
        expected: Floats = self.slope * losses + self.intercept
        return expected


def score(kind: Score, rows: Pair, difficulty: Difficulty) -> Floats:
    """The scores of rows, [U]."""
    before, after = rows.before.per_token, rows.after.per_token
    match kind:
        case Score.TUNED_LOSS:
            return -after
        case Score.MEAN_DIFFERENCE:
            return before - after
        case Score.TOTAL_DIFFERENCE:
            return rows.before.nats - rows.after.nats
        case Score.ADJUSTED_DIFFERENCE:
            adjusted: Floats = before - after - difficulty.gain(before)
            return adjusted
