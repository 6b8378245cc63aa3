"""A private edge's rounds: reserved, proven and claimed before anything is trained, and never more."""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from tests.edge_client.tuning.test_client_app import (
    COORDINATOR,
    IDENTITY,
    NOW,
    SETTINGS,
    Release,
    _identity,
    call,
    instruction,
    kept,
    plan_for,
    release,
    secure_for,
)

from offsite.edge_client.client_app import Listener, Machine, build_client_app
from offsite.edge_client.data import read_data
from offsite.edge_client.privacy import private_rounds
from offsite.edge_client.privacy.implementation import code_digest, implementation_of
from offsite.edge_client.privacy.ledger_folder import ENTRIES, LedgerFolder
from offsite.edge_client.privacy.limit import PrivacyLimit
from offsite.edge_client.privacy.private_rounds import PrivateRounds
from offsite.edge_client.privacy.spent import spent_of
from offsite.edge_client.worker import public_text
from offsite.emulator.bundle.bundle import Bundle
from offsite.emulator.privacy.per_example.engine import PerExampleEngine
from offsite.emulator.rounds.plan import ComputeDtype, RoundPlan, TuningSettings
from offsite.secure.errors import SitsOutError
from offsite.secure.privacy.ledger.accountants import AccountantsOfRecord, misstatement
from offsite.secure.privacy.ledger.bodies import (
    Aborted,
    Charged,
    Claimed,
    Committed,
    Implementation,
    Refused,
    Reserved,
    StartProof,
)
from offsite.secure.privacy.ledger.verification import verify_ledger

__all__ = ["_identity", "release"]  # fixtures

PRIVATE = replace(
    SETTINGS,
    local_steps=6,
    batch_examples=6,
    dtype=ComputeDtype.FLOAT32,
    validation_share=0.0,
    patience=0,
)
LIMIT = PrivacyLimit(8.0, 1e-3)


class Killed(BaseException):
    """What ends a process in a test."""


@dataclass
class Steps:
    """Lets a run take so many steps, and kills it then."""

    most: int
    run: int = 0

    def between(self) -> None:
        if self.run == self.most:
            raise Killed
        self.run += 1


@dataclass
class Edge:
    """A private edge on its folders; `started` is a new process on the same ones."""

    release: Release
    folder: Path
    limit: PrivacyLimit = LIMIT
    rows: range = range(24)
    said: list[str] = field(default_factory=list)
    statuses: list[str] = field(default_factory=list)
    countersigned: int = 0

    def started(self) -> "Edge":
        self.folder.mkdir(exist_ok=True, parents=True)
        path = self.folder / "data.jsonl"
        lines = (
            f'{{"prompt": "What is {i}?", "completion": " It is {i * i}."}}\n' for i in self.rows
        )
        path.write_text("".join(lines))
        self.ledger = LedgerFolder.open(
            self.folder / "ledger", IDENTITY, "clinic", "offsite", lambda: NOW
        )
        self.ledger.settle_limit(self.limit)
        self.rounds = PrivateRounds(
            self.ledger, self.limit, COORDINATOR.public, self.said.append, self._countersign
        )
        return self

    def _countersign(self) -> None:
        self.countersigned += 1

    def answer(self, plan: RoundPlan, between: Callable[[], None] = lambda: None) -> float:
        """Answers an instruction; the weight of its update."""
        app = build_client_app(
            self.release.bundle,
            read_data(self.folder / "data.jsonl"),
            secure_for(self.folder),
            self.folder / "work",
            privacy=self.rounds,
            listener=Listener(status=self.statuses.append, between_steps=between),
            machine=Machine(torch.device("cpu")),
        )
        message, digest = instruction(plan, self.release.adapter)
        return kept(self.release, self.folder, call(app, message), digest).weight

    @property
    def bodies(self) -> list[object]:
        found = verify_ledger(
            (self.folder / "ledger" / ENTRIES).read_bytes(),
            IDENTITY.public,
            accounting=AccountantsOfRecord(),
        )
        assert found.faults == ()
        return [record.entry.body for record in found.records]

    @property
    def executed(self) -> int:
        return sum(body.steps for body in self.bodies if isinstance(body, Committed))

    @property
    def claimed(self) -> int:
        return sum(body.steps for body in self.bodies if isinstance(body, Claimed))


