"""From evidence to a verdict; pure, so whoever has the evidence gets the same one.

The verdict is a test of the claim's whole trade-off curve: `refuted` is wrong about a mechanism
that keeps its claim with a probability of at most the plan's significance, whatever else it does.
The lower bounds on epsilon beside it hold together at the same confidence. Those of the Gaussian
family (`f_dp`, `gaussian`) are statements about that family; it is the truth for the duels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offsite.audit.bounds.counts import Guesses, Rates
from offsite.audit.bounds.f_dp import f_dp_p_value, gaussian_epsilon
from offsite.audit.bounds.independent import (
    clopper_pearson_epsilon,
    independent_gaussian_epsilon,
    rates_p_value,
)
from offsite.audit.bounds.steinke import one_run_epsilon
from offsite.audit.empirical.claim import claim_of
from offsite.audit.empirical.duel import duel_terms
from offsite.audit.empirical.evidence import Evidence
from offsite.audit.empirical.guesses import GuessSheet
from offsite.audit.empirical.labels import commitment_to, labels_from
from offsite.audit.empirical.plan import CROWD, DUEL, AuditPlan
from offsite.audit.empirical.scores import Reading
from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.canonical import Json


@dataclass(frozen=True, slots=True)
class CrowdFinding:
    """What one reading of the crowd's run shows."""

    guesses: Guesses
    one_run_epsilon: float
    """Steinke, Nasr, Jagielski: no assumption."""
    f_dp_epsilon: float
    """Mahloujifar, Melis, Chaudhuri: of the Gaussian family."""
    p_value: float
    significance: float


@dataclass(frozen=True, slots=True)
class DuelFinding:
    """What the duels show."""

    rates: Rates
    clopper_pearson_epsilon: float
    gaussian_epsilon: float
    p_value: float
    significance: float


@dataclass(frozen=True, slots=True)
class EmpiricalAudit:
    """The result."""

    plan: AuditPlan
    claimed_epsilon: float
    """Of the crowd's run: the terms as they are."""
    duel_claimed_epsilon: float
    """Of a duel: the same noise, full batches, few steps."""
    crowd: Mapping[Reading, CrowdFinding]
    duel: DuelFinding
    receipts: tuple[str, str]

    @property
    def is_refuted(self) -> bool:
        """Whether the claim is false, at the plan's confidence."""
        findings: list[CrowdFinding | DuelFinding] = [*self.crowd.values(), self.duel]
        return any(finding.p_value <= finding.significance for finding in findings)

    @property
    def epsilon_lower_bound(self) -> float:
        """The largest bound of the crowd's run."""
        return max(max(f.one_run_epsilon, f.f_dp_epsilon) for f in self.crowd.values())

    def document(self) -> dict[str, Json]:
        """For `--json` and for the ledger."""
        duel, rates = self.duel, self.duel.rates
        return {
            "is_refuted": self.is_refuted,
            "confidence": 1 - self.plan.significance,
            "delta": self.plan.delta,
            "claimed_epsilon": self.claimed_epsilon,
            "epsilon_lower_bound": self.epsilon_lower_bound,
            "crowd": {reading.value: _crowd_json(found) for reading, found in self.crowd.items()},
            "duel": {
                "claimed_epsilon": self.duel_claimed_epsilon,
                "runs_in": rates.inside,
                "runs_in_found": rates.inside_found,
                "runs_out": rates.outside,
                "runs_out_accused": rates.outside_accused,
                "clopper_pearson_epsilon": duel.clopper_pearson_epsilon,
                "gaussian_epsilon": duel.gaussian_epsilon,
                "p_value": duel.p_value,
                "significance": duel.significance,
            },
            "receipts": list(self.receipts),
        }


