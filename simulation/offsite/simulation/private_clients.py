"""Clients with a limit of their own: a ledger each, in the folder of the run, as on real edges.

A client's budget is reserved, claimed and spent by the code that an edge runs. Two things differ:
nobody counter-signs, and the start-up proof of the mechanism runs once for all of them: it is
about the model and the settings, which are the same for all."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from offsite.edge_client.privacy.ledger_folder import LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.private_rounds import PrivateRounds
from offsite.edge_client.privacy.spent import spent_of
from offsite.emulator.rounds.plan import TuningSettings
from offsite.secure.identity import IdentityPublicKey
from offsite.simulation.clients import Client


@dataclass(slots=True, eq=False)
class PrivateClients:
    """Those of one campaign."""

    limit: PrivacyLimit
    coordinator: IdentityPublicKey
    clock: Callable[[], float]
    _rounds: dict[str, PrivateRounds] = field(default_factory=dict)
    _proven: set[tuple[str, TuningSettings]] = field(default_factory=set)
    _known: dict[str, tuple[int, float]] = field(default_factory=dict)
    """By client: entries of its ledger, and what is spent by then."""

    def rounds_of(self, client: Client, root: Path) -> PrivateRounds:
        """A client's rounds, with a new ledger.

        Raises:
            ConfigError: delta is too large for so few rows.
        """
        self.limit.check_units(client.data.unit_count)
        ledger = LedgerFolder.open(
            client.folder(root) / "ledger",
            client.key,
            client.client_id,
            f"offsite {version('offsite')}",
            self.clock,
        )
        ledger.settle_limit(self.limit)
        made = PrivateRounds(
            ledger,
            self.limit,
            self.coordinator,
            tell=_nobody,
            countersign=_never,
            proven=self._proven,
        )
        self._rounds[client.client_id] = made
        return made

    def spent(self) -> float | None:
        """The largest epsilon that a client has spent; None before anybody has."""
        for name, rounds in self._rounds.items():
            budget, entries = rounds.ledger.budget, rounds.ledger.ledger.size
            if budget.campaigns and self._known.get(name, (0, 0.0))[0] != entries:
                data_sets = {campaign.reserved.data_set for campaign in budget.campaigns.values()}
                spent = max(spent_of(budget, data_set).spent for data_set in data_sets)
                self._known[name] = entries, spent
        return max((spent for _, spent in self._known.values()), default=None)


def _nobody(text: str) -> None:
    """Clients of a simulation have no owner who listens."""


def _never() -> None:
    """No coordinator counter-signs a simulation's ledgers."""
