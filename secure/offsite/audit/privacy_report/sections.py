"""The page's sections, in the order of the differential privacy pyramid of NIST SP 800-226.

privacy parameters and unit of privacy     what is promised
privacy budget                             what was spent of it
algorithms and correctness                 why the promise should hold, and what was measured
trust model                                against whom it holds
data security and collection exposure      what it does not cover
"""

from offsite.audit.privacy_report.facts import (
    CampaignFacts,
    EmpiricalFacts,
    LedgerFacts,
    Limit,
    Missing,
    ProofFacts,
    ReportFacts,
)
from offsite.audit.privacy_report.findings import assurance
from offsite.audit.privacy_report.markup import Html, joined, tag
from offsite.audit.privacy_report.pieces import code, pairs, scrolled, section
from offsite.audit.privacy_report.plots.bounds import bounds_plot
from offsite.audit.privacy_report.plots.course import course_plot
from offsite.audit.privacy_report.plots.figure import table
from offsite.audit.privacy_report.plots.odds import odds_plot
from offsite.audit.privacy_report.words import epsilon_words, percent, small, unit_words
from offsite.secure.privacy.ledger.assurance import Assurance
from offsite.secure.privacy.units import Adjacency

ASSURANCE = {
    Assurance.DECLARED: "declared: the owner's machine says so",
    Assurance.TESTED_AT_START: "tested at start: the engine passed tests of sensitivity, noise and "
    "sampling on the real model before it trained",
    Assurance.AUDITED: "audited: and an empirical audit of sampler, noise and book-keeping with committed "
    "guesses found no more than is claimed; it does not run the model, so clipping rests on the test at "
    "start",
}

ADJACENCY = {
    Adjacency.ZERO_OUT: "have the same units; one unit's content is replaced by nothing (zero-out). How many "
    "units there are is not protected",
}

NOT_COVERED = (
    "The data stay on the owner's machine and are as safe as it is. Differential privacy says nothing "
    + "about who can read them there.",
    "What was collected, and whether it should have been, is outside this report.",
    "How many units there are is not covered: neighbouring data sets have equally many. The number is only "
    + "not shown to others; the sampling rate in this report tells it.",
    "It protects single units. What is true of a whole group, and so of its members, may be learnt and "
    + "is meant to be.",
    "Data of the same people at other owners are counted there, not here; losses add up.",
    "Holding an adapter back, or tuning again, because of an attack's verdict depends on the data. That "
    + "choice is not covered by ε.",
    "Running times and whether the machine took part are visible to the coordinator.",
    "Utility and bias of the model are not measured here; noise costs rare groups most.",
    "The ledger shows that this machine said these things and never said others, not that it was honest.",
)


def never_ran_words(ledger: LedgerFacts) -> str:
    """What stands beside the figure that is called spent."""
    return f"; of it, {ledger.never_ran} steps never ran" if ledger.never_ran else ""


def parameters(ledger: LedgerFacts) -> Html:
    """Privacy parameters and unit of privacy."""
    limit, spent = ledger.limit, ledger.spent
    bound = limit.epsilon if isinstance(limit, Limit) else None
    of_one = limit.campaign_epsilon if isinstance(limit, Limit) else None
    rows = {
        "ε spent (privacy loss)": f"{spent:.3f}{never_ran_words(ledger)}",
        "ε limit, set by the data owner": limit.reason
        if isinstance(limit, Missing)
        else f"{limit.epsilon:g}, over all campaigns and for ever",
        "ε limit of one campaign": None if of_one is None else f"{of_one:g}",
        "δ": None
        if isinstance(limit, Missing)
        else f"{small(limit.delta)}: the probability with which the promise may fail",
        "Unit of privacy": unit_words(ledger.unit),
        "Neighbouring data sets": ADJACENCY[ledger.adjacency],
        "Definition": "approximate differential privacy, (ε, δ)",
    }
    return section(
        "parameters",
        "Privacy parameters and unit of privacy",
        tag("p", "What was spent: ", epsilon_words(spent)),
        None if bound is None else tag("p", "What may be spent at most: ", epsilon_words(bound)),
        pairs({name: value for name, value in rows.items() if value is not None}),
        odds_plot(spent, bound),
    )


def budget(ledger: LedgerFacts) -> Html:
    """What was spent, by whom and when."""
    limit = ledger.limit.epsilon if isinstance(ledger.limit, Limit) else None
    plot = course_plot(ledger.events, limit, ledger.exposed) if ledger.events else None
    others = tag("ul", *(tag("li", what) for what in ledger.other_releases))
    return section(
        "budget",
        "Privacy budget",
        tag(
            "p",
            "Every use is written down before it happens and stays spent whatever becomes of it. "
            "Uses of data sets that share records count for both.",
        ),
        plot,
        tag("h3", "Campaigns"),
        scrolled(_campaigns(ledger.campaigns)) if ledger.campaigns else tag("p", "None."),
        tag("h3", "Other releases that are charged"),
        others if ledger.other_releases else tag("p", "None is recorded."),
    )


def _campaigns(found: tuple[CampaignFacts, ...]) -> Html:
    counts = ["steps spent", "reserved", "hidden by a crash", "never ran, counted"]
    head = ["campaign", *counts, "ε alone", "assurance"]
    rows = [
        [
            f"{campaign.campaign_id}{' (open)' if campaign.is_open else ''}",
            f"{campaign.spent}",
            f"{campaign.reserved}",
            f"{campaign.charged}",
            f"{campaign.never_ran}",
            f"{campaign.epsilon:.3f}",
            campaign.assurance.value.replace("_", " "),
        ]
        for campaign in found
    ]
    return table(head, rows)


