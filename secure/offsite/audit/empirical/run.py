"""An empirical audit, from the plan to the verdict.

What it can show: that a mechanism does not keep its claim. What it cannot: that it does. A bound
below the claim means that these attacks found nothing.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from offsite.audit.empirical.crowd import (
    CanaryProblem,
    CanaryProblemMaker,
    Report,
    VectorProblem,
    run_crowd,
)
from offsite.audit.empirical.duel import duel_terms, duel_threshold, guess_by_threshold, run_duels
from offsite.audit.empirical.evidence import AllGuesses, Evidence, Opening
from offsite.audit.empirical.guesses import GuessSheet, guess_extremes, plan_counts
from offsite.audit.empirical.judgement import EmpiricalAudit, judge
from offsite.audit.empirical.labels import KEY_BYTES, SealedLabels
from offsite.audit.empirical.mechanism import MechanismFactory, Terms
from offsite.audit.empirical.plan import CROWD, DUEL, AuditPlan
from offsite.audit.empirical.product import Entropy, product_mechanism
from offsite.audit.empirical.scores import Reading
from offsite.secure.privacy.ledger.canonical import canonical

Commit = Callable[[bytes], str]
"""Writes the SHA-256 of a document where it cannot be changed any more; returns a receipt.

The ledger's entry for it is `AuditGuesses`, once for the opening and once for the guesses.
"""
NOT_COMMITTED: Final = "nowhere"
"""The receipt where there is no ledger; such a result convinces nobody else."""


def run_empirical(
    plan: AuditPlan,
    start: MechanismFactory | None = None,
    *,
    commit: Commit = lambda document: NOT_COMMITTED,
    entropy: Entropy = os.urandom,
    problem_of: CanaryProblemMaker | None = None,
    report: Report = lambda done, total: None,
) -> tuple[EmpiricalAudit, Evidence]:
    """Audits the runs that `start` starts, by default the product's own.

    Args:
        commit: the ledger's; called before the first run and before the labels are opened.
        entropy: of the labels and, by default, of the noise.
        problem_of: what the crowd is trained on, by default least squares on a vector.
        report: called with the share of the runs that is done.

    Guarantees: `test_guesses_are_committed_before_labels_open`; for a mechanism that keeps its
    claim, `is_refuted` with a probability of at most the plan's significance
    (`test_the_right_mechanism_stays_below_its_claim`).
    """
    start = start or product_mechanism(entropy)
    problem_of = problem_of or partial(_vector_problem, plan.others)
    # (1) Labels are drawn and bound; with the plan they are committed to.
    crowd_labels = SealedLabels(entropy(KEY_BYTES), CROWD, plan.canaries)
    duel_labels = SealedLabels(entropy(KEY_BYTES), DUEL, plan.duels)
    opening = _opening(plan, crowd_labels, duel_labels)
    opened = commit(canonical(opening.to_json()))
    # (2) One run with the crowd, and the guesses from its releases.
    half = _Half(report)
    scores = run_crowd(start, plan.terms, crowd_labels.for_the_run(), problem_of, half.first)
    sheets = {r: guess_extremes(scores.of(r), opening.counts[r]) for r in Reading}
    # (3) The duels: those with known labels, which set the threshold, then the others.
    duels = _guessed_duels(plan, start, duel_labels, half.second)
    # (4) Guesses are committed to; from here on nothing can be changed.
    guesses = AllGuesses(opening.sha256, sheets, duels)
    receipt = commit(canonical(guesses.to_json()))
    for labels in (crowd_labels, duel_labels):
        labels.bind(guesses.sha256)
    # (5) Labels are opened, and counted.
    keys = {labels.name: labels.open(guesses.sha256) for labels in (crowd_labels, duel_labels)}
    evidence = Evidence(opening, guesses, keys, (opened, receipt))
    return judge(evidence), evidence


def _opening(plan: AuditPlan, crowd: SealedLabels, duel: SealedLabels) -> Opening:
    significance = plan.crowd_level.significance
    counts = {r: plan_counts(plan.terms, plan.canaries, r, significance) for r in Reading}
    return Opening(plan, counts, {CROWD: crowd.commitment, DUEL: duel.commitment})


def _guessed_duels(
    plan: AuditPlan, start: MechanismFactory, labels: SealedLabels, report: Report
) -> GuessSheet:
    terms = duel_terms(plan.terms)
    known = np.arange(plan.known_duels) % 2 == 0
    included = np.concatenate([known, labels.for_the_run()])
    scores = run_duels(start, terms, included, report)
    threshold = duel_threshold(scores[: len(known)], known)
    return guess_by_threshold(scores[len(known) :], threshold)


def _vector_problem(others: int, terms: Terms, included: NDArray[np.bool_]) -> CanaryProblem:
    return VectorProblem(terms, included, others)


class _Half:
    """Two parts of one progress bar, in thousandths."""

    def __init__(self, report: Report) -> None:
        self._report = report

    def first(self, done: int, total: int) -> None:
        self._report(500 * done // total, 1000)

    def second(self, done: int, total: int) -> None:
        self._report(500 + 500 * done // total, 1000)
