"""Signed messages of a secure sum: one encoding each, and no bit of them can be changed."""

import numpy as np
import pytest
from tests.secure.aggregation.fleets import gathering, name_of
from tests.secure.aggregation.rounds import Round

from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.messages import (
    Acknowledgement,
    Confirmation,
    Members,
    Reveal,
    Sharing,
    Upload,
    survivors_digest,
)
from offsite.secure.errors import PeerError


def messages_of_a_round() -> dict[str, tuple[bytes, object]]:
    """One signed message of every kind, and what takes it in."""
    play = Round(5)
    words = play.confirm()
    name = name_of(0)
    reveal = play.victim.reveal(words, play.latches[name], 0)
    box = play.coordinator.received

    def fresh(take: str) -> object:
        return lambda data: getattr(_replayed(play), take)(data, name)

    return {
        "advertisement": (
            box.advertisements[name],
            lambda data: gathering(play.terms).add_advertisement(data),
        ),
        "acknowledgement": (box.acknowledgements[name], fresh("add_acknowledgement")),
        "confirmation": (box.confirmations[name], play_take(play, "add_confirmation", name)),
        "reveal": (reveal, play_take(play, "add_reveal", name)),
    }


def play_take(play: Round, take: str, name: str) -> object:
    return lambda data: getattr(play.coordinator, take)(data, name)


def _replayed(play: Round) -> Gathering:
    """A coordinator that has everything up to the sharings of `play`."""
    again = gathering(play.terms)
    for data in play.coordinator.received.advertisements.values():
        again.add_advertisement(data)
    again.freeze_roster()
    for name, data in play.coordinator.received.sharings.items():
        again.add_sharing(data, play.coordinator.received.parts[name], name)
    return again


@pytest.mark.parametrize("kind", ["advertisement", "acknowledgement", "confirmation", "reveal"])
def test_any_bit_change_in_a_signed_message_is_refused(kind: str) -> None:
    data, take = messages_of_a_round()[kind]
    draw = np.random.default_rng(0)
    places = {0, len(data) * 8 - 1, *draw.integers(0, len(data) * 8, 60).tolist()}
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(PeerError):
            take(bytes(changed))  # type: ignore[operator]


@pytest.mark.parametrize(
    "message",
    [
        Sharing(bytes(32), "edge-000", bytes(32)),
        Acknowledgement(bytes(32), "edge-000", ("edge-000", "edge-001"), ("edge-002",)),
        Members(bytes(32), ("edge-000", "edge-001")),
        Upload(bytes(32), bytes(32), "edge-000", 9, bytes(32)),
        Confirmation(bytes(32), "edge-000", bytes(32)),
        Reveal(bytes(32), "edge-000", bytes(32), (bytes(32), b"\x01" * 32)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_message_has_one_encoding(message: Sharing) -> None:
    data = message.to_bytes()
    kind = type(message)
    assert kind.from_bytes(data) == message
    for bad in (data + b"\x00", data[:-1], b"", data[8:], bytes(8) + data):
        with pytest.raises(PeerError):
            kind.from_bytes(bad)
    assert survivors_digest(data, []) != survivors_digest(data, [b""])
