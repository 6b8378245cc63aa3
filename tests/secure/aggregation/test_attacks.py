"""Attacks that must fail: those that break Flower's SecAgg+, and the others of the threat model.

Each plays a real round up to the point of the attack. What Flower 1.41 lets through (a request for
both halves, invented neighbours, dictated thresholds, masks of 28 bits) is named in the test.
"""

import hashlib
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from tests.secure.aggregation.fleets import (
    COORDINATOR,
    POLICY,
    config,
    identity_of,
    key_of,
    member,
    name_of,
)
from tests.secure.aggregation.rounds import Round

from offsite.secure import envelope
from offsite.secure.aggregation import masks as masks_module
from offsite.secure.aggregation.dealing import Delivery
from offsite.secure.aggregation.fixed_point import FixedPoint
from offsite.secure.aggregation.keys import MemberSecrets
from offsite.secure.aggregation.keystream import Generator
from offsite.secure.aggregation.member import Member, Self, open_config
from offsite.secure.aggregation.messages import (
    Advertisement,
    Members,
    Reveal,
    Upload,
    claimed,
    signed,
)
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.round_config import CONFIG_TYPE, RoundConfig
from offsite.secure.aggregation.runner import MemoryLatch
from offsite.secure.errors import (
    ExpiredError,
    IdentityError,
    OffsiteError,
    PeerError,
    PolicyError,
    SignatureError,
)
from offsite.secure.identity import IdentityKey

STRANGER = IdentityKey.from_seed(hashlib.sha256(b"stranger").digest())


# The roster.


def test_a_substituted_public_key_is_refused() -> None:
    """Flower relays unsigned keys: its server can put itself in the middle."""
    play = Round()
    adverts = play.advertise()
    _, entry = claimed(Advertisement, adverts[1])
    own = MemberSecrets(bytes(32))
    forged = replace(entry, x25519_public=own.masks.x25519_public)
    for signer in (STRANGER, COORDINATOR):
        with pytest.raises(SignatureError):
            play.victim.share([adverts[0], signed(forged, signer), *adverts[2:]], 0)


def test_an_invented_neighbour_is_refused() -> None:
    """Flower's server may invent neighbours at will."""
    play = Round()
    adverts = play.advertise()
    _, entry = claimed(Advertisement, adverts[1])
    ghost = replace(entry, client_id="ghost")
    with pytest.raises(IdentityError, match="not in the directory"):
        play.victim.share([*adverts[:3], signed(ghost, STRANGER)], 0)


def test_a_roster_without_this_client_is_refused() -> None:
    play = Round()
    with pytest.raises(PeerError, match="expected a member of the roster"):
        play.victim.share(play.advertise()[1:], 0)


def test_a_roster_that_repeats_a_member_is_refused() -> None:
    play = Round(least_members=2)
    adverts = play.advertise()
    with pytest.raises(PeerError, match="each once"):
        play.victim.share([adverts[0], adverts[1], adverts[1]], 0)


def test_a_roster_below_the_least_cohort_is_refused() -> None:
    """Flower's server dictates threshold and share count."""
    play = Round(least_members=3)
    with pytest.raises(PeerError, match="roster of 3"):
        play.victim.share(play.advertise()[:2], 0)


def test_an_advertisement_of_another_round_is_refused() -> None:
    play, other = Round(), Round(round_id=bytes(15) + b"\x01")
    adverts, others = play.advertise(), other.advertise()
    with pytest.raises(PeerError, match="for this round"):
        play.victim.share([adverts[0], others[1], *adverts[2:]], 0)


@pytest.mark.parametrize("weak", [bytes(32), b"\x01" + bytes(31)])
def test_a_small_order_key_is_refused(weak: bytes) -> None:
    play = Round()
    adverts = play.advertise()
    _, entry = claimed(Advertisement, adverts[1])
    data = signed(replace(entry, x25519_public=weak), identity_of(entry.client_id))
    with pytest.raises(OffsiteError, match="weak"):
        play.victim.share([adverts[0], data, *adverts[2:]], 0)


def test_a_copied_commitment_is_refused() -> None:
    """A member that copies another's public values could learn how its own shares combine."""
    play = Round()
    adverts = play.advertise()
    _, entry = claimed(Advertisement, adverts[1])
    copied = replace(claimed(Advertisement, adverts[2])[1], channel_public=entry.channel_public)
    data = signed(copied, identity_of(copied.client_id))
    with pytest.raises(PeerError, match="of its own"):
        play.victim.share([adverts[0], adverts[1], data, adverts[3]], 0)


