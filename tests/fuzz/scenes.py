"""A real round of four clients, the last of which drops out before it uploads, stopped before every step.

The fuzz targets change one message of it: as it travels, or its payload, signed afresh by whom it
should come from. So what is fuzzed is what a member or a coordinator that lies can send, not only
what its signature stops. Keys and entropy are fixed; what sealing draws at random changes no
outcome.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Final

import numpy as np
from tests.secure.aggregation.fleets import (
    COORDINATOR,
    config,
    gathering,
    identity_of,
    member,
    name_of,
)

from offsite.secure import envelope
from offsite.secure.aggregation.dealing import Delivery
from offsite.secure.aggregation.evidence import Evidence, collect, words_sha256
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.journal import Step
from offsite.secure.aggregation.keystream import Words
from offsite.secure.aggregation.masks import apply_masks
from offsite.secure.aggregation.member import Member
from offsite.secure.aggregation.messages import Message, Result, signed
from offsite.secure.aggregation.round_config import CONFIG_TYPE
from offsite.secure.aggregation.runner import MemoryLatch
from offsite.secure.identity import IdentityKey

NAMES: Final = tuple(name_of(i) for i in range(4))
VICTIM: Final = NAMES[0]
"""Whose handlers are fuzzed."""
LIAR: Final = NAMES[1]
"""Whose messages are changed, where a member sends them."""
LOST: Final = NAMES[3]
VALUES: Final = 4
TERMS: Final = config(4, VALUES, least_members=2)


def words_of(name: str) -> Words:
    """What a member puts in."""
    return np.arange(VALUES + 1, dtype=np.uint32) + np.uint32(NAMES.index(name) + 1)


def signed_terms(payload: bytes | None = None) -> bytes:
    body = TERMS.to_bytes() if payload is None else payload
    return envelope.to_bytes(envelope.sign(CONFIG_TYPE, body, COORDINATOR))


def forged(kind: type[Message], payload: bytes, author: str | None) -> bytes:
    """Any payload, signed by a member, or by the coordinator for None."""
    key: IdentityKey = COORDINATOR if author is None else identity_of(author)
    return envelope.to_bytes(envelope.sign(kind.TYPE, payload, key))


def payload_of(data: bytes) -> bytes:
    return envelope.from_bytes(data).payload


def twin_of_member(original: Member) -> Member:
    """A member in the same state; what happens to it leaves the original as it is."""
    twin = copy.copy(original)
    twin.journal = list(original.journal)
    return twin


def twin_of_gathering(original: Gathering) -> Gathering:
    """A coordinator in the same state; what happens to it leaves the original as it is."""
    twin, box = copy.copy(original), original.received
    boxes = {name: dict(getattr(box, name)) for name in box.__slots__}
    twin.received = replace(box, **boxes)
    twin._opened, twin._deliveries = dict(original._opened), dict(original._deliveries)
    return twin


@dataclass(slots=True)
class Scene:
    """What was said, and the parties as they were before each step."""

    victims: dict[Step, Member] = field(default_factory=dict)
    coordinators: dict[Step, Gathering] = field(default_factory=dict)
    said: dict[Step, dict[str, bytes]] = field(default_factory=dict)
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    vectors: dict[str, Words] = field(default_factory=dict)
    roster: tuple[bytes, ...] = ()
    members: bytes = b""
    uploads: tuple[bytes, ...] = ()
    confirmations: tuple[bytes, ...] = ()
    evidence: Evidence | None = None
    result: bytes = b""
    finished: Member | None = None

    def before(self, step: Step) -> tuple[Member, Gathering]:
        """Fresh twins of the victim and of a coordinator that heard of this step all but the liar."""
        return twin_of_member(self.victims[step]), twin_of_gathering(self.coordinators[step])


@cache
def scene() -> Scene:
    """Played once."""
    found, coordinator = Scene(), gathering(TERMS)
    members = {name: member(name, TERMS) for name in NAMES}
    latches = {name: MemoryLatch() for name in NAMES}

    def play(step: Step, speak: Callable[[str, Member], bytes]) -> None:
        """Everybody takes the step, the liar last."""
        found.victims[step], found.said[step] = twin_of_member(members[VICTIM]), {}
        for name in sorted(members, key=lambda name: (name == LIAR, name)):
            if name == LIAR:
                found.coordinators[step] = twin_of_gathering(coordinator)
            found.said[step][name] = speak(name, members[name])

    def advertise(name: str, each: Member) -> bytes:
        said = each.advertise(0)
        coordinator.add_advertisement(said)
        return said

    def share(name: str, each: Member) -> bytes:
        said, found.parts[name] = each.share(found.roster, 0)
        coordinator.add_sharing(said, found.parts[name], name)
        return said

    def acknowledge(name: str, each: Member) -> bytes:
        said = each.acknowledge(coordinator.deliveries(name), 0)
        coordinator.add_acknowledgement(said, name)
        return said

    def mask(name: str, each: Member) -> bytes:
        found.vectors[name] = words_of(name)
        said = each.mask(found.members, found.vectors[name], latches[name], 0)
        coordinator.add_upload(said, name)
        return said

    def confirm(name: str, each: Member) -> bytes:
        said = each.confirm(found.uploads, 0)
        coordinator.add_confirmation(said, name)
        return said

    def reveal(name: str, each: Member) -> bytes:
        said = each.reveal(found.confirmations, latches[name], 0)
        coordinator.add_reveal(said, name)
        return said

    play(Step.ADVERTISE, advertise)
    found.roster = coordinator.freeze_roster()
    play(Step.SHARE, share)
    found.deliveries = coordinator.deliveries(VICTIM)
    play(Step.ACKNOWLEDGE, acknowledge)
    found.members = coordinator.freeze_members()
    del members[LOST]
    play(Step.MASK, mask)
    found.uploads = coordinator.freeze_survivors()
    play(Step.CONFIRM, confirm)
    found.confirmations = coordinator.confirmations()
    play(Step.REVEAL, reveal)
    found.finished = members[VICTIM]
    _finish(found, coordinator)
    return found


def _finish(found: Scene, coordinator: Gathering) -> None:
    total = np.add.reduce(list(found.vectors.values()), dtype=np.uint32)
    apply_masks(total, [mask.opposite for mask in coordinator.masks()], TERMS.generator)
    found.evidence = collect(coordinator, signed_terms())
    agreement = coordinator.agreement
    result = Result(
        agreement.config,
        agreement.roster.digest,
        agreement.survivors_digest,
        words_sha256(total),
        found.evidence.transcript_root,
    )
    found.result = signed(result, COORDINATOR)