def private_plan(release: Release, **changes: object) -> RoundPlan:
    return plan_for(release, settings=PRIVATE, **changes)  # type: ignore[arg-type]


@pytest.fixture
def edge(release: Release, tmp_path: Path) -> Edge:
    return Edge(release, tmp_path / "edge").started()


def test_a_round_is_reserved_proven_claimed_and_weighed_like_every_other(edge: Edge) -> None:
    assert edge.answer(private_plan(edge.release)) == pytest.approx(1.0, rel=1e-3)
    kinds = [type(body) for body in edge.bodies]
    assert kinds[2:5] == [private_rounds_data_set(), Reserved, StartProof]
    assert kinds[5:] == [Claimed, Committed] * 6
    reserved = next(body for body in edge.bodies if isinstance(body, Reserved))
    assert reserved.mechanism.uses == 14  # two rounds of 6, and a tenth more
    assert str(reserved.mechanism.sampling) == "1/4"  # type: ignore[union-attr]
    assert edge.executed == edge.claimed == 6 and edge.countersigned == 1
    (proof,) = (body for body in edge.bodies if isinstance(body, StartProof))
    assert (edge.folder / "ledger" / "proofs" / f"{proof.report.hex()}.json").exists()
    # What was told to the coordinator holds no figure of the data.
    assert edge.statuses[-1] == "tuning, round 1 of 2"
    assert not any("epsilon" in text or "24" in text for text in edge.statuses)
    assert any("epsilon" in text and "of 8" in text for text in edge.said)


def private_rounds_data_set() -> type:
    from offsite.secure.privacy.ledger.bodies import DataSetAdded

    return DataSetAdded


def test_a_campaign_killed_five_times_never_spends_less_than_it_did_nor_more_than_reserved(
    release: Release, tmp_path: Path
) -> None:
    """At random steps, over both of its rounds; a kill loses what was not yet written."""
    chance, edge = random.Random(5), Edge(release, tmp_path / "edge")
    kills, steps_run = [chance.randrange(1, 4) for _ in range(5)], 0
    for number in (1, 2):
        plan, is_done = private_plan(release, round=number), False
        while not is_done:
            most = kills.pop() if len(kills) > 2 * (number == 1) else 10**6
            steps = Steps(most)
            try:
                edge.started().answer(plan, steps.between)
                is_done = True
            except Killed:
                if chance.random() < 0.5:  # what the kill hid
                    lose_last_line(edge)
            steps_run += steps.run
    assert not kills
    reserved = next(body for body in edge.bodies if isinstance(body, Reserved)).mechanism
    assert steps_run <= edge.claimed <= reserved.uses
    budget = edge.started().ledger.budget
    campaign = next(iter(budget.campaigns.values()))
    assert campaign.spent == edge.claimed and campaign.spent >= edge.executed
    spent = spent_of(budget, campaign.reserved.data_set)
    assert 0 < spent.spent <= spent.reserved <= 8.0


def lose_last_line(edge: Edge) -> None:
    """Takes the last entry away if it is a commit, as a kill just before it would have."""
    path = edge.folder / "ledger" / ENTRIES
    lines = path.read_bytes().splitlines(keepends=True)
    if b'"kind":"committed"' in lines[-1]:
        path.write_bytes(b"".join(lines[:-1]))


def test_a_claim_whose_end_nobody_saw_is_charged(edge: Edge) -> None:
    def killed() -> None:
        raise Killed

    with pytest.raises(Killed):
        edge.answer(private_plan(edge.release), killed)
    lose_last_line(edge)
    edge.started()
    (charged,) = (body for body in edge.bodies if isinstance(body, Charged))
    assert charged.steps == 1