def judge(evidence: Evidence) -> EmpiricalAudit:
    """Counts, bounds and verdict.

    Raises:
        IntegrityError: the labels are not those that were committed to, or the guesses not those of
            this audit.
    """
    opening, guesses, plan = evidence.opening, evidence.guesses, evidence.opening.plan
    # (1) The parts belong together.
    if guesses.opening_sha256 != opening.sha256:
        raise IntegrityError("audit evidence: expected guesses of this opening, found another's")
    labels = {name: _labels(evidence, name) for name in (CROWD, DUEL)}
    # (2) The crowd: as many guesses as were planned, at the quarter of the significance.
    crowd = {reading: _crowd(evidence, reading, labels[CROWD]) for reading in Reading}
    # (3) The duels: a guess for every run, at the half.
    duel = _duel(plan, guesses.duel, labels[DUEL])
    claimed = claim_of(plan.terms, plan.delta).epsilon
    duel_claimed = claim_of(duel_terms(plan.terms), plan.delta).epsilon
    return EmpiricalAudit(plan, claimed, duel_claimed, crowd, duel, evidence.receipts)


def check_commitments(evidence: Evidence, opening_sha256: bytes, guesses_sha256: bytes) -> None:
    """That the evidence is what was committed to: the two digests are those of the ledger.

    Without it a verdict shows that the evidence fits together, not that the guesses came first.

    Raises:
        IntegrityError: something was changed after it was committed to.
    """
    for what, found, committed in (
        ("opening", evidence.opening.sha256, opening_sha256),
        ("guesses", evidence.guesses.sha256, guesses_sha256),
    ):
        if found != committed:
            raise IntegrityError(
                f"audit evidence: expected the {what} whose digest was committed to, "
                f"{committed.hex()}, found {found.hex()}: it was made or changed afterwards"
            )


def _labels(evidence: Evidence, name: str) -> NDArray[np.bool_]:
    plan = evidence.opening.plan
    count = plan.canaries if name == CROWD else plan.duels
    key = evidence.label_keys[name]
    if commitment_to(key, name, count) != evidence.opening.label_commitments[name]:
        raise IntegrityError(
            f"audit evidence: expected the labels of the {name} that were committed to before the "
            "run, found others"
        )
    return labels_from(key, name, count)


def _crowd(evidence: Evidence, reading: Reading, labels: NDArray[np.bool_]) -> CrowdFinding:
    plan, level = evidence.opening.plan, evidence.opening.plan.crowd_level
    planned, sheet = evidence.opening.counts[reading], evidence.guesses.crowd[reading]
    if (len(sheet.inside), len(sheet.outside)) != (planned.inside, planned.outside):
        raise IntegrityError(
            f"audit evidence: {reading.value}: expected {planned.inside} guesses of in and "
            f"{planned.outside} of out, as planned, found {len(sheet.inside)} and "
            f"{len(sheet.outside)}"
        )
    counted = _counted(sheet, labels)
    p_value = f_dp_p_value(claim_of(plan.terms, plan.delta).curve, counted)
    steinke, f_dp = one_run_epsilon(counted, level), gaussian_epsilon(counted, level)
    return CrowdFinding(counted, steinke, f_dp, p_value, level.significance)


def _duel(plan: AuditPlan, sheet: GuessSheet, labels: NDArray[np.bool_]) -> DuelFinding:
    level = plan.duel_level
    if _counted(sheet, labels).guessed != plan.duels:
        raise IntegrityError("audit evidence: expected a guess for every duel, some are missing")
    accused = np.zeros(plan.duels, np.bool_)
    accused[np.array(sheet.inside, np.intp)] = True
    inside = int(labels.sum())
    rates = Rates(
        inside, int((accused & labels).sum()), plan.duels - inside, int((accused & ~labels).sum())
    )
    curve = claim_of(duel_terms(plan.terms), plan.delta).curve
    return DuelFinding(
        rates,
        clopper_pearson_epsilon(rates, level),
        independent_gaussian_epsilon(rates, level),
        rates_p_value(curve, rates),
        level.significance,
    )


def _counted(sheet: GuessSheet, labels: NDArray[np.bool_]) -> Guesses:
    if max((*sheet.inside[-1:], *sheet.outside[-1:]), default=0) >= len(labels):
        raise IntegrityError(f"audit evidence: expected guesses about {len(labels)} canaries only")
    return sheet.count(labels)


def _crowd_json(found: CrowdFinding) -> Json:
    return {
        "canaries": found.guesses.canaries,
        "guessed": found.guesses.guessed,
        "right": found.guesses.right,
        "one_run_epsilon": found.one_run_epsilon,
        "f_dp_epsilon": found.f_dp_epsilon,
        "p_value": found.p_value,
        "significance": found.significance,
    }
