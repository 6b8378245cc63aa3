"""The `privacy-audit` command: parses and calls, nothing else.

Nothing heavy is imported here, so that `--help` answers at once. Exit codes are those of
`offsite.emulator.terminal`.
"""

from pathlib import Path
from typing import Annotated

import typer

from offsite.emulator import terminal

EXIT_CODES = (
    "Exit codes: 0 all of it fits, 1 a defect of ours, 2 wrong usage, 3 a file is missing or a "
    "setting wrong, 4 something does not fit, 6 a guarantee or an allowance is broken, 7 this "
    "machine cannot, 130 interrupted."
)
app = typer.Typer(
    name="privacy-audit",
    help="Check, offline, what coordinators published and what data owners spent; trust neither.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Check, offline, what coordinators published and what data owners spent; trust neither."""


Ledger = Annotated[
    Path, typer.Argument(help="Folder `ledger` of an edge's state, or its file `entries`.")
]
OwnerKey = Annotated[
    str | None,
    typer.Option(
        metavar="HEX",
        help="The data owner's identity key, 64 hex digits, from a signed directory; default: the "
        "ledger's own word for it.",
    ),
]
CoordinatorKey = Annotated[
    str | None,
    typer.Option(metavar="HEX", help="The coordinator's key: whose counter-signatures count."),
]
Receipts = Annotated[
    list[Path] | None,
    typer.Option(
        "--receipt",
        help="A checkpoint that somebody kept, as `coordinator receipts` writes it; may be given "
        "again.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


@app.command(name="round", epilog=EXIT_CODES)
def audit_a_round(
    folder: Annotated[
        Path, typer.Argument(help="Evidence of one round's sum, as the coordinator keeps it.")
    ],
    key: Annotated[
        str,
        typer.Option(
            metavar="KEY",
            help="The enrolment authority's public key, or its fingerprint: the directory key "
            "that `coordinator init` printed and every data owner pinned.",
        ),
    ],
    directory: Annotated[
        Path | None,
        typer.Option(help="The signed directory; default: the file beside the evidence."),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            help="The coordinator's log of results, its head beside it; default: log in the folder "
            "above, where there is one."
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(
            help="A copy of log.head that somebody kept earlier: the log must continue it."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Cores for taking masks away.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = (
        False
    ),
) -> None:
    """Recompute a published sum bit for bit and verify every signature that led to it."""
    from offsite.audit.report import render
    from offsite.audit.round import Beside, audit_round

    screen = terminal.Terminal(json)
    with screen.progress("masked vectors") as report:
        audit = audit_round(folder, key, Beside(directory, log, head), threads, report)
    screen.result(render(audit), audit.document())


@app.command(name="ledger", epilog=EXIT_CODES)
def audit_a_ledger(
    ledger: Ledger,
    key: OwnerKey = None,
    coordinator: CoordinatorKey = None,
    receipt: Receipts = None,
    json: Json = False,
) -> None:
    """Verify a privacy ledger, recompute every epsilon, and locate whatever is wrong."""
    from offsite.audit.ledger import audit_ledger
    from offsite.audit.ledger_table import render

    screen = terminal.Terminal(json)
    with screen.progress("accounts") as report:
        found = audit_ledger(ledger, key, coordinator, receipt or (), report=report)
    screen.result(render(found), found.document())
    found.check()


@app.command(name="budget", epilog=EXIT_CODES)
def show_a_budget(
    ledger: Ledger,
    key: OwnerKey = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="What if so many more steps were taken?")
    ] = None,
    sampling: Annotated[
        str | None, typer.Option(help="Of that question: the sampling rate, as 1/100.")
    ] = None,
    noise: Annotated[
        float | None, typer.Option(help="Of that question: the noise, in clip norms.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what was spent and what is left, by data set, campaign and year, and answer what-ifs."""
    from offsite.audit import budget
    from offsite.audit.keys import OWN_WORD
    from offsite.audit.ledger import audit_ledger

    question, screen = budget.question_of(steps, sampling, noise), terminal.Terminal(json)
    with screen.progress("accounts") as report:
        found = audit_ledger(ledger, key, report=report)
    state = found.findings.budget
    lines = list(budget.spent_lines(state))
    answers = [] if question is None else list(budget.answers(state, question))
    screen.result(
        budget.render(found, lines, answers, question), budget.document(found, lines, answers)
    )
    if not found.keys.is_stated:
        screen.note(OWN_WORD)
    found.check()


@app.command(name="empirical", epilog=EXIT_CODES)
def audit_empirically(
    noise: Annotated[float, typer.Option(help="Claimed noise, in clip norms.")],
    sampling: Annotated[str, typer.Option(help="Claimed sampling rate, as 1/4.")],
    steps: Annotated[int, typer.Option(min=1, help="Claimed steps.")],
    delta: Annotated[float, typer.Option(help="Delta of the claim.")] = 1e-5,
    canaries: Annotated[int, typer.Option(help="Canaries of the one run.")] = 2000,
    duels: Annotated[int, typer.Option(help="Short runs with one canary in or out.")] = 2000,
    evidence: Annotated[
        Path | None, typer.Option(help="Write what is needed to count again.")
    ] = None,
    json: Json = False,
) -> None:
    """Attack the installed mechanism with canaries, and compare with what is claimed of it.

    A large lower bound refutes the claim; a small one does not mean private.
    """
    from offsite.audit.empirical_command import audit_mechanism

    audit_mechanism(
        terminal.Terminal(json), noise, sampling, steps, delta, canaries, duels, evidence
    )


@app.command(name="recount", epilog=EXIT_CODES)
def recount_guesses(
    evidence: Annotated[Path, typer.Argument(help="Evidence of an empirical audit.")],
    ledger: Annotated[
        Path | None, typer.Option(help="The ledger that committed to the guesses.")
    ] = None,
    key: OwnerKey = None,
    json: Json = False,
) -> None:
    """Count the guesses of an empirical audit again, from its evidence alone."""
    from offsite.audit.empirical_command import recount

    recount(terminal.Terminal(json), evidence, ledger, key)


@app.command(name="attack", epilog=EXIT_CODES)
def audit_an_attack(
    evidence: Annotated[
        Path, typer.Argument(help="Evidence of an attack, as an edge keeps it under attack.")
    ],
    allowed_advantage: Annotated[
        float | None,
        typer.Option(help="Judge by this advantage, 0 to 1, in place of the data owner's."),
    ] = None,
    json: Json = False,
) -> None:
    """Repeat the attack on an adapter from its evidence, and judge again whether it may leave.

    Undecided is a warning: too few rows to exclude more than is allowed.
    """
    from offsite.audit.attack.audit import audit_attack
    from offsite.audit.attack.table import render

    screen = terminal.Terminal(json)
    found = audit_attack(evidence, allowed_advantage)
    screen.result(render(found.attack), found.document())
    if found.warning is not None:
        screen.note(found.warning)
    found.require_not_exceeded()


@app.command(name="report", epilog=EXIT_CODES)
def write_a_report(
    ledger: Ledger,
    out: Annotated[Path, typer.Option(help="Folder for privacy-report.html and .json.")],
    key: OwnerKey = None,
    coordinator: CoordinatorKey = None,
    receipt: Receipts = None,
    data_set: Annotated[
        str | None, typer.Option(help="Which data set, by the first digits of its name.")
    ] = None,
    empirical: Annotated[Path | None, typer.Option(help="Evidence of an empirical audit.")] = None,
    attack: Annotated[Path | None, typer.Option(help="Evidence of an attack.")] = None,
    json: Json = False,
) -> None:
    """Write one page, and the same as JSON, for a data protection officer (NIST SP 800-226)."""
    from offsite.audit.report_command import ReportRequest, report_on

    request = ReportRequest(
        ledger, out, key, coordinator, tuple(receipt or ()), data_set, empirical, attack
    )
    report_on(terminal.Terminal(json), request)


def run() -> None:
    """Entry point of the console script."""
    terminal.run(app, "privacy-audit")