# Terms.


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        ({"least_members": 2}, "cohort of 2"),
        ({"fixed_point": FixedPoint(10, 100.0, 1.0)}, "coordinates up to 100"),
        ({"fixed_point": FixedPoint(20, 1.0, 9.0)}, "norm up to 9"),
        ({"generator": Generator.AES256_CTR}, "AES256_CTR"),
        ({"noise_sigma": 0.5}, "noise of 0.5"),
    ],
)
def test_a_client_refuses_terms_below_its_floor(terms: dict[str, object], said: str) -> None:
    floor = PolicyFloor(
        least_cohort=4,
        most_coordinate_bound=1.0,
        most_norm_bound=2.0,
        least_noise_sigma=1.0,
        generators=frozenset({Generator.CHACHA20}),
    )
    fair = {"least_members": 4, "fixed_point": FixedPoint(20, 1.0, 1.0), "noise_sigma": 1.0}
    name = name_of(0)
    me = Self(name, identity_of(name))
    fine = config(4, 8, **fair)
    Member(me, fine, COORDINATOR.public, key_of, floor, bytes(32))
    with pytest.raises(PolicyError, match=said):
        Member(me, config(4, 8, **(fair | terms)), COORDINATOR.public, key_of, floor, bytes(32))


def test_a_stripped_or_unknown_suite_is_refused() -> None:
    raw = config(4).to_bytes().replace(b"OTSA/1", b"OTSA/0")
    data = envelope.to_bytes(envelope.sign(CONFIG_TYPE, raw, COORDINATOR))
    with pytest.raises(PeerError, match="suite"):
        open_config(data, COORDINATOR.public)


def test_terms_of_somebody_else_are_refused() -> None:
    data = envelope.to_bytes(envelope.sign(CONFIG_TYPE, config(4).to_bytes(), STRANGER))
    with pytest.raises(SignatureError):
        open_config(data, COORDINATOR.public)


def test_terms_survive_the_wire() -> None:
    terms = config(7, 99, noise_sigma=2.5)
    assert RoundConfig.from_bytes(terms.to_bytes()) == terms


# Shares.


def test_a_wrong_share_is_a_complaint_and_both_leave() -> None:
    play = Round(7)
    play.share()
    liar, holder = name_of(1), name_of(3)
    for name, each in play.members.items():
        given = dict(play.coordinator.deliveries(name))
        if name == holder:  # what another dealer meant for it, under the liar's name
            given[liar] = Delivery(given[liar].sharing, given[name_of(0)].part, given[liar].proof)
        play.coordinator.add_acknowledgement(each.acknowledge(given, 0), name)
    play.coordinator.freeze_members()
    assert play.coordinator.members.client_ids == tuple(map(name_of, (0, 2, 4, 5, 6)))


def test_parts_that_the_dealer_did_not_sign_are_refused() -> None:
    play = Round()
    adverts = play.advertise()
    message, parts = play.victim.share(adverts, 0)
    with pytest.raises(PeerError, match="parts that it signed"):
        play.coordinator.add_sharing(message, [parts[1], parts[0], *parts[2:]], name_of(0))
    with pytest.raises(PeerError, match="for this roster"):
        play.coordinator.add_sharing(message, parts[:-1], name_of(0))


def test_a_dealer_that_shares_another_secret_is_found_out() -> None:
    """Shares and commitments agree, but not with what was advertised: only the sum shows it."""
    play = Round()
    adverts = play.advertise()
    cheat = play.members[name_of(2)]
    real = cheat._secrets
    cheat._secrets = _Cheating(real.entropy)
    for name, each in play.members.items():
        play.coordinator.add_sharing(*each.share(adverts, 0), name)
    for name, each in play.members.items():
        given = play.coordinator.deliveries(name)
        play.coordinator.add_acknowledgement(each.acknowledge(given, 0), name)
    chosen = play.coordinator.freeze_members()
    for name, each in play.members.items():
        header = each.mask(chosen, np.zeros(9, np.uint32), play.latches[name], 0)
        play.coordinator.add_upload(header, name)
    uploads = play.coordinator.freeze_survivors()
    for name, each in play.members.items():
        play.coordinator.add_confirmation(each.confirm(uploads, 0), name)
    words = play.coordinator.confirmations()
    for name, each in play.members.items():
        play.coordinator.add_reveal(each.reveal(words, play.latches[name], 0), name)
    with pytest.raises(PeerError, match=f"{name_of(2)} has shared out another"):
        play.coordinator.masks()


class _Cheating(MemberSecrets):
    """Shares out zeros in the place of b and sigma."""

    @property
    def shared(self) -> bytes:
        return bytes(64)


# Members and masks.


def test_members_that_the_coordinator_did_not_sign_are_refused() -> None:
    play = Round()
    chosen = play.acknowledge()
    _, found = claimed(Members, chosen)
    with pytest.raises(SignatureError):
        play.victim.mask(
            signed(found, STRANGER), np.zeros(9, np.uint32), play.latches[name_of(0)], 0
        )


