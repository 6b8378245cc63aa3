"""The `edge-client` command: parses and calls, nothing else.

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
    name="edge-client",
    help="The data owner's side of Offsite: join, verify, tune on this machine, return an update.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

State = Annotated[Path, typer.Option("--state", help="State folder of this edge.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
DEFAULT_STATE = Path("edge-state")


@app.command(epilog=EXIT_CODES)
def join(
    token: Annotated[
        str,
        typer.Argument(
            help="Join token, the path of a file that holds it, or - for a line of standard input; "
            "a file or - keeps the token out of the list of processes."
        ),
    ],
    data: Annotated[Path, typer.Option(help="Your data: JSONL, CSV or Parquet.")],
    emulator: Annotated[
        str,
        typer.Option(
            help="Which emulator of the release to tune: main, the name of a variant, or auto for "
            "the first that fits the memory that is free.",
        ),
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Threads for arithmetic (0: torch decides).")] = 0,
    least_cohort: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Fewest edges that your update may be added up with, you among them; kept for "
            "later (at first: 5).",
        ),
    ] = None,
    most_norm: Annotated[
        float | None,
        typer.Option(help="Largest norm to which a round may clip updates; kept (at first: any)."),
    ] = None,
    most_coordinate: Annotated[
        float | None,
        typer.Option(
            help="Largest change of one value to which a round may clip; kept (at first: 16)."
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Tune with differential privacy, and spend at most this, ever, on any row of your "
            "data; kept. Read docs/sharp-edges.md for what it means (at first: no such privacy)."
        ),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="The chance that epsilon fails; below 1/rows; kept (at first: 1e-5)."),
    ] = None,
    campaign_epsilon: Annotated[
        float | None,
        typer.Option(help="The most that one campaign may spend; kept (at first: what is left)."),
    ] = None,
    no_campaign_epsilon: Annotated[
        bool,
        typer.Option(
            "--no-campaign-epsilon", help="One campaign may spend whatever is left; kept."
        ),
    ] = False,
    person_column: Annotated[
        str | None,
        typer.Option(
            help="The column that names whom a row is about: privacy is then by person and not by "
            "row; kept."
        ),
    ] = None,
    attack: Annotated[
        bool,
        typer.Option(
            "--attack",
            help="Attack every update before it leaves, as the model's owner could, and hold back "
            "one that tells which rows were used; kept (at first: no attack).",
        ),
    ] = False,
    no_attack: Annotated[bool, typer.Option("--no-attack", help="Attack no longer; kept.")] = False,
    attack_held_out: Annotated[
        float | None,
        typer.Option(
            help="Share of the rows that stay out of tuning, to compare with; kept (at first: 0.1)."
        ),
    ] = None,
    allowed_advantage: Annotated[
        float | None,
        typer.Option(
            help="Largest advantage of the attack over guessing, 0 to 1, with which an update "
            "leaves; kept (at first: 0.1)."
        ),
    ] = None,
    planted_secrets: Annotated[
        int | None,
        typer.Option(
            help="Invented secrets to put among the rows, to see whether they come out; kept (at "
            "first: 0)."
        ),
    ] = None,
    tell: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What the coordinator may know of this machine, for campaigns that ask only edges "
            "with enough of it: nothing, memory, examples, or memory,examples; kept (at first: "
            "nothing). Not examples beside --epsilon.",
        ),
    ] = None,
    inspect_only: Annotated[
        bool, typer.Option("--inspect-only", help="Enrol, fetch and verify, then stop.")
    ] = False,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Enrol, fetch, verify, tune and return, round after round until the campaign ends.

    Started again with the same token and state folder it continues where it stopped.
    """
    from offsite.edge_client.attack.choice import AttackWish
    from offsite.edge_client.commands.join import JoinRequest, join_campaign
    from offsite.edge_client.privacy.limit import PrivacyWish

    request = JoinRequest(
        token,
        data,
        state,
        threads,
        inspect_only,
        emulator,
        least_cohort,
        most_norm,
        most_coordinate,
        PrivacyWish(epsilon, delta, campaign_epsilon, person_column, no_campaign_epsilon),
        AttackWish.of(attack, no_attack, attack_held_out, allowed_advantage, planted_secrets),
        tell,
    )
    join_campaign(request, Terminal(json))


