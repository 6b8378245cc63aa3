"""`edge-client plan`: what an epsilon would mean for this data, before anything is spent.

Nothing is sent and nothing is written. With a fetched release in the state folder the adapter's size is
known, and one step is timed on the real emulator with the data's own rows. With a ledger the limit is that
of its owner, where nothing else is said, and what these rows were used for before counts: the noise is
the one that a campaign would be reserved with. Rows that the attack holds out are not tuned on.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from offsite.edge_client.attack.choice import AttackChoice, read_choice
from offsite.edge_client.data import Data, read_data
from offsite.edge_client.privacy.campaign_budget import with_spare
from offsite.edge_client.privacy.forecast import Forecast, Intended, forecast
from offsite.edge_client.privacy.ledger_folder import LedgerFolder, is_begun
from offsite.edge_client.privacy.limit import PrivacyLimit, PrivacyWish, read_limit
from offsite.edge_client.privacy.step_time import seconds_of_a_step
from offsite.edge_client.privacy.what_if import WhatIf
from offsite.edge_client.state import EdgeState
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.bundle.reader import open_bundle
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.rounds.vector import value_count
from offsite.emulator.terminal import Terminal

BESIDE = (1.0, 3.0, 8.0)
"""Epsilons that are always shown, to compare with."""
DEFAULT_EPSILON = 8.0
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
    wish: PrivacyWish
    rounds: int
    steps: int
    batch: int

    @property
    def all_steps(self) -> int:
        """Of the campaign."""
        return self.rounds * self.steps


@dataclass(frozen=True, slots=True)
class _Edge:
    """What this edge has that a plan depends on, as far as it is there."""

    bundle: Bundle | None = None
    ledger: LedgerFolder | None = None
    limit: PrivacyLimit | None = None
    attack: AttackChoice | None = None

    def units(self, data: Data) -> int:
        """How many would be tuned on."""
        count, attack = data.unit_count, self.attack
        if attack is None or not attack.is_on:
            return count
        return count - attack.held_out(count) + attack.planted_secrets


def show_plan(request: PlanRequest, terminal: Terminal) -> None:
    """Prints the table.

    Raises:
        ConfigError: the data cannot be used, or delta is too large for them.
        IntegrityError: there is a ledger, and it is damaged.
    """
    # (1) The edge, its limit and its data.
    edge = _edge(request.state)
    limit = _limit(request.wish, edge.limit)
    data = read_data(request.data, limit.person_column)
    units = edge.units(data)
    limit.check_units(units)
    account = (
        WhatIf.fresh(limit.unit)
        if edge.ledger is None
        else WhatIf.of(edge.ledger, data, limit.unit)
    )
    # (2) What each epsilon would mean.
    values = None if edge.bundle is None else value_count(edge.bundle.adapter_schema)
    batch, steps = min(request.batch, units), with_spare(request.all_steps)
    intended = Intended(units, batch, steps, values)
    rows = _forecasts(limit, intended, account, terminal)
    # (3) How long it would take.
    seconds = None
    if edge.bundle is not None:
        settings = TuningSettings(batch_examples=batch)
        step = seconds_of_a_step(edge.bundle, data, settings, terminal.note)
        seconds = step * request.all_steps
    spent = account.spent(limit)
    document = {
        "units": units,
        "unit": limit.unit.value,
        "batch": batch,
        "sampling": f"{batch}/{units}",
        "steps_with_spare": steps,
        "delta": limit.delta,
        "campaign_epsilon": limit.campaign_epsilon,
        "spent": spent,
        "adapter_values": values,
        "seconds": seconds,
        "forecasts": [row.document() for row in rows],
    }
    terminal.result(_table(intended, limit, rows, seconds, spent), document)


def _limit(wish: PrivacyWish, before: PrivacyLimit | None) -> PrivacyLimit:
    """What is asked, over what holds; epsilon 8 where neither says one."""
    if before is None and wish.epsilon is None:
        wish = replace(wish, epsilon=DEFAULT_EPSILON)
    limit = wish.settled(before)
    assert limit is not None  # there is an epsilon
    return limit


def _forecasts(
    limit: PrivacyLimit, intended: Intended, account: WhatIf, terminal: Terminal
) -> list[Forecast]:
    epsilons = sorted({limit.epsilon, *BESIDE})
    rows = []
    with terminal.progress("accounts") as report:
        for number, epsilon in enumerate(epsilons, start=1):
            campaign = limit.campaign_epsilon
            most = None if campaign is None else min(campaign, epsilon)
            other = replace(limit, epsilon=epsilon, campaign_epsilon=most)
            rows.append(forecast(other, intended, account))
            report(number, len(epsilons))
    return rows


def _edge(root: Path) -> _Edge:
    """What lies in the state folder, if this edge has one."""
    if not root.is_dir():
        return _Edge()
    with EdgeState.open(root, exclusive=False) as state:
        limit, ledger = read_limit(root), None
        if is_begun(state.ledger):
            ledger = LedgerFolder.look(state.ledger, state.identity_key(), time.time)
            stood = ledger.budget.limits.get(None)
            if stood is not None:
                limit = PrivacyLimit.of(stood, None if limit is None else limit.person_column)
        return _Edge(_bundle(state), ledger, limit, read_choice(state.attack))


def _bundle(state: EdgeState) -> Bundle | None:
    """The release that this edge has fetched, if it has."""
    if not state.bundle.is_dir() or not state.is_enrolled:
        return None
    signer = state.directory(time.time()).coordinator().identity_key
    return open_bundle(state.bundle, signer, time.time())


def _table(
    intended: Intended,
    limit: PrivacyLimit,
    rows: list[Forecast],
    seconds: float | None,
    spent: float,
) -> Table:
    length = "" if seconds is None else f"; about {seconds / 60:.0f} minutes on this machine"
    table = Table(
        title=f"{intended.units} {limit.unit.value}s, {intended.batch} a step, "
        f"{intended.steps} steps with spare ones, delta {limit.delta:g}, epsilon {spent:.3f} spent "
        f"before{length}",
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