def test_masks_over_fewer_than_a_threshold_are_refused() -> None:
    play = Round(6)
    play.acknowledge()
    few = Members(play.coordinator.roster.digest, (name_of(0), name_of(1)))
    with pytest.raises(PolicyError, match="at least 5 members"):
        play.victim.mask(
            signed(few, COORDINATOR), np.zeros(9, np.uint32), play.latches[name_of(0)], 0
        )


def test_a_member_whose_shares_are_not_here_is_refused() -> None:
    play = Round()
    play.share()
    given = dict(play.coordinator.deliveries(name_of(0)))
    del given[name_of(3)]
    play.victim.acknowledge(given, 0)
    everybody = Members(play.coordinator.roster.digest, tuple(play.members))
    with pytest.raises(PeerError, match=f"found {name_of(3)}"):
        play.victim.mask(
            signed(everybody, COORDINATOR), np.zeros(9, np.uint32), play.latches[name_of(0)], 0
        )


def test_the_same_update_never_enters_two_rosters() -> None:
    play, again = Round(), Round(attempt=1, round_id=bytes(15) + b"\x02")
    latch = MemoryLatch()
    first = play.acknowledge()
    play.victim.mask(first, np.zeros(9, np.uint32), latch, 0)
    second = again.acknowledge()
    words = np.zeros(9, np.uint32)
    with pytest.raises(PolicyError, match="another sum"):
        again.victim.mask(second, words, latch, 0)
    assert not words.any()  # and nothing was masked


def test_masks_differ_when_terms_differ() -> None:
    """Members that were shown different releases cannot be summed: nothing but noise comes out."""
    play = Round()
    other = config(4, 8, binding=b"\x01" * 32)
    lured = member(name_of(0), other)
    with pytest.raises(PeerError, match="for this round"):
        lured.advertise(0)
        lured.share(play.advertise(), 0)


# Survivors.


def test_survivors_that_differ_between_members_reveal_nothing() -> None:
    """Flower has no consistency round: its server tells everybody what it likes."""
    play = Round(5)
    uploads = play.upload()
    first = play.members[name_of(0)].confirm(uploads, 0)
    others = uploads[1:]
    second = play.members[name_of(1)].confirm(others, 0)
    third = play.members[name_of(2)].confirm(others, 0)
    fourth = play.members[name_of(3)].confirm(others, 0)
    with pytest.raises(PeerError, match="different things"):
        play.victim.reveal([first, second, third, fourth], play.latches[name_of(0)], 0)


def test_too_few_confirmations_reveal_nothing() -> None:
    play = Round(5)
    words = play.confirm()
    with pytest.raises(PolicyError, match="expected 4 confirmations, found 3"):
        play.victim.reveal(words[:3], play.latches[name_of(0)], 0)
    with pytest.raises(PolicyError, match="found 1"):
        play.victim.reveal([words[0]] * 5, play.latches[name_of(0)], 0)


def test_survivors_without_a_signed_upload_are_refused() -> None:
    play = Round(5)
    uploads = play.upload()
    _, header = claimed(Upload, uploads[2])
    forged = signed(header, STRANGER)
    with pytest.raises(SignatureError):
        play.victim.confirm([*uploads[:2], forged, *uploads[3:]], 0)


def test_a_client_left_out_of_the_sum_helps_nobody() -> None:
    play = Round(5)
    uploads = play.upload()
    with pytest.raises(PeerError, match="own upload"):
        play.victim.confirm(uploads[1:], 0)


def test_members_told_different_members_are_found_out() -> None:
    play = Round(5)
    play.acknowledge()
    roster = play.coordinator.roster.digest
    everybody = signed(Members(roster, tuple(play.members)), COORDINATOR)
    fewer = signed(Members(roster, tuple(play.members)[:4]), COORDINATOR)
    headers = []
    for index, (name, each) in enumerate(play.members.items()):
        told = fewer if index in (1, 2) else everybody
        headers.append(each.mask(told, np.zeros(9, np.uint32), play.latches[name], 0))
    with pytest.raises(PeerError, match="upload of this sum"):
        play.victim.confirm(headers, 0)


# Reveals.


def test_both_halves_are_never_revealed() -> None:
    """All clients of Flower answer a request that names everybody on both lists."""
    play = Round(5)
    gone = (name_of(4),)
    words = play.confirm(gone)
    latch = play.latches[name_of(0)]
    data = play.victim.reveal(words, latch, 0)
    _, message = claimed(Reveal, data)
    held = play.victim._held
    assert message.halves[4] == held[name_of(4)].share[32:]  # sigma of who dropped out
    assert [*message.halves[:4]] == [held[name_of(i)].share[:32] for i in range(4)]  # b of the rest
    with pytest.raises(PolicyError, match="once and in order"):
        play.victim.reveal(words, latch, 0)
    # A member restarted from its entropy, asked about other survivors, meets the latch.
    with pytest.raises(PolicyError, match="revealed for other survivors"):
        latch.close_for_reveal(b"other survivors")


