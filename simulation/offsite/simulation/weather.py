"""Who drops out when, and who is slow: what a fleet of real machines does to a campaign, by a seed.

Dropping out: in every attempt at a round each client that is asked leaves with the probability
`dropout`, for good, at a moment drawn from the six at which it should have answered: while it
tunes, or at one of the five exchanges of the sum. So secure aggregation meets dropouts in every
phase.

Being slow: a client's speed is a factor of time that it keeps through the campaign, log-normal
around 1. A share `stragglers` of the clients are slow machines, log-normal around
`STRAGGLER_TIMES`. Who is still tuning when the deadline passes is late.

Everything is drawn by hashes of (seed, what, who, when), so one more client or round changes
nothing for the others, and two strategies meet the same weather."""

import hashlib
import math
from dataclasses import dataclass
from enum import IntEnum
from statistics import NormalDist
from typing import Final

from offsite.secure.errors import ConfigError

SPREAD: Final = 0.25
"""Of the logarithm of a usual client's factor: nine in ten are within 1.5 times."""
STRAGGLER_TIMES: Final = 5.0
STRAGGLER_SPREAD: Final = 0.5
EXCHANGE_S: Final = 1.0
"""What an answer after tuning takes at a client of factor 1."""


class Moment(IntEnum):
    """When a client should answer, in the order of a round."""

    TUNE = 0
    SHARE = 1
    ACKNOWLEDGE = 2
    MASK = 3
    CONFIRM = 4
    REVEAL = 5


@dataclass(frozen=True, slots=True)
class Weather:
    """See the module."""

    dropout: float = 0.0
    stragglers: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("--dropout", self.dropout), ("--stragglers", self.stragglers)):
            if not 0 <= value <= 1:
                raise ConfigError(f"{name}: expected a share from 0 to 1, found {value}")

    def leaves_at(self, client_id: str, round_number: int, attempt: int) -> Moment | None:
        """The first moment at which a client does not answer any more; None: it stays."""
        when = f"{client_id}/{round_number}/{attempt}"
        if self._uniform("leaves", when) >= self.dropout:
            return None
        return Moment(int(len(Moment) * self._uniform("moment", when)))

    def answers(self, client_id: str, round_number: int, attempt: int, moment: Moment) -> bool:
        """Whether a client is still there at a moment of a round."""
        leaves = self.leaves_at(client_id, round_number, attempt)
        return leaves is None or moment < leaves

    def is_straggler(self, client_id: str) -> bool:
        """Whether it is one of the slow machines."""
        return self._uniform("straggler", client_id) < self.stragglers

    def factor(self, client_id: str) -> float:
        """By how much longer than usual everything takes."""
        normal = NormalDist().inv_cdf(self._uniform("speed", client_id))
        if self.is_straggler(client_id):
            return STRAGGLER_TIMES * math.exp(STRAGGLER_SPREAD * normal)
        return math.exp(SPREAD * normal)

    def _uniform(self, what: str, who: str) -> float:
        """Above 0 and below 1."""
        text = f"offsite/weather/1|{self.seed}|{what}|{who}"
        word = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        return (word + 0.5) / 2.0**48
