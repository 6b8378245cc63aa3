"""The edge's part of a secure sum: from an encoded update to masked words, step by step.

    begin     terms checked against plan and policy, update encoded, advertisement made
    answer    share, acknowledge, mask, confirm, reveal; each from the folder, each stored before
              it is sent, so that a killed edge answers the same again

Rules it enforces, beside those of `offsite.secure.aggregation.member`: the terms are for this plan
(release, adapter, round) and this schema, the first for this attempt; the members are named by a
directory of the pinned authority, the very one that the terms name, without anybody who was revoked
as far as this edge knows; the update is encoded once and never leaves but masked.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message, RecordDict

from offsite.edge_client.secure_folder import (
    SecureFolder,
    Turn,
    check_turn,
    note_begun,
    taken_of,
)
from offsite.emulator.rounds.exchange import (
    Action,
    exchange_content,
    pack_sharing,
    read_exchange,
    read_messages,
    read_share_request,
)
from offsite.emulator.rounds.plan import RoundPlan, SignedPlan
from offsite.emulator.rounds.vector import Schema, schema_digest, value_count
from offsite.secure import envelope
from offsite.secure.aggregation.fixed_point import LEAST_WEIGHT, Values, encode
from offsite.secure.aggregation.journal import Step, unpack_deliveries
from offsite.secure.aggregation.keys import SEED_BYTES
from offsite.secure.aggregation.keystream import Words
from offsite.secure.aggregation.member import Member, Self, open_config
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.directory import Directory, Status, check_successor, open_directory
from offsite.secure.envelope import Envelope
from offsite.secure.errors import IdentityError, PeerError, PolicyError
from offsite.secure.identity import IdentityKey, IdentityPublicKey


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom this edge believes, and what it demands."""

    coordinator_key: IdentityPublicKey
    authority_key: IdentityPublicKey
    directory: Callable[[], Directory]
    """The newest one that was accepted."""
    keep_directory: Callable[[Envelope], None]
    """Takes a newer one, once it was checked."""
    policy: PolicyFloor = field(default_factory=PolicyFloor)


