"""What a campaign works with: settings, release, keys, and the interfaces it is written against."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from flwr.serverapp import Grid
from torch import Tensor

from offsite.coordinator.config_strategy import StrategySection
from offsite.coordinator.gate import Gate
from offsite.coordinator.mailbox import Phase
from offsite.coordinator.policy.orders import GivenOrder
from offsite.coordinator.policy.settings import PolicySettings
from offsite.coordinator.secure_sums.decisions import Decisions
from offsite.coordinator.secure_sums.result_log import Results
from offsite.coordinator.secure_sums.settings import SumSettings
from offsite.coordinator.tables.campaigns import CampaignRow, CampaignState, FileRef, RoundRow
from offsite.emulator.rounds.plan import TuningSettings
from offsite.emulator.schema import TensorSpec
from offsite.secure.identity import IdentityKey, IdentityPublicKey

if TYPE_CHECKING:
    from flwr.app import Message

    from offsite.coordinator.campaign_record import CampaignRecord
    from offsite.coordinator.secure_sums.secure_sum import Cohort, CohortMean


@dataclass(frozen=True, slots=True)
class CampaignSettings:
    """How many rounds, with whom, and what counts."""

    tuning: TuningSettings
    strategy: StrategySection = field(default_factory=StrategySection)
    min_clients: int = 2
    min_replies: int = 2
    rounds: int = 3
    attempts: int = 3
    """How often a round is tried before the campaign fails."""
    patience: int = 0
    """Rounds without a gain of the gate after which it ends; 0: never."""
    tolerance: float = 0.01
    """Accuracy that a plug-in may lose against the full model."""
    deadline_s: float = 3600.0
    """Time for tuning; the exchanges after it have their own (`sums.phase_s`)."""
    sums: SumSettings = field(default_factory=SumSettings)
    seed: int = 0
    policy: PolicySettings = field(default_factory=PolicySettings)
    leave_s: float = 0.0
    """When a round goes on without those who are gone (`leases`); 0: at its deadline."""
    poll_s: float = 0.25

    @property
    def min_cohort(self) -> int:
        """Clients asked for each sum, at least."""
        return max(self.policy.min_cohort, self.min_replies)


@dataclass(frozen=True, slots=True)
class Member:
    """A client of the directory."""

    client_id: str
    identity_key: IdentityPublicKey


@dataclass(frozen=True, slots=True)
class Release:
    """What the campaign tunes: the bundle by digest, and the untouched adapter."""

    bundle_sha256: bytes
    schema: Mapping[str, TensorSpec]
    adapter: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class CoordinatorKeys:
    """What signs plans and terms, and whose word on the directory counts."""

    identity: IdentityKey
    authority: IdentityPublicKey


@dataclass(frozen=True, slots=True)
class SecureParts:
    """What secure sums need beside the grid."""

    directory: Callable[[], bytes]
    """The newest signed directory."""
    decisions: Decisions
    results: Results
    evidence: Path
    """Takes one folder for each sum, and the log of all results."""
    threads: int = 1
    summing: "Callable[[Campaign, Cohort], CohortSum] | None" = None
    """How a cohort is summed; None: by the protocol (`SecureSum`). A simulation, whose clients
    are its own, may add in the clear."""


class CohortSum(Protocol):
    """One cohort's sum, as `replies` uses it."""

    refused: set[str]
    """Members of whom something was left out."""
    update_bytes: int

    def add_advertisements(self, replies: "Iterable[tuple[str, Message]]") -> None: ...
    def mean(self) -> "CohortMean": ...


class CampaignStore(Protocol):
    """The rows of campaigns and rounds; `tables.campaigns.CampaignTable` is one."""

    def create(self, release_sha256: bytes, settings: str, now_unix_s: float) -> CampaignRow: ...
    def current(self) -> CampaignRow | None: ...
    def set_state(
        self, campaign_id: int, state: CampaignState, now_unix_s: float, reason: str = ""
    ) -> None: ...
    def open_round(
        self, campaign_id: int, round_number: int, now_unix_s: float, heard: int | None = None
    ) -> RoundRow: ...
    def set_plan(self, opened: RoundRow, plan: bytes) -> None: ...
    def close_round(
        self,
        opened: RoundRow,
        adapter: FileRef,
        strategy: FileRef | None,
        metrics: Mapping[str, float],
        now_unix_s: float,
        heard: int | None = None,
    ) -> None: ...
    def abandon_round(
        self, opened: RoundRow, metrics: Mapping[str, float], now_unix_s: float
    ) -> None: ...
    def rounds(self, campaign_id: int) -> list[RoundRow]: ...
    def open_attempt(self, campaign_id: int) -> RoundRow | None: ...
    def orders(self, campaign_id: int, after: int = 0) -> list[GivenOrder]: ...


@runtime_checkable
class DurableGrid(Protocol):
    """What our engines add to Flower's `Grid`: messages that survive a restart."""

    def find(self, group_id: str) -> list[str]: ...
    def close(self, group_id: str) -> None: ...


def everybody_fits(client_id: str) -> str:
    """For engines whose clients state nothing."""
    return ""


def never_silent(node: int) -> float:
    """For engines that do not know when they heard of a node."""
    return 0.0


def no_announcement(phase: Phase, reason: str) -> None:
    """For engines whose edges do not ask."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """Everything a campaign works with."""

    record: "CampaignRecord"
    keys: CoordinatorKeys
    grid: Grid
    members: Callable[[], Mapping[int, Member]]
    """Clients of the directory that are not revoked, by Flower node id."""
    secure: SecureParts
    gate: Gate | None
    announce: Callable[[Phase, str], None] = no_announcement
    misfit: Callable[[str], str] = everybody_fits
    """Why a client is not to be asked, by what it states (`policy.eligibility`); "" if it is."""
    silent_s: Callable[[int], float] = never_silent
    """How long nothing was heard of a node (`leases`)."""
    clock: Callable[[], float] = time.time
    pause: Callable[[float], None] = time.sleep

    @property
    def settings(self) -> CampaignSettings:
        return self.record.settings

    def close_messages(self, group: str) -> None:
        """Withdraw an attempt's messages and those of its sums, where the grid keeps any."""
        if isinstance(self.grid, DurableGrid):
            self.grid.close(group)

    def eligible(self) -> list[int]:
        """Those of the connected that state what the policy wants."""
        members, there = self.members(), self.connected()
        return [n for n in there if n in members and not self.misfit(members[n].client_id)]

    def connected(self) -> list[int]:
        """Nodes that are connected and in the directory."""
        return sorted(set(self.grid.get_node_ids()) & self.members().keys())


def group_id(row: RoundRow) -> str:
    """What Flower's messages call an attempt at a round."""
    return f"{row.round}.{row.attempt}"
