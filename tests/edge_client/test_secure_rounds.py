"""What an edge checks of the directory that a sum's members are named by."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from tests.secure.aggregation.fleets import COORDINATOR, config, identity_of, name_of

from offsite.edge_client.secure_rounds import SecureRounds, Trust
from offsite.emulator.rounds.exchange import (
    Action,
    exchange_content,
    pack_share_request,
    read_exchange,
)
from offsite.emulator.rounds.flower_internals import set_task_identity
from offsite.emulator.rounds.plan import RoundPlan, SignedPlan, TuningSettings
from offsite.secure import envelope
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import CONFIG_TYPE
from offsite.secure.directory import Directory, DirectoryEntry, Role, Status, sign_directory
from offsite.secure.envelope import Envelope
from offsite.secure.errors import IdentityError, PeerError, SignatureError
from offsite.secure.identity import IdentityKey

AUTHORITY = IdentityKey.from_seed(hashlib.sha256(b"authority").digest())
NAMES = [name_of(0), name_of(1)]
UPDATE = np.ones(16, np.float32)
PLAN = SignedPlan(RoundPlan(1, 1, 1, 1, "ab" * 32, "cd" * 32, TuningSettings(), 1e9, 0), bytes(32))


def entry(name: str) -> DirectoryEntry:
    return DirectoryEntry(name, identity_of(name).public, Role.CLIENT, Status.ACTIVE, 0.0)


FIRST = Directory(1, (entry(NAMES[0]), entry(NAMES[1])))
JOINED = FIRST.with_entry(entry("edge-new"))
REVOKED = FIRST.with_revoked(NAMES[1], "left", 5.0)


@dataclass
class Edge:
    """One that knows a directory, in a sum whose terms name another."""

    folder: Path
    known: Directory
    named: Directory
    signer: IdentityKey = AUTHORITY
    kept: list[Envelope] = field(default_factory=list)

    def share(self) -> Message:
        """Its reply to the request for shares."""
        set_task_identity(1, 1)
        signed = envelope.to_bytes(sign_directory(self.named, self.signer))
        terms = config(
            2,
            directory_version=self.named.version,
            directory_sha256=hashlib.sha256(signed).digest(),
            deadlines_unix_s=(1e9,) * 5,
        )
        packed = envelope.to_bytes(envelope.sign(CONFIG_TYPE, terms.to_bytes(), COORDINATOR))
        trust = Trust(
            COORDINATOR.public,
            AUTHORITY.public,
            lambda: self.known,
            self.kept.append,
            PolicyFloor(least_cohort=2),
        )
        edges = [
            SecureRounds(name, identity_of(name), trust, self.folder / name, lambda: 0.0)
            for name in NAMES
        ]
        begun = [edge.begin(packed, PLAN, UPDATE, 10) for edge in edges]
        said = [
            read_exchange(Message(content, dst_node_id=1, message_type="train"))[1]
            for content in begun
        ]
        body = pack_share_request(signed, said)
        request = Message(
            exchange_content(terms.digest, body), dst_node_id=9, message_type="train.share"
        )
        return edges[0].answer(Action.SHARE, request)


def test_a_newer_directory_is_kept_once_it_was_checked(tmp_path: Path) -> None:
    edge = Edge(tmp_path, FIRST, JOINED)
    assert not edge.share().has_error()
    assert [signed.payload for signed in edge.kept] == [sign_directory(JOINED, AUTHORITY).payload]


def test_a_sum_that_began_before_somebody_joined_goes_on(tmp_path: Path) -> None:
    edge = Edge(tmp_path, JOINED, FIRST)
    assert not edge.share().has_error() and not edge.kept


def test_a_directory_from_before_a_revocation_is_refused(tmp_path: Path) -> None:
    edge = Edge(tmp_path, REVOKED, FIRST)
    with pytest.raises(IdentityError, match="went back in time"):
        edge.share()


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    edge = Edge(tmp_path, FIRST, FIRST, signer=COORDINATOR)
    with pytest.raises(SignatureError):
        edge.share()


def test_a_directory_that_is_no_successor_is_refused(tmp_path: Path) -> None:
    other = Directory(5, (entry(NAMES[0]),))
    with pytest.raises(PeerError, match=r"keep .edge-001."):
        Edge(tmp_path, FIRST, other).share()
