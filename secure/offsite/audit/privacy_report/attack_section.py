"""What the attack on the adapter found, for somebody who has never run one."""

from offsite.audit.attack.analysis import Attack
from offsite.audit.attack.exposure import Exposure
from offsite.audit.attack.membership import Membership
from offsite.audit.attack.settings import AttackSettings
from offsite.audit.privacy_report.facts import AttackFacts, Missing
from offsite.audit.privacy_report.markup import Html, joined, tag
from offsite.audit.privacy_report.pieces import code, pairs, section
from offsite.audit.privacy_report.plots.exposure import exposure_plot
from offsite.audit.privacy_report.plots.membership import roc_plot, scores_plot
from offsite.audit.privacy_report.words import most_advantage, percent

_TITLE = "Attack on the adapter, before it left"


def attack_section(found: AttackFacts | Missing, epsilon: float | None, delta: float) -> Html:
    """Membership inference and exposure; ``epsilon`` is that of the adapter, None without a claim."""
    if isinstance(found, Missing):
        return section("attack", _TITLE, tag("p", f"Not done: {found.reason}."))
    attack = found.attack
    return section(
        "attack",
        _TITLE,
        tag(
            "p",
            "What could somebody learn who has the model as it was before, and gets the tuned adapter? "
            "Rows that were used are mixed with rows that were held out, and the attack says which is "
            "which by how much likelier the tuning made them.",
        ),
        tag("p", tag("b", f"Verdict: {attack.judgement.verdict.value}.")),
        tag("ul", *(tag("li", reason) for reason in attack.judgement.reasons)),
        _membership(attack.membership, attack.settings, epsilon, delta),
        tag("h3", "Planted secrets"),
        _exposure(attack.exposure, attack.settings),
        tag("h3", "Evidence"),
        _evidence(attack, found.evidence_sha256),
    )


def _membership(
    found: Membership, settings: AttackSettings, epsilon: float | None, delta: float
) -> Html:
    at = f"at {100 * settings.confidence:g} % confidence"
    low = found.low_rate
    rows = {
        "Advantage over guessing": f"{found.advantage}, {at}; allowed {settings.allowed_advantage:g}",
        "Most that ε allows": None
        if epsilon is None
        else f"{most_advantage(epsilon, delta):.3f} for ε = {epsilon:.3g}",
        "Area under the ROC curve": f"{found.area}, {at}; guessing gives 0.5",
        "By chance alone": f"such an area in {percent(found.p_value)} of cases",
        f"Named at {100 * settings.low_rate:g} % false positives": "not measured: too few held-out rows"
        if low is None
        else f"{low.true_positives} of the rows that were used",
        "Rows measured": f"{len(found.members)} used, {len(found.held_out)} held out; others set the "
        "threshold",
        "Strongest score": found.score.value.replace("_", " "),
    }
    return joined(
        tag("h3", "Membership inference"),
        pairs({name: value for name, value in rows.items() if value is not None}),
        tag("div", roc_plot(found, epsilon, delta), scores_plot(found), class_="plots"),
        tag(
            "p",
            "This is what these attacks achieved. A better attack may achieve more, up to what ε "
            "allows; the figures show no upper bound.",
            class_="soft",
        ),
    )


def _exposure(found: Exposure | None, settings: AttackSettings) -> Html:
    if found is None:
        return tag("p", "None were planted, so memorising was not measured.")
    bounds = found.mean_bits
    return joined(
        tag(
            "p",
            f"{len(found.ranks)} invented secrets were put among the rows. On average they are exposed "
            f"by {bounds.value:.2f} bits ({bounds.low:.2f} to {bounds.high:.2f}); chance alone would "
            f"expose as much in {percent(found.p_value)} of cases.",
        ),
        exposure_plot(found, settings.allowed_exposure_bits),
    )


def _evidence(attack: Attack, evidence_sha256: str) -> Html:
    return pairs(
        {
            "Adapter as it was received": code(attack.measured.before_sha256),
            "Adapter as it was tuned": code(attack.measured.after_sha256),
            "SHA-256 of the evidence": code(evidence_sha256),
            "How to check": "from the evidence everything above is computed again; it is as private as "
            "the rows",
        }
    )