def test_overlapping_data_share_a_budget_and_the_campaign_that_exceeds_it_is_refused(
    edge: Edge,
) -> None:
    edge.limit = replace(LIMIT, epsilon=2.0)
    edge.started()
    for attempt in (1, 2, 3):  # all that was reserved
        edge.answer(private_plan(edge.release, attempt=attempt))
    edge.rounds.close()
    first = edge.ledger.budget
    (account,) = (campaign.reserved.data_set for campaign in first.campaigns.values())
    before = spent_of(first, account).spent
    # Half of the rows again, in another campaign: what was spent before counts.
    edge.rows, edge.statuses = range(12, 40), []
    edge.started()
    with pytest.raises(SitsOutError, match="steps would fit"):
        edge.answer(private_plan(edge.release, campaign_id=77, attempt=1))
    assert isinstance(edge.bodies[-1], Refused)
    assert edge.statuses == ["encoding the data"]  # nothing was loaded, nothing was trained
    assert edge.executed == 14 and spent_of(edge.ledger.budget, account).spent == before
    # Rows that share nothing have a budget of their own.
    edge.rows = range(100, 124)
    edge.started().answer(private_plan(edge.release, campaign_id=78))


def test_a_second_campaign_is_accounted_by_the_filter_and_both_stay_within_the_limit(
    edge: Edge,
) -> None:
    edge.limit = replace(LIMIT, campaign_epsilon=2.0)
    edge.started().answer(private_plan(edge.release))
    edge.answer(private_plan(edge.release, campaign_id=77))
    kinds = [body.adaptivity.value for body in edge.bodies if isinstance(body, Reserved)]
    assert kinds == ["preregistered", "filter"]
    for campaign in edge.ledger.budget.campaigns.values():
        assert spent_of(edge.ledger.budget, campaign.reserved.data_set).reserved <= 8.0


@pytest.mark.parametrize(
    ("lowered", "says"),
    [
        (replace(LIMIT, epsilon=1.0), "its limit is 1"),
        (replace(LIMIT, campaign_epsilon=1.0), "a campaign of epsilon at most 1 "),
    ],
)
def test_a_lowered_limit_stops_an_open_campaign(
    edge: Edge, lowered: PrivacyLimit, says: str
) -> None:
    edge.answer(private_plan(edge.release))
    claimed, edge.limit = edge.claimed, lowered
    with pytest.raises(SitsOutError, match=f"than the limit allows now: .*{says}"):
        edge.started().answer(private_plan(edge.release, round=2))
    assert edge.claimed == claimed


def test_what_the_owner_was_shown_stands_in_the_ledger(edge: Edge) -> None:
    """The epsilon of the campaign alone, by every accountant; an auditor computes it again."""
    edge.answer(private_plan(edge.release))
    (reserved,) = (body for body in edge.bodies if isinstance(body, Reserved))
    stated = reserved.stated
    assert stated is not None and stated.prv is not None and stated.delta == LIMIT.delta
    assert 7.5 < stated.pld <= 8.0 and abs(stated.prv - stated.pld) < 0.02 <= stated.rdp
    assert "dp-accounting 0." in stated.versions
    assert misstatement(reserved, AccountantsOfRecord()) is None


