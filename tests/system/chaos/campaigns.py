"""A campaign in the weather: the coordinator is started again as often as it is killed."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from tests.coordinator.fleet import (
    COORDINATOR,
    KEYS,
    NAMES,
    SCHEMA,
    Announcements,
    Fleet,
    campaign,
)
from tests.system.chaos.edges import Edge
from tests.system.chaos.weather import CoordinatorKilled, Exposed, Fault, Weather

from offsite.coordinator.campaign import run_campaign
from offsite.coordinator.campaign_record import CampaignResult
from offsite.coordinator.grid import GrpcGrid
from offsite.coordinator.mailbox import Mailbox
from offsite.coordinator.secure_sums.decisions import Decision
from offsite.coordinator.spool import Spool
from offsite.coordinator.store import Store
from offsite.coordinator.tables.clients import CertificateRef
from offsite.emulator.rounds.exchange import most_reply_bytes
from offsite.emulator.rounds.vector import value_count

MOST_STARTS = 500
SKEW_S = 120.0
"""Of an edge's clock, either way; `limits.CLOCK_SKEW_S` is what is allowed."""


@dataclass
class Ran:
    """What came of it."""

    result: CampaignResult
    store: Store
    edges: list[Edge]
    starts: int
    accepted_before_the_line: dict[str, set[str]]
    """By sum: whose masked vector had been accepted when its survivors were drawn."""
    settings: dict[str, object] = field(default_factory=dict)


class Lived:
    """All processes of a campaign, in one; time passes while the coordinator pauses."""

    def __init__(self, folder: Path, weather: Weather, jumps_s: tuple[float, ...]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.weather, self.jumps_s = folder, weather, jumps_s
        self.fleet = Fleet()  # for its clock, keys and directory; its clients are not asked
        self.skews = {name: weather.random.uniform(-SKEW_S, SKEW_S) for name in NAMES}
        self.edges = [self._edge(name) for name in NAMES]
        self.accepted: dict[str, set[str]] = {}

    def _edge(self, name: str) -> Edge:
        def clock() -> float:
            return self.fleet.now + self.skews[name]

        return Edge(name, self.folder / name, clock, self.weather)

    def run(self, **settings: object) -> Ran:
        """To the end, whatever happens on the way."""
        for starts in range(1, MOST_STARTS):
            store = Store(self.folder / "coordinator.sqlite")
            try:
                result = self._run_once(store, settings)
            except CoordinatorKilled:
                store.close()
                self.fleet.now += 1.0  # a restart takes time
                continue
            return Ran(result, store, self.edges, starts, self.accepted)
        raise AssertionError(f"the campaign did not end in {MOST_STARTS} starts")

    def _run_once(self, store: Store, settings: dict[str, object]) -> CampaignResult:
        weather, fleet = self.weather, self.fleet
        for name in NAMES:
            if store.clients.get(name) is None:
                certificate = CertificateRef(name.encode(), fleet.now + 1e9)
                store.clients.add(name, KEYS[name].public.raw, certificate, fleet.now)
            store.clients.touch(name, "", fleet.now)
        messages, decisions = store.messages, store.decisions
        store.messages = Exposed(messages, "messages", weather)  # type: ignore[assignment]
        spool = Exposed(Spool(self.folder / "spool"), "spool", weather)
        mailbox = Mailbox(store, spool, lambda: fleet.now)  # type: ignore[arg-type]
        grid = GrpcGrid(
            mailbox,
            store,
            1,
            lambda: fleet.now,
            lambda m: most_reply_bytes(m.metadata.message_type, value_count(SCHEMA)),
        )
        subject = campaign(
            self.folder,
            fleet,
            grid,
            store=Exposed(store.campaigns, "campaigns", weather),
            decisions=Exposed(_Watched(decisions, self._note_line, messages), "decisions", weather),
            results=Exposed(store.results, "results", weather),
            pause=lambda seconds: self._pass(seconds, store, mailbox),
            **settings,
        )
        files = Exposed(subject.record.files, "adapters", weather)
        record = dataclasses.replace(subject.record, files=files)  # type: ignore[arg-type]
        return run_campaign(dataclasses.replace(subject, record=record, announce=Announcements()))

    def _pass(self, seconds: float, store: Store, mailbox: Mailbox) -> None:
        """Time passes: every edge does something, in an order that is drawn."""
        self.fleet.pause(seconds)
        if self.weather.strikes(Fault.CLOCK, "the coordinator's clock", 0.5):
            self.fleet.now += self.weather.random.choice(self.jumps_s)
        for edge in self.weather.random.sample(self.edges, len(self.edges)):
            store.clients.touch(edge.name, "", self.fleet.now)
            edge.step(mailbox)

    def _note_line(self, sum_id: str, names: set[str]) -> None:
        self.accepted.setdefault(sum_id, names)


class _Watched:
    """Decisions; says who was accepted when survivors were drawn for the first time."""

    def __init__(self, decisions, note, messages) -> None:  # type: ignore[no-untyped-def]
        self._decisions, self._note, self._messages = decisions, note, messages

    def __getattr__(self, name: str):
        return getattr(self._decisions, name)

    def keep(self, sum_id: str, decision: Decision, value: bytes) -> None:
        if decision is Decision.SURVIVORS:
            campaign_id, _, group = sum_id.partition(".")
            rows = self._messages.of_group(int(campaign_id), f"{group}.mask")
            self._note(sum_id, {row.client_id for row in rows if row.reply_sha256 is not None})
        self._decisions.keep(sum_id, decision, value)


assert COORDINATOR  # the fleet's coordinator signs plans and terms here, too
