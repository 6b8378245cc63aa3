"""The coordinator's side of a secure sum, as a state machine without I/O.

    gather advertisements ─> freeze roster ─> gather sharings, deliver ─> gather acknowledgements
      ─> freeze members ─> gather uploads ─> freeze survivors ─> gather confirmations
      ─> gather reveals ─> masks to take away

What arrives is checked as it arrives, and refused by name; the same bytes may come again. Freezing
is the coordinator's decision (all there, or the deadline passed) and happens once. Everything is
kept as the signed bytes that came, so that state is rebuilt from them and an audit reads the same.

Who complains and who is complained about both leave before anything is masked: who of the two is
right cannot be told without opening keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from offsite.secure.aggregation import dealing
from offsite.secure.aggregation.dealing import Delivery
from offsite.secure.aggregation.masks import Mask
from offsite.secure.aggregation.messages import (
    MESSAGE_BYTES,
    Acknowledgement,
    Confirmation,
    Members,
    Part,
    Reveal,
    Sharing,
    Upload,
    opened,
    signed,
    survivors_digest,
)
from offsite.secure.aggregation.roster import KeyOf, Roster, freeze_roster, open_advertisement
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.aggregation.survivors import check_survivors
from offsite.secure.aggregation.unmasking import Agreement, check_reveal, masks_of_sum
from offsite.secure.envelope import from_bytes
from offsite.secure.errors import PeerError, PolicyError
from offsite.secure.identity import IdentityKey


@dataclass(slots=True)
class _Received:
    """Signed bytes by client id, one box for each kind of message."""

    advertisements: dict[str, bytes] = field(default_factory=dict)
    sharings: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, tuple[bytes, ...]] = field(default_factory=dict)
    acknowledgements: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    confirmations: dict[str, bytes] = field(default_factory=dict)
    reveals: dict[str, bytes] = field(default_factory=dict)


class Gathering:
    """See the module. `key` signs the members; an audit has none. All methods raise PeerError for what does not fit; nothing changes then."""

    def __init__(self, config: RoundConfig, key: IdentityKey | None, key_of: KeyOf) -> None:
        self.config = config
        self.received = _Received()
        self._key, self._key_of = key, key_of
        self._roster: Roster | None = None
        self._members: Members | None = None
        self._agreement: Agreement | None = None
        self._opened: dict[str, tuple[Part, ...]] = {}
        self._deliveries: dict[str, list[Delivery]] = {}

    # Phase 1.

    def add_advertisement(self, data: bytes) -> str:
        """Takes one in; returns whose it is."""
        if self._roster is not None:
            raise _late("advertisement")
        entry = open_advertisement(self.config, data, self._key_of)
        _put(self.received.advertisements, entry.client_id, data)
        return entry.client_id

    def freeze_roster(self) -> tuple[bytes, ...]:
        """U1: the signed advertisements to send to all, at most as many as the terms allow."""
        if self._roster is None:
            names = sorted(self.received.advertisements)[: self.config.most_members]
            chosen = [self.received.advertisements[name] for name in names]
            self._roster = freeze_roster(self.config, chosen, self._key_of)
        return self._roster.signed

    def adopt_roster(self, signed_advertisements: Sequence[bytes]) -> tuple[bytes, ...]:
        """U1 as it was drawn before: after a restart. Raises PeerError for another one."""
        roster = freeze_roster(self.config, signed_advertisements, self._key_of)
        if self._roster is not None and self._roster.digest != roster.digest:
            raise PeerError("expected the roster that was drawn before, found another")
        self._roster = roster
        return roster.signed

    # Phase 2.

    def add_sharing(self, data: bytes, parts: Sequence[bytes], client_id: str) -> None:
        """Takes in what a member dealt: its signed word and the parts that it is about."""
        roster = self.roster
        if self._members is not None:
            raise _late("sharing")
        roster.position(client_id)
        message = opened(Sharing, data, self._key_of(client_id))
        fits = (message.client_id, message.roster) == (client_id, roster.digest)
        if not fits or len(parts) != len(roster.advertisements):
            raise PeerError(f"{client_id}: expected a sharing for this roster, found another")
        if dealing.parts_root(parts) != message.parts_root:
            raise PeerError(f"{client_id}: expected the parts that it signed, found others")
        opened_parts = tuple(Part.from_bytes(part) for part in parts)
        if client_id in self.received.sharings:  # sealed afresh, it would never be the same again
            _put(self.received.sharings, client_id, data)
            return
        self.received.sharings[client_id] = data
        self.received.parts[client_id] = tuple(parts)
        self._opened[client_id] = opened_parts
        self._deliveries[client_id] = dealing.deliveries(data, parts)

    def deliveries(self, client_id: str) -> dict[str, Delivery]:
        """What every dealer so far has for a member, by dealer."""
        position = self.roster.position(client_id)
        return {
            dealer: given[position]
            for dealer, given in self._deliveries.items()
            if dealer != client_id
        }

    # Phase 2b.

    def add_acknowledgement(self, data: bytes, client_id: str) -> None:
        """Takes in whose shares fitted a member, and whose did not."""
        if self._members is not None:
            raise _late("acknowledgement")
        message = opened(Acknowledgement, data, self._key_of(client_id))
        if (message.client_id, message.roster) != (client_id, self.roster.digest):
            raise PeerError(
                f"{client_id}: expected an acknowledgement of this roster, found another"
            )
        if client_id not in self.received.sharings:
            raise PeerError(f"{client_id}: expected a sharing before the acknowledgement")
        _put(self.received.acknowledgements, client_id, data)

    def freeze_members(self) -> bytes:
        """U2, signed: who acknowledged, was not complained about, and whom all of them accept."""
        if self._members is None:
            self._members = Members(self.roster.digest, self._agreeing())
            self._check_enough(len(self._members.client_ids), "members")
        assert self._key is not None  # only an audit has none, and it adopts
        return signed(self._members, self._key)

    def adopt_members(self, members: Members) -> None:
        """U2 as it was chosen and signed before: after a restart, and in an audit.

        Raises:
            PeerError: these members cannot follow from what was taken in.
        """
        acknowledged = self.received.acknowledgements
        if members.roster != self.roster.digest or not set(members.client_ids) <= set(acknowledged):
            raise PeerError("expected members that acknowledged their shares, found others")
        self._check_enough(len(members.client_ids), "members")
        self._members = members

    def _agreeing(self) -> tuple[str, ...]:
        acknowledged = {
            name: Acknowledgement.from_bytes(_payload(data))
            for name, data in self.received.acknowledgements.items()
        }
        quarrelling = {name for name, message in acknowledged.items() if message.complaints}
        for message in acknowledged.values():
            quarrelling.update(message.complaints)
        left = {name for name in acknowledged if name not in quarrelling}
        # Whoever lacks the shares of one of them would have to refuse the whole set.
        while lacking := {name for name in left if not left <= set(acknowledged[name].accepted)}:
            left.discard(max(lacking, key=lambda name: (self._missing(name, left), name)))
        return tuple(sorted(left))

    def _missing(self, name: str, left: set[str]) -> int:
        message = Acknowledgement.from_bytes(_payload(self.received.acknowledgements[name]))
        return len(left - set(message.accepted))

    # Phase 3.

    def add_upload(self, data: bytes, client_id: str) -> Upload:
        """Takes in a signed header; the caller has checked the vector against it."""
        if self._agreement is not None:
            raise _late("upload")
        message = self._opened_upload(data, client_id)
        _put(self.received.uploads, client_id, data)
        return message

    def check_upload(self, data: bytes, client_id: str, sha256: bytes) -> None:
        """Raises PeerError unless a vector with this digest is the one that the header is about."""
        if self._opened_upload(data, client_id).sha256 != sha256:
            raise PeerError(f"{client_id}: expected the vector that it signed, found another")

    def _opened_upload(self, data: bytes, client_id: str) -> Upload:
        message = opened(Upload, data, self._key_of(client_id))
        expected = (client_id, self.roster.digest, self.members.digest, self.config.values + 1)
        found = (message.client_id, message.roster, message.members, message.words)
        if found != expected or client_id not in self.members.client_ids:
            raise PeerError(f"{client_id}: expected an upload of this sum, found another")
        return message

    def freeze_survivors(self) -> tuple[bytes, ...]:
        """U3: the signed headers of everybody whose vector is here."""
        if self._agreement is None:
            uploads = [self.received.uploads[name] for name in sorted(self.received.uploads)]
            names = check_survivors(self.roster, self.members, uploads, self.config, self._key_of)
            digest = survivors_digest(self.members.digest, uploads)
            self._agreement = Agreement(
                self.config.digest, self.roster, self.members, names, digest
            )
        return tuple(self.received.uploads[name] for name in self._agreement.survivors)

    def adopt_survivors(self, uploads: Sequence[bytes]) -> tuple[str, ...]:
        """U3 as it was drawn before: after a restart.

        Returns the names of those whose upload is here but came after the line: they are not in
        the sum, and their vectors must not be.

        Raises:
            PeerError: not these members' uploads.
        """
        names = check_survivors(self.roster, self.members, uploads, self.config, self._key_of)
        late = tuple(name for name in self.received.uploads if name not in names)
        self.received.uploads = dict(zip(names, uploads, strict=True))
        digest = survivors_digest(self.members.digest, uploads)
        self._agreement = Agreement(self.config.digest, self.roster, self.members, names, digest)
        return late

    # Phases 4 and 5.

    def add_confirmation(self, data: bytes, client_id: str) -> None:
        """Takes in a survivor's word on the survivors."""
        message = opened(Confirmation, data, self._key_of(client_id))
        expected = (client_id, self.roster.digest, self.agreement.survivors_digest)
        if (message.client_id, message.roster, message.survivors) != expected:
            raise PeerError(f"{client_id}: expected a confirmation of this sum, found another")
        if client_id not in self.agreement.survivors:
            raise PeerError(f"expected the word of a survivor, found that of {client_id}")
        _put(self.received.confirmations, client_id, data)

    def confirmations(self) -> tuple[bytes, ...]:
        """What lets members reveal: at least a threshold of signed confirmations."""
        self._check_threshold(len(self.received.confirmations), "confirmations")
        return tuple(self.received.confirmations.values())

    def add_reveal(self, data: bytes, client_id: str) -> None:
        """Takes in a member's halves, each checked against its dealer's commitment."""
        message = opened(Reveal, data, self._key_of(client_id))
        if message.client_id != client_id or client_id not in self.agreement.survivors:
            raise PeerError(f"{client_id}: expected the shares of a survivor, found others")
        check_reveal(self.agreement, message, self._opened)
        _put(self.received.reveals, client_id, data)

    def masks(self) -> list[Mask]:
        """What the sum of the survivors' vectors still carries; take the opposite away."""
        self._check_threshold(len(self.received.reveals), "reveals")
        reveals = [Reveal.from_bytes(_payload(data)) for data in self.received.reveals.values()]
        return masks_of_sum(self.agreement, reveals, self._opened)

    @property
    def roster(self) -> Roster:
        """U1. Raises PeerError before it is frozen."""
        if self._roster is None:
            raise PeerError("expected a frozen roster, found none yet: the round is not that far")
        return self._roster

    @property
    def members(self) -> Members:
        """U2. Raises PeerError before it is frozen."""
        if self._members is None:
            raise PeerError("expected frozen members, found none yet: the round is not that far")
        return self._members

    @property
    def agreement(self) -> Agreement:
        """U3 and what led to it. Raises PeerError before it is frozen."""
        if self._agreement is None:
            raise PeerError("expected frozen survivors, found none yet: the round is not that far")
        return self._agreement

    def _check_enough(self, count: int, what: str) -> None:
        least = max(self.roster.threshold, self.config.least_members)
        if count < least:
            raise PolicyError(f"expected at least {least} {what}, found {count}: try again")

    def _check_threshold(self, count: int, what: str) -> None:
        if count < self.roster.threshold:
            raise PolicyError(f"expected {self.roster.threshold} {what}, found {count}")


def _put(box: dict[str, bytes], client_id: str, data: bytes) -> None:
    """The same again is welcome; something else is not."""
    if box.setdefault(client_id, data) != data:
        raise PeerError(f"{client_id}: expected what it sent before, found something else")


def _payload(data: bytes) -> bytes:
    """Of an envelope that was verified when it came in."""
    return from_bytes(data, MESSAGE_BYTES).payload


def _late(what: str) -> PeerError:
    return PeerError(f"expected no {what} any more: that phase is over; it was not used")