def algorithms(facts: ReportFacts) -> Html:
    """Mechanism, accounting, start-up proof, empirical audit."""
    ledger = facts.ledger
    return section(
        "algorithms",
        "Algorithms and correctness",
        tag("p", f"Level of assurance: {ASSURANCE[assurance(ledger)]}."),
        tag("h3", "Mechanisms"),
        scrolled(_mechanisms(ledger.campaigns)) if ledger.campaigns else tag("p", "None."),
        tag("h3", "Accounting"),
        _accounting(ledger),
        tag("h3", "Start-up proof on the real model"),
        _proof(facts.proof),
        tag("h3", "Empirical audit"),
        _empirical(facts.empirical),
    )


def _mechanisms(found: tuple[CampaignFacts, ...]) -> Html:
    rows = []
    for campaign in found:
        stated = campaign.mechanism.to_json()
        rows.append(
            [
                campaign.campaign_id,
                str(stated["kind"]).replace("_", " "),
                f"{campaign.mechanism.noise_multiplier:g}",
                str(stated.get("sampling", "1")),
                str(campaign.mechanism.uses),
                f"{campaign.clip_norm:g}",
            ]
        )
    head = ["campaign", "mechanism", "noise multiplier", "sampling rate", "steps", "clip norm"]
    return table(head, rows)


def _accounting(ledger: LedgerFacts) -> Html:
    spent = ledger.cross_check
    if isinstance(spent, Missing):
        return tag("p", f"ε = {ledger.spent:.4f}; no cross-check: {spent.reason}.")
    rows = [
        ["PLD (figure of record)", f"{spent.pld:.4f}", f"interval {spent.interval:g}"],
        ["PRV, upper bound", f"{spent.prv:.4f}", "may differ by 0.02"],
        ["RDP", f"{spent.rdp:.4f}", "must not be smaller"],
    ]
    if spent.closed_form is not None:
        rows.append(["closed form", f"{spent.closed_form:.4f}", "nothing was sampled"])
    versions = ", ".join(f"{name} {version}" for name, version in spent.versions)
    note = "Recomputed from the mechanisms for this report; if accountants disagreed there would be none. "
    return joined(
        scrolled(table(["accountant", "ε", "cross-check"], rows)),
        tag("p", note, versions, class_="soft"),
    )


def _proof(found: ProofFacts | Missing) -> Html:
    if isinstance(found, Missing):
        return tag("p", f"Not done: {found.reason}.")
    rows = [
        [
            check.name,
            check.looks_for,
            check.expected,
            check.found,
            percent(check.miss),
            "passed" if check.passed else "failed",
        ]
        for check in found.checks
    ]
    head = ["test", "looks for", "expected", "found", "may be missed", "result"]
    return joined(
        scrolled(table(head, rows)),
        tag("p", "SHA-256 of the proof, as it stands in the ledger: ", code(found.sha256)),
    )


def _empirical(found: EmpiricalFacts | Missing) -> Html:
    if isinstance(found, Missing):
        return tag("p", f"Not done: {found.reason}.")
    return joined(
        tag(
            "p",
            f"{found.canaries} artificial records were put in or left out by coin tosses, and attackers "
            "guessed which. Their guesses were bound before the tosses were opened.",
        ),
        bounds_plot(found.bounds, found.confidence),
        *(tag("p", "Receipt: ", code(receipt)) for receipt in found.receipts),
    )


def trust(facts: ReportFacts) -> Html:
    """Who sees what, and against whom the promise holds."""
    rows = [
        ["the data owner's machine", "everything", "must be trusted: noise is added here"],
        ["the coordinator", "a masked sum of noised updates", "the promise holds against it"],
        ["other data owners", "the next adapter", "the promise holds against them"],
        ["whoever gets the model later", "the released adapter", "the promise holds against them"],
    ]
    return section(
        "trust",
        "Trust model",
        tag(
            "p",
            "Local model: noise is added on the data owner's own machine, before anything leaves it. "
            "Nobody else has to be trusted for the promise, and it still holds if the secure sum is "
            "broken.",
        ),
        scrolled(table(["who", "sees", "what follows"], rows)),
    )


def exposure(ledger: LedgerFacts) -> Html:
    """Data security and access control, data collection exposure, and what is not covered."""
    return section(
        "exposure",
        "Data security, collection exposure, and what is not covered",
        tag("ul", *(tag("li", text) for text in NOT_COVERED)),
        tag("h3", "Integrity of the ledger"),
        pairs(
            {
                "Owner (pseudonym)": ledger.owner,
                "Owner's key": joined(
                    code(ledger.owner_key),
                    "" if ledger.owner_key_is_stated else " (the ledger's own word)",
                ),
                "Data set": code(ledger.data_set),
                "Entries": str(ledger.entries),
                "Counter-signed by the coordinator": ledger.countersigned.reason
                if isinstance(ledger.countersigned, Missing)
                else f"the first {ledger.countersigned}",
                "Root of the Merkle tree": code(ledger.root),
                "Faults": str(len(ledger.faults)) if ledger.faults else "none found",
            }
        ),
    )