@dataclass(frozen=True, slots=True)
class SecureRounds:
    """Takes part in secure sums; one at a time. `root` holds their folders."""

    client_id: str
    identity: IdentityKey = field(repr=False)
    trust: Trust
    root: Path
    clock: Callable[[], float]
    threads: int = 1
    entropy: Callable[[], bytes] = lambda: secrets.token_bytes(SEED_BYTES)

    def check_terms(self, terms: bytes, signed: SignedPlan, schema: Schema) -> bool:
        """The terms of a sum, before anything is tuned for it.

        Returns whether the update for it was tuned and encoded before, so that `resume` serves.

        Raises:
            PeerError: not signed by the coordinator, or for another plan or schema.
            PolicyError: below what this machine demands, or this attempt had other terms before.
        """
        config, plan = open_config(terms, self.trust.coordinator_key), signed.plan
        found = (config.binding, config.campaign_id, config.attempt)
        if found != (signed.digest, str(plan.campaign_id), plan.attempt):
            raise PeerError("expected the terms of a sum for this plan, found those of another")
        if (config.schema_sha256, config.values) != (schema_digest(schema), value_count(schema)):
            raise PeerError("expected the terms of a sum for this adapter, found those of another")
        if config.noise_sigma:
            raise PolicyError(
                "the terms promise noise in the sum, and this program adds none there"
            )
        self.trust.policy.check(config)
        check_turn(self.root, _turn(plan), config.digest)
        return SecureFolder.of(self.root, config.digest).is_there

    def took_part(self, plan: RoundPlan) -> bool:
        """Whether an update was given to an earlier attempt or round of this plan's campaign."""
        taken, turn = taken_of(self.root), _turn(plan)
        return taken is not None and taken.turn[0] == turn[0] and taken.turn < turn

    def begin(
        self, terms: bytes, signed: SignedPlan, update: Values, num_examples: float
    ) -> RecordDict:
        """Encodes the update and stores it; returns what the reply to the instruction holds.

        Args:
            terms: those that `check_terms` has accepted, for the first time.
            update: the change of the adapter, fp32 (d,) (`emulator.rounds.vector`).
            num_examples: by which it is weighed; infinity weighs as much as the terms admit.
        """
        config = open_config(terms, self.trust.coordinator_key)
        weight = min(max(num_examples / config.full_weight, LEAST_WEIGHT), 1.0)
        words = encode(update, weight, config.fixed_point)
        turn = _turn(signed.plan)
        SecureFolder.begin(self.root, turn, config.digest, terms, self.entropy(), words)
        return self.resume(terms)

    def resume(self, terms: bytes) -> RecordDict:
        """What `begin` returned, from the folder: the advertisement of fresh keys."""
        config = open_config(terms, self.trust.coordinator_key)
        folder = SecureFolder.of(self.root, config.digest)
        note_begun(self.root, config.digest)
        member = self._member(folder, config)
        if member.next is Step.ADVERTISE:
            member.advertise(self.clock())
            folder.write_journal(member.journal)
        return exchange_content(config.digest, member.journal[Step.ADVERTISE.value].sent[0])

    def answer(self, action: Action, message: Message) -> Message:
        """The reply to one step.

        Raises:
            PeerError: what came does not fit; nothing was given away.
            PolicyError: it would break a rule of the protocol or of this machine.
        """
        digest, body = read_exchange(message)
        folder = SecureFolder.of(self.root, digest)
        config = open_config(folder.read("terms"), self.trust.coordinator_key)
        if action is Action.SHARE:
            self._take_directory(folder, config, read_share_request(body)[0])
        member = self._member(folder, config)
        step = Step[action.name]
        if member.next is step:
            masked = self._take(step, member, folder, body)
            folder.write_journal(member.journal)
        elif member.next.value > step.value:
            self._check_same(member, step, body)
            masked = (
                member.masked_again(folder.words(), self.threads) if step is Step.MASK else None
            )
        else:
            raise PeerError(f"expected {member.next.name.lower()} next, found {action.value}")
        sent = member.journal[step.value].sent
        reply = pack_sharing(sent[0], sent[1:]) if action is Action.SHARE else sent[0]
        return Message(exchange_content(digest, reply, masked), reply_to=message)

    def _take(self, step: Step, member: Member, folder: SecureFolder, body: bytes) -> Words | None:
        """Takes a step; returns the masked words where it makes them."""
        now, received = self.clock(), _received(step, body)
        match step:
            case Step.SHARE:
                member.share(received, now)
            case Step.ACKNOWLEDGE:
                member.acknowledge(unpack_deliveries(received), now)
            case Step.MASK:
                words = folder.words()
                member.mask(received[0], words, folder, now, self.threads)
                return words
            case Step.CONFIRM:
                member.confirm(received, now)
            case Step.REVEAL:
                member.reveal(received, folder, now)
            case _:
                raise PeerError(f"expected a step after tuning, found {step.name}")
        return None

    def _check_same(self, member: Member, step: Step, body: bytes) -> None:
        """Asked again what was answered before: the same question gets the same answer."""
        if member.journal[step.value].received != tuple(_received(step, body)):
            raise PeerError(
                f"{step.name.lower()} was answered before, for something else: the coordinator "
                "changed its mind; this edge does not"
            )

    def _member(self, folder: SecureFolder, config: RoundConfig) -> Member:
        me = Self(self.client_id, self.identity)
        coordinator, policy = self.trust.coordinator_key, self.trust.policy
        member = Member(
            me, config, coordinator, _KeysOf(folder, self.trust), policy, folder.read("entropy")
        )
        member.restore(folder.journal())
        return member

    def _take_directory(self, folder: SecureFolder, config: RoundConfig, signed: bytes) -> None:
        """The directory of the terms: signed, the one they name, and nothing behind our back."""
        found = envelope.from_bytes(signed)
        directory = open_directory(found, self.trust.authority_key, self.clock())
        stated = (config.directory_version, config.directory_sha256)
        if (directory.version, directory_digest(signed)) != stated:
            raise PeerError("expected the directory that the terms name, found another")
        known = self.trust.directory()
        if directory.version < known.version:
            _check_still_stands(directory, known)
        else:
            check_successor(known, directory)
        folder.write_directory(signed)
        if directory.version > known.version:
            self.trust.keep_directory(found)


def _check_still_stands(older: Directory, known: Directory) -> None:
    """Of a sum that began before a newer directory came: nobody in it was revoked since."""
    check_successor(older, known)
    for entry in older.entries:
        now = known.find(entry.client_id)
        if entry.status is Status.ACTIVE and (now is None or now.status is not Status.ACTIVE):
            raise IdentityError(
                f"expected a directory after {entry.client_id} was revoked in version "
                f"{known.version}, found version {older.version}: the coordinator went back in time"
            )


def _turn(plan: RoundPlan) -> Turn:
    return plan.campaign_id, plan.round, plan.attempt


@dataclass(slots=True)
class _KeysOf:
    """The identity keys of the directory in a sum's folder, read when first asked for."""

    folder: SecureFolder
    trust: Trust
    _directory: Directory | None = None

    def __call__(self, client_id: str) -> IdentityPublicKey:
        if self._directory is None:
            found = envelope.from_bytes(self.folder.read("directory"))
            self._directory = open_directory(found, self.trust.authority_key, 0.0)
        return self._directory.active(client_id).identity_key


def directory_digest(signed: bytes) -> bytes:
    """What the terms of a sum call a directory: SHA-256 of its exact signed bytes."""
    return hashlib.sha256(signed).digest()


def _received(step: Step, body: bytes) -> Sequence[bytes]:
    match step:
        case Step.SHARE:
            return read_share_request(body)[1]
        case Step.MASK:
            return (body,)
        case _:
            return read_messages(body)
