"""One member's side of a secure sum, as a state machine without I/O.

    advertise ─> share ─> acknowledge ─> mask ─> confirm ─> reveal
        1          2           2b          3        4          5

Each step takes what arrived, checks it against everything before, and returns the bytes to send.
A step is taken once, in this order; anything else is a PolicyError and changes nothing. The shell
around it (files, sockets, clock) stores the bytes before it sends them and sends the same bytes
when asked again.

Rules, each with attacks that must fail in `tests/secure/aggregation/test_attacks.py`:

* the terms are the coordinator's signed ones, and not below this machine's policy;
* masks are taken over members that acknowledged, at least the threshold and the least cohort;
* a member speaks for one set of survivors only, itself among them, each with a signed upload;
* it reveals b of survivors and sigma of the others, never both of anybody, and only when at least
  a threshold of members signed the same set;
* before a masked vector or a share leaves, the latch is closed (on disk, in the shell): the same
  update never enters two sums, and shares are revealed once.

A killed member is made again from its entropy and its journal (`restore`), which is complete before
a step returns.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from offsite.secure.aggregation import dealing
from offsite.secure.aggregation.dealing import Delivery, Held
from offsite.secure.aggregation.journal import Entry, Step, pack_deliveries, unpack_deliveries
from offsite.secure.aggregation.keys import MemberSecrets, self_commitment
from offsite.secure.aggregation.keystream import Words
from offsite.secure.aggregation.masks import Mask, Sign, apply_masks
from offsite.secure.aggregation.messages import (
    B_HALF,
    SIGMA_HALF,
    Acknowledgement,
    Advertisement,
    Confirmation,
    Members,
    Reveal,
    Sharing,
    Upload,
    claimed,
    opened,
    signed,
    survivors_digest,
)
from offsite.secure.aggregation.pair_seeds import Pair, pair_seed, self_mask_key
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.roster import KeyOf, Roster, freeze_roster
from offsite.secure.aggregation.round_config import CONFIG_TYPE, RoundConfig
from offsite.secure.aggregation.survivors import check_confirmations, check_survivors
from offsite.secure.envelope import from_bytes, verify
from offsite.secure.errors import ExpiredError, IntegrityError, PeerError, PolicyError
from offsite.secure.identity import IdentityKey, IdentityPublicKey


class Latch(Protocol):
    """Remembers, beyond a crash, what was given away. Raises PolicyError for a second time."""

    def close_for_upload(self, roster: bytes) -> None:
        """Before the masked vector leaves; the same roster may ask again, another one may not."""

    def close_for_reveal(self, survivors: bytes) -> None:
        """Before shares leave; the same set of survivors may ask again, another one may not."""


@dataclass(frozen=True, slots=True)
class Self:
    """Who this member is."""

    client_id: str
    identity: IdentityKey = field(repr=False)


def open_config(data: bytes, coordinator: IdentityPublicKey) -> RoundConfig:
    """The signed terms of a round. Raises PeerError for anything else."""
    return RoundConfig.from_bytes(verify(from_bytes(data), CONFIG_TYPE, coordinator))


class Member:
    """See the module.

    Args:
        key_of: identity keys of the directory version that the configuration names.
        entropy: 32 random bytes, for this round alone.
    """

    def __init__(
        self,
        me: Self,
        config: RoundConfig,
        coordinator: IdentityPublicKey,
        key_of: KeyOf,
        policy: PolicyFloor,
        entropy: bytes,
    ) -> None:
        policy.check(config)
        self.next = Step.ADVERTISE
        self.config = config
        self.journal: list[Entry] = []
        self._me, self._coordinator, self._key_of = me, coordinator, key_of
        self._secrets = MemberSecrets(entropy)
        self._roster: Roster | None = None
        self._held: dict[str, Held] = {}
        self._members: Members | None = None
        self._upload: bytes | None = None
        self._survivors: tuple[bytes, tuple[str, ...]] | None = None

    def __repr__(self) -> str:
        return f"Member({self._me.client_id!r}, next={self.next.name})"

    # Phase 1.

    def advertise(self, now_unix_s: float) -> bytes:
        """The signed advertisement: public keys and the commitment to b."""
        self._expect(Step.ADVERTISE, now_unix_s, 0)
        message = signed(self._advertisement(), self._me.identity)
        self._note(Step.ADVERTISE, (), (message,))
        return message

    def _advertisement(self) -> Advertisement:
        secrets, config = self._secrets, self.config.digest
        return Advertisement(
            config,
            self._me.client_id,
            secrets.channel.public_bytes,
            secrets.masks.x25519_public,
            secrets.masks.mlkem_public,
            self_commitment(config, self._me.client_id, secrets.self_seed),
            secrets.nonce,
        )

    # Phase 2.

    def share(
        self, advertisements: Sequence[bytes], now_unix_s: float
    ) -> tuple[bytes, list[bytes]]:
        """The signed sharing, and one part for every member of the roster, in order.

        Args:
            advertisements: of the whole roster, in order of names, as they were signed.
        """
        self._expect(Step.SHARE, now_unix_s, 1)
        roster = self.checked_roster(advertisements)
        parts = dealing.deal(roster, self._me.client_id, self._secrets)
        message = Sharing(roster.digest, self._me.client_id, dealing.parts_root(parts))
        self._roster = roster
        sharing = signed(message, self._me.identity)
        self._note(Step.SHARE, tuple(advertisements), (sharing, *parts))
        return sharing, parts

    def checked_roster(self, advertisements: Sequence[bytes]) -> Roster:
        """The roster, with this member in it as it has advertised itself."""
        roster = freeze_roster(self.config, advertisements, self._key_of)
        if roster.entry(self._me.client_id) != self._advertisement():
            raise PeerError("expected this client's own advertisement in the roster, found another")
        return roster

    # Phase 2b.

    def acknowledge(self, deliveries: Mapping[str, Delivery], now_unix_s: float) -> bytes:
        """The signed list of dealers whose parts fit, and of those whose did not.

        Args:
            deliveries: by dealer; a dealer that is missing has dropped out.
        """
        self._expect(Step.ACKNOWLEDGE, now_unix_s, 2)
        message = signed(self._received(deliveries), self._me.identity)
        self._note(Step.ACKNOWLEDGE, pack_deliveries(deliveries), (message,))
        return message

    def _received(self, deliveries: Mapping[str, Delivery]) -> Acknowledgement:
        """Keeps the shares that fit; says which did."""
        roster, name = self._frozen(), self._me.client_id
        held, complaints = {name: dealing.own_share(roster, name, self._secrets)}, []
        for dealer in roster.client_ids:
            if dealer == name or dealer not in deliveries:
                continue
            try:
                given = deliveries[dealer]
                held[dealer] = dealing.receive(
                    roster, dealer, name, given, self._secrets, self._key_of
                )
            except PeerError:
                complaints.append(dealer)
        accepted = tuple(dealer for dealer in roster.client_ids if dealer in held)
        self._held = held
        return Acknowledgement(roster.digest, name, accepted, tuple(complaints))

    # Phase 3.

    def mask(
        self, members: bytes, words: Words, latch: Latch, now_unix_s: float, threads: int = 1
    ) -> bytes:
        """Masks the encoded update in place; returns the signed header of the upload.

        Args:
            members: U2, signed by the coordinator.
            words: uint32 (d + 1,), from `fixed_point.encode`; masked when this returns.
        """
        self._expect(Step.MASK, now_unix_s, 3)
        roster = self._frozen()
        found = self._checked_members(opened(Members, members, self._coordinator))
        if words.shape != (self.config.values + 1,):
            raise PolicyError(
                f"expected an encoded update of {self.config.values + 1} words, found {words.shape}"
            )
        latch.close_for_upload(roster.digest)
        apply_masks(words, self._masks(found), self.config.generator, threads)
        sha256 = hashlib.sha256(words.view("u1").data).digest()
        message = Upload(roster.digest, found.digest, self._me.client_id, len(words), sha256)
        self._members, self._upload = found, signed(message, self._me.identity)
        self._note(Step.MASK, (members,), (self._upload,))
        return self._upload

    def masked_again(self, words: Words, threads: int = 1) -> Words:
        """The same masked vector once more, from the same encoded update, for a lost upload.

        Raises:
            PolicyError: nothing was masked yet, or these are not the same words.
        """
        if self._members is None or self._upload is None:
            raise PolicyError("expected a vector that was masked before, found none")
        masked = words.copy()
        apply_masks(masked, self._masks(self._members), self.config.generator, threads)
        header = claimed(Upload, self._upload)[1]
        if hashlib.sha256(masked.view("u1").data).digest() != header.sha256:
            raise PolicyError("expected the update that was masked before, found another one")
        return masked

    def _checked_members(self, found: Members) -> Members:
        roster = self._frozen()
        if found.roster != roster.digest:
            raise PeerError("expected the members of this roster, found those of another")
        if self._me.client_id not in found.client_ids:
            raise PeerError("expected this client among the members, found it left out")
        unknown = set(found.client_ids) - set(self._held)
        if unknown:
            raise PeerError(
                f"expected members whose shares are here, found {min(unknown)}, whose are not"
            )
        self._check_enough(len(found.client_ids), "members")
        return found

    def _check_enough(self, count: int, what: str) -> None:
        least = max(self._frozen().threshold, self.config.least_members)
        if count < least:
            raise PolicyError(
                f"expected at least {least} {what}, found {count}: the sum would say too much "
                "about each; the round is given up"
            )

    def _masks(self, members: Members) -> list[Mask]:
        """The self-mask, and one mask with every other member: plus if it stands behind us."""
        roster, name = self._frozen(), self._me.client_id
        masks = [Mask(self_mask_key(roster.digest, name, self._secrets.self_seed), Sign.PLUS)]
        for other in members.client_ids:
            if other != name:
                masks.append(self._pair_mask(roster, other))
        return masks

    def _pair_mask(self, roster: Roster, other: str) -> Mask:
        name, keys = self._me.client_id, self._secrets.masks
        entry = roster.entry(other)
        if roster.position(name) < roster.position(other):
            pair, coin, sign = Pair(roster.digest, name, other), keys.coin(other), Sign.PLUS
        else:
            received = self._held[other].coin
            assert received is not None  # `dealing.receive` opened it
            pair, coin, sign = Pair(roster.digest, other, name), received, Sign.MINUS
        return Mask(pair_seed(pair, keys, entry.x25519_public, coin), sign)

    # Phase 4.

    def confirm(self, uploads: Sequence[bytes], now_unix_s: float) -> bytes:
        """This member's signed word on the survivors.

        Args:
            uploads: the signed headers of everybody whose vector is in the sum, in roster order.
        """
        self._expect(Step.CONFIRM, now_unix_s, 4)
        survivors = self._take_survivors(uploads)
        confirmation = Confirmation(self._frozen().digest, self._me.client_id, survivors)
        message = signed(confirmation, self._me.identity)
        self._note(Step.CONFIRM, tuple(uploads), (message,))
        return message

    def _take_survivors(self, uploads: Sequence[bytes]) -> bytes:
        roster, members = self._frozen(), self._agreed()
        names = check_survivors(roster, members, uploads, self.config, self._key_of)
        if self._upload not in uploads:
            raise PeerError("expected this client's own upload among the survivors, found none")
        survivors = survivors_digest(members.digest, uploads)
        self._survivors = survivors, names
        return survivors

    # Phase 5.

    def reveal(self, confirmations: Sequence[bytes], latch: Latch, now_unix_s: float) -> bytes:
        """One half of a share for every member: b of the survivors, sigma of the others.

        Args:
            confirmations: signed by at least a threshold of survivors, all over the same set.
        """
        self._expect(Step.REVEAL, now_unix_s, 4)
        roster, members = self._frozen(), self._agreed()
        assert self._survivors is not None  # CONFIRM came before
        survivors, names = self._survivors
        check_confirmations(roster, survivors, names, confirmations, self._key_of)
        latch.close_for_reveal(survivors)
        halves = tuple(
            self._held[name].half(B_HALF if name in names else SIGMA_HALF)
            for name in members.client_ids
        )
        reveal = Reveal(roster.digest, self._me.client_id, survivors, halves)
        message = signed(reveal, self._me.identity)
        self._note(Step.REVEAL, tuple(confirmations), (message,))
        return message

    # After a crash.

    def restore(self, journal: Sequence[Entry]) -> None:
        """Takes the steps of a journal again, with the same terms, keys and entropy.

        Raises:
            PeerError, PolicyError: the journal is not one of this member in this round.
        """
        for entry in journal:
            if entry.step is not self.next:
                raise PolicyError(
                    f"expected {self.next.name} in the journal, found {entry.step.name}"
                )
            self._retake(entry)
            self._note(entry.step, entry.received, entry.sent)

    def _retake(self, entry: Entry) -> None:
        """The part of a step that changes this member; nothing is made anew or sent."""
        if not entry.sent or (entry.step is Step.MASK and len(entry.received) != 1):
            raise IntegrityError(
                f"journal: expected what came and what went out in {entry.step.name}, found less: "
                "the file was damaged; this client sits the round out"
            )
        match entry.step:
            case Step.SHARE:
                self._roster = self.checked_roster(entry.received)
            case Step.ACKNOWLEDGE:
                self._received(unpack_deliveries(entry.received))
            case Step.MASK:
                members = opened(Members, entry.received[0], self._coordinator)
                self._members, self._upload = self._checked_members(members), entry.sent[0]
            case Step.CONFIRM:
                self._take_survivors(entry.received)
            case _:  # nothing but the step itself
                pass

    def _note(self, step: Step, received: tuple[bytes, ...], sent: tuple[bytes, ...]) -> None:
        self.journal.append(Entry(step, received, sent))
        self.next = step.after

    def _expect(self, step: Step, now_unix_s: float, phase: int) -> None:
        if self.next is not step:
            raise PolicyError(
                f"expected {self.next.name.lower()} next, found {step.name.lower()}: a step of a "
                "secure sum is taken once and in order"
            )
        deadline = self.config.deadlines_unix_s[phase]
        if now_unix_s > deadline:
            raise ExpiredError(
                f"{step.name.lower()} came {now_unix_s - deadline:.0f} s after its deadline; this "
                "client sits the round out"
            )

    def _frozen(self) -> Roster:
        assert self._roster is not None  # `_expect` keeps the order
        return self._roster

    def _agreed(self) -> Members:
        assert self._members is not None
        return self._members
