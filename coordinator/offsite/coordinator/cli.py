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
Reason = Annotated[str, typer.Option(help="Why; edges are told, and the history keeps it.")]
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
def receipts(
    name: Annotated[str, typer.Argument(help="Name of the data owner.")],
    out: Annotated[Path, typer.Option(help="File for the receipt.")],
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Write the last receipt for a data owner's privacy ledger, which an auditor compares with it."""
    from offsite.coordinator.commands.receipts import write_receipt

    write_receipt(state, name, out, Terminal(json))


@app.command(epilog=EXIT_CODES)
def serve(
    stay: Annotated[bool, typer.Option("--stay", help="Go on serving when it has ended.")] = False,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What carries the rounds: grpc, or flower (default: server.engine of the settings)."
        ),
    ] = None,
    state: State = DEFAULT_STATE,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Serve the edges and run the campaign; started again, it continues where it stopped."""
    from offsite.coordinator.commands.serve import serve_campaign

    chosen = [] if engine is None else [f"server.engine={engine}"]
    serve_campaign(state, [*overrides, *chosen], stay, Terminal(json))


@app.command(epilog=EXIT_CODES)
def pause(
    now: Annotated[
        bool, typer.Option("--now", help="Give up the open attempt; else its round is let end.")
    ] = False,
    reason: Reason = "",
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Let no further round begin until `resume`; edges stay and wait."""
    from offsite.coordinator.commands.control import give_order
    from offsite.coordinator.policy.orders import Command, Order

    give_order(state, Order(Command.PAUSE, reason, at_once=now), Terminal(json))


@app.command(epilog=EXIT_CODES)
def resume(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """Let rounds begin again after `pause`."""
    from offsite.coordinator.commands.control import give_order
    from offsite.coordinator.policy.orders import Command, Order

    give_order(state, Order(Command.RESUME), Terminal(json))


@app.command(epilog=EXIT_CODES)
def abort(
    reason: Annotated[str, typer.Option(help="Why; edges are told.")],
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """End the campaign with what there is; it never goes on, and its result can be exported."""
    from offsite.coordinator.commands.control import give_order
    from offsite.coordinator.policy.orders import Command, Order

    give_order(state, Order(Command.ABORT, reason), Terminal(json))


@app.command(epilog=EXIT_CODES)
def rollback(
    to_round: Annotated[
        int, typer.Argument(min=0, help="A closed round; 0: the untouched adapter.")
    ],
    reason: Reason = "",
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Go on from an earlier round; nothing is deleted, and rounds are counted on."""
    from offsite.coordinator.commands.control import give_order
    from offsite.coordinator.policy.orders import Command, Order

    give_order(state, Order(Command.ROLLBACK, reason, to_round=to_round), Terminal(json))


@app.command(epilog=EXIT_CODES)
def history(
    campaign: Annotated[int, typer.Option(min=0, help="Its number (0: the newest).")] = 0,
    plot: Annotated[
        Path | None, typer.Option(help="Draw gate, updates and seconds by round into this SVG.")
    ] = None,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Show every attempt at every round, and every order."""
    from offsite.coordinator.commands.history import show_history

    show_history(state, campaign, plot, Terminal(json))


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


@app.command(epilog=EXIT_CODES)
def simulate(
    data: Annotated[Path, typer.Option(help="Rows to divide, in any format that edges read.")],
    clients: Annotated[int, typer.Option(min=2, help="Simulated data owners.")] = 100,
    partition: Annotated[str, typer.Option(help="iid, or dirichlet (by label or length).")] = "iid",
    alpha: Annotated[
        float, typer.Option(help="Of dirichlet: the smaller, the more one-sided.")
    ] = 0.3,
    by: Annotated[
        str, typer.Option(help="Of dirichlet: label, length, or the name of a column.")
    ] = "label",
    sample: Annotated[int, typer.Option(min=0, help="Clients asked in a round (0: all).")] = 0,
    rounds: Annotated[int, typer.Option(min=0, help="Rounds (0: as in the settings).")] = 0,
    strategy: Annotated[
        str, typer.Option(help="Strategies to compare, with commas (default: the settings').")
    ] = "",
    dropout: Annotated[
        float, typer.Option(help="Probability that a client leaves in the course of a round.")
    ] = 0.0,
    stragglers: Annotated[float, typer.Option(help="Share of slow machines.")] = 0.0,
    step_s: Annotated[
        float,
        typer.Option(
            help="Simulated seconds of a step (0: the median client needs a third of the deadline)."
        ),
    ] = 0.0,
    epsilon: Annotated[
        float | None, typer.Option(help="Every client tunes privately, up to this epsilon.")
    ] = None,
    delta: Annotated[float, typer.Option(help="Beside --epsilon.")] = 1e-5,
    sums: Annotated[
        str, typer.Option(help="secure (the protocol), or visible (the same means, faster).")
    ] = "secure",
    lora: Annotated[
        str,
        typer.Option(
            help="With visible sums: average, residual, stack, padded or slices (docs/strategies.md)."
        ),
    ] = "",
    ranks: Annotated[
        str, typer.Option(help="LoRA ranks of the clients in turn, with commas; beside --lora.")
    ] = "",
    stack: Annotated[
        str, typer.Option(help="Clients tuned in one batch: 1, a number, or auto (measured).")
    ] = "1",
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="New folder; default: simulations/<time> in the state.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write the gate by round, SVG.")] = None,
    state: State = DEFAULT_STATE,
    overrides: Overrides = [],  # noqa: B006
    json: Json = False,
) -> None:
    """Try rounds, cohort, epsilon and strategies on many simulated clients, in simulated time."""
    from offsite.coordinator.commands.simulate import SimulateFlags, simulate_campaigns

    flags = SimulateFlags(
        data=data,
        clients=clients,
        partition=partition,
        alpha=alpha,
        by=by,
        sample=sample,
        rounds=rounds,
        strategies=strategy,
        dropout=dropout,
        stragglers=stragglers,
        step_s=step_s,
        epsilon=epsilon,
        delta=delta,
        sums=sums,
        lora=lora,
        ranks=ranks,
        stack=stack,
        seed=seed,
        out=out,
        plot=plot,
    )
    simulate_campaigns(state, overrides, flags, Terminal(json))


def main() -> None:
    """Entry point of the console script."""
    run(app, "coordinator")
