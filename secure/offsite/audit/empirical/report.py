"""An empirical audit as a table for a person."""

from rich.table import Table

from offsite.audit.empirical.judgement import EmpiricalAudit
from offsite.audit.empirical.scores import Reading
from offsite.emulator.printable import printable

_READINGS = {
    Reading.LIKELIHOOD_RATIO: "crowd, likelihood ratio",
    Reading.ALTERNATING_SUM: "crowd, alternating sum",
}


def render(audit: EmpiricalAudit) -> Table:
    """The verdict, the claim, and what each attack found."""
    plan, terms, confidence = audit.plan, audit.plan.terms, 1 - audit.plan.significance
    verdict = (
        f"The claim is false ({confidence:.0%} confidence)"
        if audit.is_refuted
        else "The claim was not refuted"
    )
    table = Table(title=verdict, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "mechanism": f"noise multiplier {terms.noise_multiplier:g}, q {terms.sampling}, "
        f"{terms.steps} steps",
        "claimed": f"epsilon {audit.claimed_epsilon:.2f} at delta {plan.delta:g}",
    }
    for reading, name in _READINGS.items():
        found = audit.crowd[reading]
        rows[name] = (
            f"{found.guesses.right} of {found.guesses.guessed} guesses right, "
            f"{found.guesses.canaries} canaries: epsilon at least {found.one_run_epsilon:.2f} "
            f"(one run), {found.f_dp_epsilon:.2f} (f-DP, Gaussian); {_p_value(found.p_value)}"
        )
    duel, rates = audit.duel, audit.duel.rates
    rows["duels"] = (
        f"{rates.inside_found} of {rates.inside} found, {rates.outside_accused} of "
        f"{rates.outside} accused wrongly: epsilon at least {duel.clopper_pearson_epsilon:.2f} "
        f"(Clopper-Pearson), {duel.gaussian_epsilon:.2f} (Gaussian) of "
        f"{audit.duel_claimed_epsilon:.2f}; {_p_value(duel.p_value)}"
    )
    rows["guesses committed"] = "; ".join(audit.receipts)
    rows["what this means"] = (
        "Lower bounds: a large one refutes the claim, a small one does not mean private."
    )
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table


def _p_value(value: float) -> str:
    return f"p {value:.2g} if the claim were true"
