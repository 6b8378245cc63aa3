"""What the store's rows say about a campaign: which one it is, its standing, its result."""

import dataclasses
import enum
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from offsite.coordinator.adapter_files import AdapterFiles
from offsite.coordinator.campaign_parts import CampaignSettings, CampaignStore, Release
from offsite.coordinator.policy.orders import abortion, described
from offsite.coordinator.round_metrics import (
    CORRECTED,
    GATE,
    GAVE_UP,
    baseline_of,
    closed_of,
    standing_of,
)
from offsite.coordinator.standing import Standing
from offsite.coordinator.strategies.flower_strategies import state_schema
from offsite.coordinator.tables.campaigns import (
    INTERRUPTED,
    CampaignRow,
    CampaignState,
    RoundRow,
)
from offsite.secure.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CampaignResult:
    """How a campaign ended, or how it stands."""

    campaign_id: int
    standing: Standing
    released: bool
    """False: no round came within the tolerance; `adapter` is the untouched one."""
    adapter: dict[str, Tensor]
    reason: str
    is_corrected: bool | None = None
    """Whether the gate took the adapter corrected (`plug_in_forms`); None: no gate judged it."""


@dataclass(frozen=True, slots=True)
class CampaignRecord:
    """A campaign as it is written down."""

    settings: CampaignSettings
    release: Release
    store: CampaignStore
    files: AdapterFiles

    def open(self, now_unix_s: float) -> CampaignRow:
        """The campaign to go on with, or a new one; calling it again gives the same.

        One that failed or ended is followed by a new one only if release or settings have changed
        since: what was closed before a failure counts.

        Raises:
            ConfigError: a campaign of another release is under way.
        """
        settings = json.dumps(dataclasses.asdict(self.settings), sort_keys=True, default=_plain)
        row = self.store.current()
        if row is None or not self._goes_on(row, settings):
            return self.store.create(self.release.bundle_sha256, settings, now_unix_s)
        if row.settings != settings:
            log.warning("campaign %d goes on with settings that were changed", row.campaign_id)
        if row.state is CampaignState.FAILED:
            log.info("campaign %d failed before and goes on", row.campaign_id)
            self.store.set_state(row.campaign_id, CampaignState.WAITING, now_unix_s)
            return dataclasses.replace(row, state=CampaignState.WAITING, reason="")
        return row

    def closed(self, row: CampaignRow) -> list[RoundRow]:
        """The rounds that are over, in order."""
        return closed_of(self.store.rounds(row.campaign_id))

    def tries(self, attempt: RoundRow) -> int:
        """Attempts at this round so far, since the campaign last failed in it.

        Those that the owner ended do not count.
        """
        attempts = [r for r in self.store.rounds(attempt.campaign_id) if r.round == attempt.round]
        gave_up = max((r.attempt for r in attempts if GAVE_UP in r.metrics), default=0)
        return sum(r.attempt > gave_up and INTERRUPTED not in r.metrics for r in attempts)

    def baseline(self, row: CampaignRow) -> float | None:
        """The full model's gate, once a round that was judged is closed."""
        return baseline_of(self.closed(row))

    def standing(self, row: CampaignRow, baseline: float | None) -> Standing:
        """Where the campaign stands."""
        orders, gain = self.store.orders(row.campaign_id), self.settings.policy.least_gain
        return standing_of(self.closed(row), orders, baseline, gain)

    def is_over(self, row: CampaignRow, now: Standing) -> bool:
        """Whether no further round is to be opened."""
        if abortion(self.store.orders(row.campaign_id)) is not None:
            return True
        return now.is_over(self.settings.rounds, self.settings.patience)

    def start(self, row: CampaignRow) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        """Adapter and strategy state that the next round starts from, read when asked for."""
        number = self.standing(row, None).last_round
        last = next((r for r in self.closed(row) if r.round == number), None)
        if last is None:
            return self.release.adapter, {}
        assert last.adapter is not None  # every closed round has one
        adapter = self.files.lying(last.adapter, self.release.schema)
        state = state_schema(self.settings.strategy, self.release.schema)
        if last.strategy is None or not state:
            return adapter, {}
        if not self.files.fits(last.strategy, state):
            log.warning("the last round's strategy was another one: this one begins afresh")
            return adapter, {}
        return adapter, self.files.lying(last.strategy, state)

    def result(self, row: CampaignRow) -> CampaignResult:
        """The best adapter so far, or the untouched one where nothing may be released."""
        now = self.standing(row, self.baseline(row))
        released = now.may_release(self.settings.tolerance)
        if not released:
            return CampaignResult(
                row.campaign_id, now, released, self.untouched(), self._reason(row, now)
            )
        best = next(r for r in self.closed(row) if r.round == now.best_round)
        is_corrected = CORRECTED in best.metrics if GATE in best.metrics else None
        adapter = self._adapter_of(best)
        return CampaignResult(
            row.campaign_id, now, released, adapter, self._reason(row, now), is_corrected
        )

    def untouched(self) -> dict[str, Tensor]:
        """The adapter of the release."""
        return {name: self.release.adapter[name] for name in self.release.schema}

    def _goes_on(self, row: CampaignRow, settings: str) -> bool:
        same_release = row.release_sha256 == self.release.bundle_sha256
        if row.state in (CampaignState.ENDED, CampaignState.FAILED):
            return same_release and row.settings == settings
        if not same_release:
            raise ConfigError(
                f"campaign {row.campaign_id} is under way with release"
                f" {row.release_sha256.hex()[:16]}, found release"
                f" {self.release.bundle_sha256.hex()[:16]}; put the old bundle back to go on, or"
                " run `coordinator emulate --replace` to give it up"
            )
        return True

    def _adapter_of(self, closed: RoundRow) -> dict[str, Tensor]:
        assert closed.adapter is not None  # every closed round has one
        return self.files.read(closed.adapter, self.release.schema)

    def _reason(self, row: CampaignRow, now: Standing) -> str:
        orders = self.store.orders(row.campaign_id)
        aborted = f"{described(orders)}; " if abortion(orders) is not None else ""
        return aborted + self._verdict(now)

    def _verdict(self, now: Standing) -> str:
        if not now.may_release(self.settings.tolerance):
            return (
                "nothing is released: no round came within"
                f" {self.settings.tolerance} of the full model's gate of {_show(now.baseline)}"
            )
        if now.best_acc is None:
            return f"round {now.best_round} of {now.closed} is last; there is no gate to judge it"
        return (
            f"round {now.best_round} of {now.closed} is best: gate {_show(now.best_acc)},"
            f" full model {_show(now.baseline)}"
        )


def _show(acc: float | None) -> str:
    return "none" if acc is None else f"{acc:.4f}"


def _plain(value: object) -> object:
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(type(value))
