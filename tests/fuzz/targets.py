"""One function for each message handler: bytes in, and whether the handler took them.

    input = mode | rest        mode 0: the rest travels as it is; mode 1: it is a payload, signed by
                               whom it should come from; higher modes are the target's own

What holds whatever comes, and is checked here on every input:

* a handler refuses with a PeerError or a PolicyError, or takes what came: no other exception;
* what was refused has changed nothing;
* a message that is read has one form: written again, it is the same bytes;
* what a coordinator takes from one member, the honest ones can work with: no single member stops
  a round by a message that is noticed too late.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from tests.fuzz.ledger_targets import checkpoint, ledger
from tests.fuzz.scenes import (
    LIAR,
    NAMES,
    TERMS,
    VICTIM,
    forged,
    payload_of,
    scene,
    signed_terms,
    words_of,
)
from tests.secure.aggregation.fleets import COORDINATOR, key_of, member

from offsite.secure.aggregation import merkle
from offsite.secure.aggregation.dealing import Delivery, _context, parts_root
from offsite.secure.aggregation.encoding import Reader, pack
from offsite.secure.aggregation.evidence import Evidence, verify_round
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.journal import (
    Step,
    journal_from_bytes,
    journal_to_bytes,
    pack_deliveries,
    unpack_deliveries,
)
from offsite.secure.aggregation.keys import SECRET_BYTES, SEED_BYTES, share_commitment
from offsite.secure.aggregation.member import Member, open_config
from offsite.secure.aggregation.messages import (
    B_HALF,
    MESSAGE_BYTES,
    SIGMA_HALF,
    Acknowledgement,
    Advertisement,
    Confirmation,
    Members,
    Message,
    Part,
    Result,
    Reveal,
    Sharing,
    Upload,
    signed,
)
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.aggregation.runner import MemoryLatch
from offsite.secure.errors import PeerError, PolicyError
from offsite.secure.sealing import seal

Target = Callable[[bytes], bool]
RAW: Final = 0
SIGNED: Final = 1
MANY: Final = 2
"""The rest is a list of messages, each behind its length."""
DEALT: Final = 3
"""The rest is the secret of a share, well sealed and committed to."""


def taken(act: Callable[[], object]) -> bool:
    """Whether it was taken; any error but a refusal goes through and is a find."""
    try:
        act()
    except (PeerError, PolicyError):
        return False
    return True


def has_one_form(kind: type[Message], payload: bytes) -> None:
    try:
        message = kind.from_bytes(payload)
    except PeerError:
        return
    assert message.to_bytes() == payload, f"{kind.__name__} has a second form"


def message_of(kind: type[Message], data: bytes, author: str | None) -> bytes:
    """The message that an input stands for."""
    mode, rest = data[:1], data[1:]
    if mode != bytes([SIGNED]) or len(rest) > MESSAGE_BYTES:
        return rest
    has_one_form(kind, rest)
    return forged(kind, rest, author)


def list_of(rest: bytes) -> tuple[bytes, ...] | None:
    """A list of messages, if it is one."""
    try:
        return Reader(pack((rest,)), "list").items("items", 255, MESSAGE_BYTES)
    except PeerError:
        return None


# A member.


def _member_takes(victim: Member, act: Callable[[], object]) -> bool:
    before = victim.next, len(victim.journal), victim._held, victim._members, victim._survivors
    if taken(act):
        return True
    after = victim.next, len(victim.journal), victim._held, victim._members, victim._survivors
    assert before == after, "a refused message changed the member"
    return False


def _in_list(
    data: bytes, kind: type[Message], messages: Sequence[bytes], place: int
) -> Sequence[bytes] | None:
    """The messages with one of them changed, or all of them."""
    if data[:1] == bytes([MANY]):
        return list_of(data[1:])
    changed = list(messages)
    changed[place] = message_of(kind, data, LIAR)
    return changed


def member_config(data: bytes) -> bool:
    if data[:1] == bytes([SIGNED]):
        terms = signed_terms(data[1:]) if len(data) <= MESSAGE_BYTES else b""
        try:
            assert RoundConfig.from_bytes(data[1:]).to_bytes() == data[1:]
        except PeerError:
            pass
    else:
        terms = data[1:]

    def begin() -> None:
        each = member(VICTIM, open_config(terms, COORDINATOR.public))
        each.advertise(0)

    return taken(begin)


def member_share(data: bytes) -> bool:
    victim, _ = scene().before(Step.SHARE)
    adverts = _in_list(data, Advertisement, scene().roster, NAMES.index(LIAR))
    return adverts is not None and _member_takes(victim, lambda: victim.share(adverts, 0))


def member_acknowledge(data: bytes) -> bool:
    """A refused part is no error of the step but a complaint: `True` if there was none."""
    victim, _ = scene().before(Step.ACKNOWLEDGE)
    dealt = dict(scene().deliveries)
    mode, rest = data[:1], data[1:]
    if mode == bytes([MANY]):
        items = list_of(rest)
        if items is None or not taken(lambda: unpack_deliveries(items)):
            return False
        dealt = unpack_deliveries(items)
        assert pack_deliveries(dealt) == items, "deliveries have a second form"
    elif mode == bytes([DEALT]):
        dealt[LIAR] = _dealt(rest)
    elif mode == bytes([SIGNED]):
        dealt[LIAR] = _with_part(rest)
    elif taken(lambda: unpack_deliveries([rest])):
        dealt |= unpack_deliveries([rest])
    victim.acknowledge(dealt, 0)  # never raises: one dealer does not stop the others
    for held in victim._held.values():
        assert len(held.share) == SECRET_BYTES, "a share was taken that cannot be revealed"
    return set(victim._held) == set(NAMES)


def _with_part(part: bytes) -> Delivery:
    """What a dealer that lies deals to the victim: any part, in a tree that it has signed."""
    has_one_form(Part, part)  # type: ignore[type-abstract]
    parts = list(scene().parts[LIAR])
    place = NAMES.index(VICTIM)
    parts[place] = part
    roster = scene().victims[Step.ACKNOWLEDGE]._frozen()
    sharing = forged(Sharing, Sharing(roster.digest, LIAR, parts_root(parts)).to_bytes(), LIAR)
    proof = merkle.inclusion_proof([merkle.leaf_digest(each) for each in parts], place)
    return Delivery(sharing, part, tuple(proof))


def _dealt(secret: bytes) -> Delivery:
    roster = scene().victims[Step.ACKNOWLEDGE]._frozen()
    sealed = seal(roster.entry(VICTIM).channel_public, secret, _context(roster, LIAR, VICTIM))
    halves = ((B_HALF, secret[:SEED_BYTES]), (SIGMA_HALF, secret[SEED_BYTES:]))
    commitments = [
        share_commitment(roster.digest, LIAR, VICTIM, half, value) for half, value in halves
    ]
    return _with_part(Part(sealed, b"", *commitments).to_bytes())


def member_mask(data: bytes) -> bool:
    victim, _ = scene().before(Step.MASK)
    members, latch, words = message_of(Members, data, None), MemoryLatch(), words_of(VICTIM)
    if _member_takes(victim, lambda: victim.mask(members, words, latch, 0)):
        return True
    assert latch.roster is None and np.array_equal(words, words_of(VICTIM))
    return False


def member_confirm(data: bytes) -> bool:
    victim, _ = scene().before(Step.CONFIRM)
    uploads = _in_list(data, Upload, scene().uploads, NAMES.index(LIAR))
    return uploads is not None and _member_takes(victim, lambda: victim.confirm(uploads, 0))


def member_reveal(data: bytes) -> bool:
    victim, _ = scene().before(Step.REVEAL)
    said, latch = scene().confirmations, MemoryLatch()
    words = _in_list(data, Confirmation, said, len(said) - 1)
    if words is None:
        return False
    if _member_takes(victim, lambda: victim.reveal(words, latch, 0)):
        return True
    assert latch.survivors is None
    return False


# The coordinator.


def _gathering_takes(coordinator: Gathering, act: Callable[[], object]) -> bool:
    box = coordinator.received
    before = {name: dict(getattr(box, name)) for name in box.__slots__}
    if taken(act):
        return True
    assert before == {name: getattr(box, name) for name in box.__slots__}
    return False


def gathering_advertisement(data: bytes) -> bool:
    victim, coordinator = scene().before(Step.ADVERTISE)
    message = message_of(Advertisement, data, LIAR)
    if not _gathering_takes(coordinator, lambda: coordinator.add_advertisement(message)):
        return False
    if coordinator.received.advertisements.get(LIAR) == message:
        victim.advertise(0)
        if taken(coordinator.freeze_roster):
            victim.share(coordinator.freeze_roster(), 0)  # whoever was let in stops nobody
    return True


def gathering_sharing(data: bytes) -> bool:
    victim, coordinator = scene().before(Step.SHARE)
    sharing, parts = scene().said[Step.SHARE][LIAR], list(scene().parts[LIAR])
    if data[:1] == bytes([MANY]):  # any parts, under a root that is signed
        parts = list(list_of(data[1:]) or ())
        root = parts_root(parts)
        sharing = forged(Sharing, Sharing(coordinator.roster.digest, LIAR, root).to_bytes(), LIAR)
    else:
        sharing = message_of(Sharing, data, LIAR)
    # (what is sealed at random differs between processes, and with it the root of a valid seed)
    if not _gathering_takes(coordinator, lambda: coordinator.add_sharing(sharing, parts, LIAR)):
        return False
    victim.share(scene().roster, 0)
    victim.acknowledge(coordinator.deliveries(VICTIM), 0)
    return True


def gathering_acknowledgement(data: bytes) -> bool:
    _, coordinator = scene().before(Step.ACKNOWLEDGE)
    message = message_of(Acknowledgement, data, LIAR)
    if not _gathering_takes(coordinator, lambda: coordinator.add_acknowledgement(message, LIAR)):
        return False
    taken(coordinator.freeze_members)
    return True


def gathering_upload(data: bytes) -> bool:
    _, coordinator = scene().before(Step.MASK)
    message = message_of(Upload, data, LIAR)
    if not _gathering_takes(coordinator, lambda: coordinator.add_upload(message, LIAR)):
        return False
    coordinator.freeze_survivors()
    return True


def gathering_confirmation(data: bytes) -> bool:
    _, coordinator = scene().before(Step.CONFIRM)
    message = message_of(Confirmation, data, LIAR)
    return _gathering_takes(coordinator, lambda: coordinator.add_confirmation(message, LIAR))


def gathering_reveal(data: bytes) -> bool:
    _, coordinator = scene().before(Step.REVEAL)
    message = message_of(Reveal, data, LIAR)
    if not _gathering_takes(coordinator, lambda: coordinator.add_reveal(message, LIAR)):
        return False
    coordinator.masks()
    return True


# What is read from disks and envelopes.


def evidence(data: bytes) -> bool:
    """With a result that names the transcript, whatever it is: the coordinator lies too."""

    def audit() -> None:
        found = Evidence.from_bytes(data)
        assert found.to_bytes() == data, "evidence has a second form"
        stated = replace(
            Result.from_bytes(payload_of(scene().result)), transcript_root=found.transcript_root
        )
        result, vectors = signed(stated, COORDINATOR), scene().vectors
        verify_round(found, result, COORDINATOR.public, key_of, vectors.__getitem__)

    return taken(audit)


def journal(data: bytes) -> bool:
    def restore() -> None:
        entries = journal_from_bytes(data)
        assert journal_to_bytes(entries) == data, "a journal has a second form"
        member(VICTIM, TERMS).restore(entries)

    return taken(restore)


def exchange(data: bytes) -> bool:
    """Bodies of the exchanges; the first byte says which reader gets the rest."""
    from offsite.emulator.rounds import exchange as bodies

    mode, rest = data[:1], data[1:]
    again: list[bytes] = []

    def read() -> None:
        match mode:
            case b"\x00":
                again.append(bodies.pack_share_request(*bodies.read_share_request(rest)))
            case b"\x01":
                again.append(bodies.pack_sharing(*bodies.read_sharing(rest)))
            case b"\x02":
                again.append(bodies.pack_messages(bodies.read_messages(rest)))
            case _:
                found = unpack_deliveries(bodies.read_messages(rest))
                again.append(bodies.pack_messages(pack_deliveries(found)))

    if not taken(read):
        return False
    assert again == [rest], "a body has a second form"
    return True


TARGETS: Final[dict[str, Target]] = {
    target.__name__: target
    for target in (
        member_config,
        member_share,
        member_acknowledge,
        member_mask,
        member_confirm,
        member_reveal,
        gathering_advertisement,
        gathering_sharing,
        gathering_acknowledgement,
        gathering_upload,
        gathering_confirmation,
        gathering_reveal,
        evidence,
        journal,
        exchange,
        ledger,
        checkpoint,
    )
}
