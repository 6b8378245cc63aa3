"""An attack as a table for a person at a terminal."""

from rich.table import Table

from offsite.audit.attack.analysis import Attack
from offsite.audit.attack.verdict import Verdict
from offsite.emulator.printable import printable

_TITLES = {
    Verdict.WITHIN: "The adapter tells no more about its rows than is allowed",
    Verdict.UNDECIDED: "It is open whether the adapter tells more about its rows than is allowed",
    Verdict.EXCEEDED: "The adapter tells more about its rows than is allowed",
}


def render(attack: Attack) -> Table:
    """The verdict first, then what it rests on."""
    found, exposure, settings = attack.membership, attack.exposure, attack.settings
    table = Table(title=_TITLES[attack.judgement.verdict], show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    low = found.low_rate
    rows = {
        "verdict": attack.judgement.verdict.value,
        "advantage": f"{found.advantage}, allowed {settings.allowed_advantage:g}",
        "area under the ROC curve": f"{found.area}, by chance with probability {found.p_value:.3g}",
        f"named at {100 * settings.low_rate:g} % false positives": "too few held-out rows"
        if low is None
        else f"{low.true_positives}",
        "rows measured": f"{len(found.members)} used, {len(found.held_out)} held out",
        "strongest score": found.score.value.replace("_", " "),
        "exposure of planted secrets": "none were planted"
        if exposure is None
        else f"{exposure.mean_bits} bits, allowed {settings.allowed_exposure_bits:g}, by chance with "
        f"probability {exposure.p_value:.3g}",
        "confidence": f"{100 * settings.confidence:g} %",
        "adapter": attack.measured.after_sha256,
    }
    for name, value in rows.items():
        table.add_row(name, printable(value))
    return table
