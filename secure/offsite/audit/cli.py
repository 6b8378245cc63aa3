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
    "setting wrong, 4 something does not fit, 7 this machine cannot, 130 interrupted."
)
app = typer.Typer(
    name="privacy-audit",
    help="Check what a coordinator published, offline, without trusting it.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Check what a coordinator published, offline, without trusting it."""


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


def run() -> None:
    """Entry point of the console script."""
    terminal.run(app, "privacy-audit")
