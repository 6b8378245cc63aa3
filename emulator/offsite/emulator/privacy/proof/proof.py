"""The start-up proof: before the first private step, on the model and adapter that will train.

    (1) sensitivity   made-up units, noise off, with and without one of them      `sensitivity`
    (2) noise         steps without gradients                                     `noise`
    (3) sampling      who would be drawn                                          `sampling`

The digest of the report stands in the ledger; a report with a failed check refuses training. It
shows that this machine does what is accounted, on what was tried; it is no proof for every input,
which the exactness tests of the backends and the audits are there for.

Source: the audit ladder of `docs/sharp-edges.md`, steps 1 to 3; Tramèr et al. 2022 (arXiv
2202.12219), where an audit found a wrong sensitivity in published code.
"""

from offsite.emulator.privacy.proof.mechanism import Mechanism
from offsite.emulator.privacy.proof.noise import noise_checks
from offsite.emulator.privacy.proof.report import Check, Program, ProofReport, Subject
from offsite.emulator.privacy.proof.sampling import sampling_checks
from offsite.emulator.privacy.proof.sensitivity import sensitivity_checks
from offsite.emulator.privacy.proof.synthetic import Sizes, cases
from offsite.secure.privacy.randomness.poisson import TruncatedPoissonSampler


def prove(mechanism: Mechanism, sizes: Sizes, program: Program) -> ProofReport:
    """Run every check. The model must be as it trains, without dropout (`without_dropout`).

    Args:
        program: for the report.

    Guarantees: a mechanism without clipping, that clips the batch, with a loss over the tokens of
    the batch, without noise or with half of it, with a repeated seed, with shuffled or fixed batches
    does not pass (`test_a_broken_mechanism_fails`).
    """
    checks: list[Check] = [
        *sensitivity_checks(mechanism, cases(sizes)),
        *noise_checks(mechanism),
        *sampling_checks(mechanism),
    ]
    return ProofReport(_subject(mechanism, program), tuple(checks))


def _subject(mechanism: Mechanism, program: Program) -> Subject:
    terms = mechanism.terms
    sampler = terms.sampler
    return Subject(
        program,
        mechanism.values,
        terms.clip_norm,
        terms.noise_multiplier,
        f"{sampler.sampling.numerator}/{sampler.sampling.denominator}",
        sampler.cap if isinstance(sampler, TruncatedPoissonSampler) else 0,
    )
