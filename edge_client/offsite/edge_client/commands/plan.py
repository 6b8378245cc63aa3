"""`edge-client plan`: what an epsilon would mean for this data, before anything is spent.

Nothing is sent and nothing is written. With a fetched release in the state folder the adapter's size is
known, and one step is timed on the real emulator with the data's own rows.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from offsite.edge_client.data import read_data
from offsite.edge_client.privacy.campaign_budget import with_spare
from offsite.edge_client.privacy.forecast import Forecast, Intended, forecast
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.step_time import seconds_of_a_step
from offsite.edge_client.state import EdgeState
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.rounds.vector import value_count
from offsite.emulator.terminal import Terminal

BESIDE = (1.0, 3.0, 8.0)
"""Epsilons that are always shown, to compare with."""
_COLUMNS = (
    "epsilon",
    "noise, in clip norms",
    "signal : noise, a step",
    "the campaign",
    "found at 1 % false alarms",
)


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What the command line said."""

    data: Path
    state: Path
    limit: PrivacyLimit
    rounds: int
    steps: int
    batch: int


def show_plan(request: PlanRequest, terminal: Terminal) -> None:
    """Prints the table.

    Raises:
        ConfigError: the data cannot be used, or delta is too large for them.
    """
    data = read_data(request.data, request.limit.person_column)
    units = data.unit_count
    request.limit.check_units(units)
    bundle = _bundle(request.state)
    asked = request.rounds * request.steps
    batch, steps = min(request.batch, units), with_spare(asked)
    values = None if bundle is None else value_count(bundle.adapter_schema)
    intended = Intended(units, batch, steps, values, request.limit.unit, request.limit.delta)
    epsilons = sorted({request.limit.epsilon, *BESIDE})
    rows = []
    with terminal.progress("accounts") as report:
        for number, epsilon in enumerate(epsilons, start=1):
            rows.append(forecast(epsilon, intended))
            report(number, len(epsilons))
    seconds = None
    if bundle is not None:
        settings = TuningSettings(batch_examples=batch)
        seconds = seconds_of_a_step(bundle, data, settings, terminal.note) * asked
    document = {
        "units": units,
        "unit": request.limit.unit.value,
        "batch": batch,
        "sampling": f"{batch}/{units}",
        "steps_with_spare": steps,
        "delta": request.limit.delta,
        "adapter_values": values,
        "seconds": seconds,
        "forecasts": [row.document() for row in rows],
    }
    terminal.result(_table(intended, request.limit, rows, seconds), document)


def _bundle(root: Path) -> Bundle | None:
    """The release that this edge has fetched, if it has."""
    if not (root / "bundle").is_dir():
        return None
    with EdgeState.open(root, exclusive=False) as state:
        if not state.is_enrolled:
            return None
        signer = state.directory(time.time()).coordinator().identity_key
        return open_bundle(state.bundle, signer, time.time())


def _table(
    intended: Intended, limit: PrivacyLimit, rows: list[Forecast], seconds: float | None
) -> Table:
    length = "" if seconds is None else f"; about {seconds / 60:.0f} minutes on this machine"
    table = Table(
        title=f"{intended.units} {intended.unit.value}s, {intended.batch} a step, "
        f"{intended.steps} steps with spare ones, delta {intended.delta:g}{length}",
        caption="A rule of thumb: at 10 and more the noise hardly matters, around 1 coarse things "
        "are learnt, at 0.1 nothing is. See docs/sharp-edges.md for what epsilon means.",
    )
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        mark = " *" if row.epsilon == limit.epsilon else ""
        table.add_row(
            f"{row.epsilon:g}{mark}",
            "too much" if row.noise is None else f"{row.noise:.3f}",
            _figure(row.step_signal),
            _figure(row.campaign_signal),
            f"{100 * row.found_at_one_percent:.1f} of 100",
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