@app.command(epilog=EXIT_CODES)
def inspect(
    bundle: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    every_row: Annotated[
        bool,
        typer.Option("--every-row", help="Measure a large release whole, not in drawn rows."),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Seed of the drawn rows, to repeat an inspection (default: new)."),
    ] = None,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Show what a release holds and who signed it, check all of it again, and look for traps.

    A finding is a warning for you to judge; a release that breaks a check of form is refused.
    """
    from offsite.edge_client.commands.inspect import inspect_bundle

    inspect_bundle(bundle, state, Terminal(json), every_row=every_row, seed=seed)


@app.command(epilog=EXIT_CODES)
def plan(
    data: Annotated[Path, typer.Option(help="Your data: JSONL, CSV or Parquet.")],
    epsilon: Annotated[
        float | None,
        typer.Option(help="The most that may be spent, ever (default: your limit, or 8)."),
    ] = None,
    delta: Annotated[
        float | None,
        typer.Option(help="The chance that epsilon fails (default: your limit's, or 1e-5)."),
    ] = None,
    campaign_epsilon: Annotated[
        float | None,
        typer.Option(help="The most that one campaign may spend (default: as your limit says)."),
    ] = None,
    no_campaign_epsilon: Annotated[
        bool, typer.Option("--no-campaign-epsilon", help="One campaign may spend what is left.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the campaign.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a round.")] = 30,
    batch: Annotated[int, typer.Option(min=1, help="Rows of a step, on average.")] = 16,
    person_column: Annotated[
        str | None, typer.Option(help="The column that names whom a row is about.")
    ] = None,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Show what an epsilon would mean for your data: noise, signal, time. Nothing is spent or sent.

    What your ledger says was spent before counts, and so do rows that the attack holds out.
    """
    from offsite.edge_client.commands.plan import PlanRequest, show_plan
    from offsite.edge_client.privacy.limit import PrivacyWish

    wish = PrivacyWish(epsilon, delta, campaign_epsilon, person_column, no_campaign_epsilon)
    show_plan(PlanRequest(data, state, wish, rounds, steps, batch), Terminal(json))


@app.command(epilog=EXIT_CODES)
def audit(
    campaign: Annotated[
        str | None,
        typer.Option(help="Which campaign of the ledger, by its beginning (default: the last)."),
    ] = None,
    canaries: Annotated[int, typer.Option(help="Canaries of the one run.")] = 2000,
    duels: Annotated[int, typer.Option(help="Short runs with one canary in or out.")] = 2000,
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Attack this edge's own private mechanism with canaries; guesses are committed to in its ledger.

    Made-up data are used, nothing is spent. A small bound does not mean private.
    """
    from offsite.edge_client.commands.audit import audit_own_mechanism

    audit_own_mechanism(state, campaign, canaries, duels, Terminal(json))


@app.command(epilog=EXIT_CODES)
def close(
    campaign: Annotated[str, typer.Argument(help="A campaign of the ledger, by its beginning.")],
    state: State = DEFAULT_STATE,
    json: Json = False,
) -> None:
    """Close a private campaign that will not go on: steps that nobody claimed are reserved no longer.

    What was claimed stays spent. Campaigns that end while this edge is there are closed by themselves.
    """
    from offsite.edge_client.commands.close import close_campaign

    close_campaign(state, campaign, Terminal(json))


@app.command(epilog=EXIT_CODES)
def status(state: State = DEFAULT_STATE, json: Json = False) -> None:
    """Show who this edge is, what it fetched and what it has returned."""
    from offsite.edge_client.commands.status import show_status

    show_status(state, Terminal(json))


def main() -> None:
    """Entry point of the console script."""
    run(app, "edge-client")