def test_another_model_or_adapter_is_not_what_was_reserved(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.answer(private_plan(edge.release))
    for changes in ({"model": bytes(32)}, {"adapter": bytes(32)}, {"engine": "other"}):
        with monkeypatch.context() as patched:
            patched.setattr(private_rounds, "implementation_of", _changed(**changes))
            with pytest.raises(SitsOutError, match="expected the model and the adapter that were"):
                edge.started().answer(private_plan(edge.release, round=2))
    assert edge.claimed == 6


def test_another_program_is_told_and_proven_and_its_proof_names_it(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    edge.answer(private_plan(edge.release))
    assert private_rounds.OTHER_PROGRAM not in edge.said
    newer = bytes(range(32))
    monkeypatch.setattr(private_rounds, "implementation_of", _changed(code=newer))
    monkeypatch.setattr(private_rounds, "code_digest", lambda: newer)
    edge.started().answer(private_plan(edge.release, round=2))
    assert private_rounds.OTHER_PROGRAM in edge.said
    first, second = (body for body in edge.bodies if isinstance(body, StartProof))
    codes = [
        json.loads((edge.folder / "ledger" / "proofs" / f"{proof.report.hex()}.json").read_bytes())
        for proof in (first, second)
    ]
    assert codes[0]["subject"]["code"] == code_digest().hex() != newer.hex()
    assert codes[1]["subject"]["code"] == newer.hex()


def _changed(**changes: object) -> Callable[..., Implementation]:
    def changed(bundle: Bundle, settings: TuningSettings) -> Implementation:
        return replace(implementation_of(bundle, settings), **changes)  # type: ignore[arg-type]

    return changed


def test_terms_are_frozen_for_a_campaign(edge: Edge) -> None:
    edge.answer(private_plan(edge.release))
    for changes in ({"batch_examples": 12}, {"unit_clip": 0.5}):
        other = replace(PRIVATE, **changes)  # type: ignore[arg-type]
        with pytest.raises(SitsOutError, match="frozen for a campaign"):
            edge.answer(plan_for(edge.release, settings=other, round=2))
        assert isinstance(edge.bodies[-1], Aborted)


def test_steps_that_would_tell_how_many_rows_there_are_are_refused(edge: Edge) -> None:
    by_epochs = replace(PRIVATE, local_steps=0, local_epochs=2.0)
    with pytest.raises(SitsOutError, match="ask the coordinator to set tuning"):
        edge.answer(plan_for(edge.release, settings=by_epochs))
    assert edge.claimed == 0


def test_other_settings_are_proven_anew(edge: Edge) -> None:
    edge.answer(private_plan(edge.release))
    edge.answer(private_plan(edge.release, attempt=2))
    assert sum(isinstance(body, StartProof) for body in edge.bodies) == 1
    narrow = replace(PRIVATE, micro_batch_tokens=64)
    edge.answer(plan_for(edge.release, settings=narrow, round=2))
    assert sum(isinstance(body, StartProof) for body in edge.bodies) == 2


def test_a_damaged_ledger_tells_the_coordinator_nothing(edge: Edge) -> None:
    edge.answer(private_plan(edge.release))
    for path in (edge.folder / "ledger" / "data").iterdir():
        path.write_bytes(b"changed")
    edge.rows = range(12, 40)
    edge.started()
    with pytest.raises(SitsOutError, match="record digests") as caught:
        edge.answer(private_plan(edge.release, round=2))
    assert public_text(caught.value) == "SitsOutError: this edge sits this round out"


def test_a_campaign_that_runs_out_of_steps_sits_the_rest_out(edge: Edge) -> None:
    for attempt in (1, 2):
        edge.answer(private_plan(edge.release, attempt=attempt))
    edge.answer(private_plan(edge.release, attempt=3))  # 2 of 14 were left
    assert "used up" in edge.statuses[-1] and edge.claimed == 14
    with pytest.raises(SitsOutError, match="sits the rest of it out"):
        edge.answer(private_plan(edge.release, attempt=4))
    assert edge.claimed == 14


class HalfClipped(PerExampleEngine):
    """An engine that clips to twice what it should."""

    def clipped_sum_into(self, batch, units, clip, total):  # type: ignore[no-untyped-def]
        return super().clipped_sum_into(batch, units, 2 * clip, total)


def test_a_mechanism_that_fails_its_proof_trains_nothing(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_rounds, "PerExampleEngine", HalfClipped)
    with pytest.raises(SitsOutError, match="start-up proof failed"):
        edge.answer(private_plan(edge.release))
    proof = next(body for body in edge.bodies if isinstance(body, StartProof))
    assert not proof.passed and edge.claimed == 0
    # The failure stays an entry. The next session proves anew, and trains because that proof passed.
    monkeypatch.undo()
    edge.started().answer(private_plan(edge.release, attempt=2))
    assert [b.passed for b in edge.bodies if isinstance(b, StartProof)] == [False, True]


def test_what_the_limit_refuses_tells_the_coordinator_nothing_of_the_data() -> None:
    for error in (SitsOutError("13 of 14 steps would fit"), SitsOutError("less than 1/24")):
        assert public_text(error) == "SitsOutError: this edge sits this round out"


def test_a_delta_that_means_nothing_for_so_few_rows_is_refused(edge: Edge) -> None:
    edge.limit = replace(LIMIT, delta=0.05)
    with pytest.raises(SitsOutError, match="less than 1/24"):
        edge.started().answer(private_plan(edge.release))