def test_a_wrong_half_is_laid_at_its_holders_door() -> None:
    play = Round(5)
    words = play.confirm()
    data = play.victim.reveal(words, play.latches[name_of(0)], 0)
    _, message = claimed(Reveal, data)
    forged = replace(message, halves=(bytes(32), *message.halves[1:]))
    with pytest.raises(PeerError, match="not the one that"):
        play.coordinator.add_reveal(signed(forged, identity_of(name_of(0))), name_of(0))


def test_a_late_upload_of_a_dropped_member_stays_hidden() -> None:
    """sigma is revealed, b is not: the vector still carries the self-mask."""
    play = Round(5)
    gone = name_of(4)
    words = play.confirm((gone,))
    for name, each in play.members.items():
        if name != gone:
            play.coordinator.add_reveal(each.reveal(words, play.latches[name], 0), name)
    used = {mask.key for mask in play.coordinator.masks()}
    own = play.members[gone]._masks(play.members[gone]._agreed())[0]
    assert own.key not in used
    late = claimed(Upload, signed(_upload_of(play, gone), identity_of(gone)))[1]
    with pytest.raises(PeerError, match="phase is over"):
        play.coordinator.add_upload(signed(late, identity_of(gone)), gone)


def _upload_of(play: Round, name: str) -> Upload:
    members = play.coordinator.members.digest
    return Upload(play.coordinator.roster.digest, members, name, 9, bytes(32))


# Replay, order, time.


def test_a_step_is_taken_once_and_in_order() -> None:
    play = Round()
    with pytest.raises(PolicyError, match="expected advertise next"):
        play.victim.share([], 0)
    play.victim.advertise(0)
    with pytest.raises(PolicyError, match="expected share next"):
        play.victim.advertise(0)


def test_a_step_after_its_deadline_is_refused() -> None:
    play = Round()
    with pytest.raises(ExpiredError, match="sits the round out"):
        play.victim.advertise(11.0)
    with pytest.raises(ExpiredError):
        play = Round()
        words = play.confirm()
        play.victim.reveal(words, play.latches[name_of(0)], 51.0)


@pytest.mark.parametrize(
    "other",
    [
        {"round_id": bytes(15) + b"\x09"},
        {"attempt": 1},
        {"cohort": 1},
        {"campaign_id": "2"},
        {"binding": b"\x05" * 32},
    ],
)
def test_messages_of_another_sum_are_refused(other: dict[str, object]) -> None:
    """Replay across rounds, attempts, cohorts, campaigns and releases."""
    play, elsewhere = Round(5), Round(5, **other)
    words = play.confirm()
    theirs = elsewhere.confirm()
    name = name_of(1)
    for attempt in (
        lambda: play.coordinator.add_acknowledgement(
            elsewhere.coordinator.received.acknowledgements[name], name
        ),
        lambda: play.coordinator.add_confirmation(
            elsewhere.coordinator.received.confirmations[name], name
        ),
        lambda: play.victim.reveal(theirs, play.latches[name_of(0)], 0),
    ):
        with pytest.raises(PeerError):
            attempt()
    play.victim.reveal(words, play.latches[name_of(0)], 0)


def test_a_message_of_one_client_is_not_taken_for_anothers() -> None:
    play = Round(5)
    play.upload()
    data = play.members[name_of(1)].confirm(list(play.coordinator.freeze_survivors()), 0)
    with pytest.raises(SignatureError):
        play.coordinator.add_confirmation(data, name_of(2))


# What Flower's masks lack.


def test_mask_keys_have_256_bits_and_differ_by_roster() -> None:
    """Flower folds every seed into 32 bits of a Mersenne Twister; found again in 88 CPU seconds."""
    seen: set[bytes] = set()
    for play in (Round(), Round(round_id=bytes(15) + b"\x07")):
        play.acknowledge()
        for each in play.members.values():
            each._members = play.coordinator.members
            keys = {mask.key for mask in each._masks(play.coordinator.members)}
            assert all(len(key) == 32 for key in keys)
            seen |= keys
    # 4 own and 6 pair keys in each round, none of them twice.
    assert len(seen) == 20


def test_pairs_agree_and_strangers_do_not() -> None:
    play = Round()
    play.acknowledge()
    chosen = play.coordinator.members
    keys = {name: {mask.key for mask in each._masks(chosen)} for name, each in play.members.items()}
    for (_, first), (_, second) in combinations(keys.items(), 2):
        assert len(first & second) == 1
    assert masks_module.Mask(bytes(32), masks_module.Sign.PLUS).opposite.sign.value == -1


def test_policy_of_the_tests_is_not_the_default() -> None:
    assert POLICY.least_cohort < PolicyFloor().least_cohort == 5
