"""A ledger's audit as tables for a person."""

from rich.console import Group, RenderableType
from rich.table import Table

from offsite.audit.keys import NOT_CHECKED, OWN_WORD
from offsite.audit.ledger import AccountLine, LedgerAudit
from offsite.emulator.printable import printable
from offsite.secure.privacy.ledger.assurance import Assurance

_WORDS = {
    Assurance.DECLARED: "declared by its machine",
    Assurance.TESTED_AT_START: "tested at start",
    Assurance.AUDITED: "audited: sampler and noise; clipping as tested at start",
}


def render(audit: LedgerAudit) -> RenderableType:
    """Faults first, where there are any; then accounts and campaigns."""
    tables = [_head(audit)]
    if audit.findings.budget.limit_changes:
        tables.append(_limits(audit))
    if audit.accounts:
        tables.append(_accounts(audit.accounts))
    if audit.campaigns:
        tables.append(_campaigns(audit))
    return Group(*tables)


def _head(audit: LedgerAudit) -> Table:
    found = audit.findings
    title = "The ledger is whole" if not found.faults else f"{len(found.faults)} faults"
    table = Table(title=title, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for fault in found.faults:
        table.add_row("fault", printable(str(fault)))
    opened = found.budget.opened
    table.add_row("owner", printable("nobody" if opened is None else opened.owner))
    table.add_row("key", audit.keys.owner.raw.hex())
    if not audit.keys.is_stated:
        table.add_row("open point", OWN_WORD)
    table.add_row("entries", str(len(found.records)))
    count, signed = audit.countersigned, NOT_CHECKED
    if count is not None:
        signed = f"the first {count}" if count else "none"
    table.add_row("counter-signed", signed)
    return table


def _limits(audit: LedgerAudit) -> Table:
    table = Table(title="Limits, as the data owner set and changed them")
    for name in ("entry", "epsilon", "delta", "of one campaign", "data set"):
        table.add_column(name, justify="left" if name == "data set" else "right")
    for seq, limit in audit.findings.budget.limit_changes:
        of_one = limit.campaign_epsilon
        table.add_row(
            str(seq),
            f"{limit.epsilon:g}",
            f"{limit.delta:g}",
            "-" if of_one is None else f"{of_one:g}",
            "all" if limit.data_set is None else limit.data_set.hex()[:16],
        )
    return table


def _accounts(accounts: tuple[AccountLine, ...]) -> Table:
    table = Table(title="Spent, by data set; every epsilon computed again")
    for name in ("data set", "limit", "delta", "spent", "with reserved", "PRV", "RDP"):
        table.add_column(name, justify="left" if name == "data set" else "right")
    for line in accounts:
        limit = line.limit
        table.add_row(
            line.data_set.hex()[:16],
            "none" if limit is None else f"{limit.epsilon:g}",
            "" if limit is None else f"{limit.delta:g}",
            *(
                "none" if figure is None else f"{figure:.3f}"
                for figure in (line.spent, line.exposed)
            ),
            *(_figure(line, name) for name in ("prv", "rdp")),
        )
    return table


def _figure(line: AccountLine, name: str) -> str:
    return f"{line.cross_checks[name]:.3f}" if name in line.cross_checks else "-"


def _campaigns(audit: LedgerAudit) -> Table:
    table = Table(title="Campaigns; steps")
    columns = ("campaign", "reserved", "spent", "of these after crashes", "never ran, counted", "")
    for name in (*columns, "assurance"):
        table.add_column(name, overflow="fold")
    for name, (item, level) in audit.campaigns.items():
        table.add_row(
            printable(name),
            str(item.reserved.mechanism.uses),
            str(item.spent),
            str(item.charged),
            str(item.never_ran(item.reserved.adaptivity)),
            "open" if item.is_open else "closed",
            _WORDS[level],
        )
    return table
