"""The `coordinator` command: parses and calls, nothing else.

Nothing heavy is imported here, so that `--help` answers at once; each command imports its work
when it runs. Exit codes are those of `offsite.emulator.terminal`.
"""

from pathlib import Path
from typing import Annotated

import typer

from offsite.emulator.terminal import Terminal, run

EXIT_CODES = (
    "Exit codes: 0 done, 1 a defect of ours, 2 wrong usage, 3 wrong setting or file, "
    "4 what a peer sent is wrong, 5 something did not arrive, 6 it would break a guarantee, "
    "7 this machine cannot, 130 interrupted."
)
app = typer.Typer(
    name="coordinator",
    help="The model owner's side of Offsite: build a release, run the rounds, export the result.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

State = Annotated[Path, typer.Option("--state", help="State folder of this coordinator.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a setting; may be repeated."),
]
DEFAULT_STATE = Path("coordinator-state")


@app.command(epilog=EXIT_CODES)
def init(
    model: Annotated[Path | None, typer.Option(help="Folder of the model.")] = None,
    gate: Annotated[Path | None, typer.Option(help="Gate questions, JSONL.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Public text for calibration, .txt or .jsonl.")
    ] = None,
    listen: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address to bind.")] = "",
    advertise: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address at which edges reach it.")
    ] = "",
    state: State = DEFAULT_STATE,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody writes to it
    json: Json = False,
) -> None:
    """Make the state folder: keys, certificate authority, commented coordinator.toml."""
    from offsite.coordinator.commands.init import init_state

    paths = {"model.path": model, "gate.questions": gate, "emulator.calibration": calibration}
    given = [f"{key}={value.resolve()}" for key, value in paths.items() if value is not None]
    addresses = {"server.listen": listen, "server.advertise": advertise}
    given += [f"{key}={value}" for key, value in addresses.items() if value]
    init_state(state, [*given, *overrides], Terminal(json))


@app.command(epilog=EXIT_CODES)
def emulate(
    auto: Annotated[
        bool,
        typer.Option(
            "--auto", help="Search within the section search for the settings; show the frontier."
        ),
    ] = False,
    release_best: Annotated[
        bool, typer.Option("--release-best", help="With --auto: release what it found.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Give up the campaign of the present release.")
    ] = False,
    state: State = DEFAULT_STATE,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Build the emulator, measure what it leaks, and sign the release if the budget allows it."""
    if release_best and not auto:
        raise typer.BadParameter("--release-best needs --auto")
    if auto:
        from offsite.coordinator.commands.search import SearchFlags, search_emulator

        search_emulator(state, overrides, SearchFlags(release_best, replace), Terminal(json))
        return
    from offsite.coordinator.commands.emulate import emulate_release

    emulate_release(state, overrides, replace, Terminal(json))


@app.command(epilog=EXIT_CODES)
def invite(
    name: Annotated[str, typer.Argument(help="Name of the data owner: a-z, 0-9 and hyphen.")],
    hours: Annotated[float, typer.Option(help="Hours until the token expires, 24 at most.")] = 24.0,
    address: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where this data owner reaches you.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write the token to this file (0600).")] = None,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Make a one-time join token, for a new data owner or one whose certificate lapsed."""
    from offsite.coordinator.commands.clients import Invitation, invite_client

    invite_client(state, Invitation(name, hours, address, out), Terminal(json))


@app.command(epilog=EXIT_CODES)
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the data owner.")],
    reason: Annotated[str, typer.Option(help="Why; stands in the signed directory.")],
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Shut a data owner out from its next call on."""
    from offsite.coordinator.commands.clients import revoke_client

    revoke_client(state, name, reason, Terminal(json))


@app.command(epilog=EXIT_CODES)
def serve(
    stay: Annotated[bool, typer.Option("--stay", help="Go on serving when it has ended.")] = False,
    state: State = DEFAULT_STATE,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Serve the edges and run the campaign; started again, it continues where it stopped."""
    from offsite.coordinator.commands.serve import serve_campaign

    serve_campaign(state, overrides, stay, Terminal(json))


@app.command(epilog=EXIT_CODES)
def status(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """Show release, clients and rounds."""
    from offsite.coordinator.commands.status import show_status

    show_status(state, Terminal(json))


@app.command(epilog=EXIT_CODES)
def evaluate(
    questions: Annotated[
        Path | None, typer.Option(help="JSONL with query, choices, gold; default: the gate.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=0, help="Only the first so many questions (0: all).")
    ] = 0,
    state: State = DEFAULT_STATE,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Score full model, emulator, tuned emulator and plug-in on the same questions."""
    from offsite.coordinator.commands.evaluate import evaluate_table

    evaluate_table(state, overrides, questions, limit, Terminal(json))


@app.command(epilog=EXIT_CODES)
def export(
    out: Annotated[Path | None, typer.Option(help="Folder; default: export in the state.")] = None,
    rank: Annotated[
        int, typer.Option(min=1, help="Rank of the low-rank form of whole blocks.")
    ] = 64,
    state: State = DEFAULT_STATE,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Write the tuned adapter for plain peft, as tensors, and merged into the full model."""
    from offsite.coordinator.commands.export import export_result

    export_result(state, overrides, out, rank, Terminal(json))


def main() -> None:
    """Entry point of the console script."""
    run(app, "coordinator")
