"""Exposure of planted secrets: how far up among its possible values the model ranks the true one.

    exposure = log2(candidates + 1) - log2(rank)        bits; rank 1 is the likeliest

Ranked twice: by the tuned model alone, as published, and by what tuning gained, the base model's own
preferences taken away.

Notable: of a secret that was not learnt every rank is as likely, so rank / (candidates + 1) is a
p-value, without any assumption about the model. Fisher's combination over the secrets tests all of
them together. Ties count against exposure. Mean exposure by chance is 1 / ln 2 = 1.44 bits.

It measures memorising; it is no bound on epsilon.
Source: Carlini et al. 2019 (arXiv 1802.08232), section 4.2, with candidates drawn at random.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from offsite.audit.attack.intervals import Floats, Interval, erlang_tail, mean
from offsite.audit.attack.losses import Pair
from offsite.audit.attack.settings import AttackSettings
from offsite.emulator.strict_json import JsonObject

CHANCE_BITS = 1 / math.log(2)


class Ranking(StrEnum):
    """By what candidates are ranked."""

    TUNED_LOSS = "tuned_loss"
    GAIN = "gain"


@dataclass(frozen=True, slots=True)
class Exposure:
    """Of every planted secret, by the ranking that exposes them most."""

    ranking: Ranking
    candidates: int
    ranks: tuple[int, ...]
    """From 1, of ``candidates`` + 1."""
    mean_bits: Interval
    p_value: float
    """How often chance alone exposes them as much, both rankings tried."""

    @property
    def most_bits(self) -> float:
        """What rank 1 gives: more cannot be measured with so many candidates."""
        return math.log2(self.candidates + 1)

    @property
    def bits(self) -> tuple[float, ...]:
        """Of every secret."""
        return tuple(self.most_bits - math.log2(rank) for rank in self.ranks)

    def is_beyond_chance(self, confidence: float) -> bool:
        """Whether chance alone would give it less often than the confidence leaves."""
        return self.p_value < 1 - confidence

    def to_json(self) -> JsonObject:
        """A dict of plain JSON values."""
        return {
            "ranking": self.ranking.value,
            "secrets": len(self.ranks),
            "candidates": self.candidates,
            "ranks": list(self.ranks),
            "mean_bits": self.mean_bits.to_json(),
            "chance_bits": CHANCE_BITS,
            "p_value": self.p_value,
        }


def measure_exposure(
    secrets: Sequence[Pair], settings: AttackSettings, random: np.random.Generator
) -> Exposure:
    """Exposure from losses; each pair holds the secret first and then as many candidates."""
    found = {
        ranking: tuple(_rank(_scores(pair, ranking)) for pair in secrets) for ranking in Ranking
    }
    candidates = len(secrets[0]) - 1
    p_values = {ranking: fisher(ranks, candidates + 1) for ranking, ranks in found.items()}
    ranking = min(Ranking, key=lambda kind: p_values[kind])
    bits = math.log2(candidates + 1) - np.log2(np.array(found[ranking], np.float64))
    return Exposure(
        ranking,
        candidates,
        found[ranking],
        mean(bits, settings.confidence, settings.resamples, random),
        min(1.0, len(Ranking) * p_values[ranking]),  # Bonferroni
    )


def _scores(pair: Pair, ranking: Ranking) -> Floats:
    """The larger, the likelier to be the secret."""
    if ranking is Ranking.GAIN:
        return pair.before.nats - pair.after.nats
    return -pair.after.nats


def _rank(scores: Floats) -> int:
    return 1 + int((scores[1:] >= scores[0]).sum())


def fisher(ranks: Sequence[int], places: int) -> float:
    """The p-value of ranks that are each uniform on 1 to ``places`` by chance."""
    return erlang_tail(len(ranks), -sum(math.log(rank / places) for rank in ranks))
