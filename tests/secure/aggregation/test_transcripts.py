"""The transcripts of `tests/vectors/secure_sums`: made by a second implementation of the protocol.

Good ones: our members say the same bytes, our coordinator takes them and gets the same sum, our
audit passes. Bad ones: refused where they say, with the error that they say, and nothing changes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.vectors.secure_sums.generate import build, main

from offsite.secure.aggregation.dealing import Delivery, deliveries, receive
from offsite.secure.aggregation.evidence import collect, verify_round
from offsite.secure.aggregation.fixed_point import encode
from offsite.secure.aggregation.gathering import Gathering
from offsite.secure.aggregation.keys import MemberSecrets
from offsite.secure.aggregation.masks import apply_masks
from offsite.secure.aggregation.member import Member, Self, open_config
from offsite.secure.aggregation.policy import PolicyFloor
from offsite.secure.aggregation.runner import MemoryLatch, Phase
from offsite.secure.errors import IdentityError, OffsiteError
from offsite.secure.identity import IdentityKey, IdentityPublicKey

FOLDER = Path(__file__).parents[2] / "vectors" / "secure_sums"
FILES = sorted(path.stem for path in FOLDER.glob("*.json"))
GOOD = [name for name in FILES if name.startswith("good_")]
BAD = [name for name in FILES if name.startswith("bad_")]
Vector = dict[str, Any]


def vector_of(name: str) -> Vector:
    found: Vector = json.loads((FOLDER / f"{name}.json").read_text())
    return found


class Play:
    """A transcript, with our members and our coordinator in it."""

    def __init__(self, vector: Vector) -> None:
        self.vector = vector
        self.said = {each["client_id"]: each for each in vector["members"]}
        self.coordinator_key = IdentityKey.from_seed(bytes.fromhex(vector["coordinator_seed"]))
        self.terms = bytes.fromhex(vector["terms"])
        self.config = open_config(self.terms, self.coordinator_key.public)
        self.gathering = Gathering(self.config, self.coordinator_key, self.key_of)

    def key_of(self, name: str) -> IdentityPublicKey:
        if name not in self.said:
            raise IdentityError(f"{name} is not in the directory")
        return self.identity(name).public

    def identity(self, name: str) -> IdentityKey:
        return IdentityKey.from_seed(bytes.fromhex(self.said[name]["identity_seed"]))

    def member(self, name: str) -> Member:
        entropy = bytes.fromhex(self.said[name]["entropy"])
        floor = PolicyFloor(least_cohort=2)
        me = Self(name, self.identity(name))
        return Member(me, self.config, self.coordinator_key.public, self.key_of, floor, entropy)

    def of(self, kind: str) -> dict[str, bytes]:
        """By who said it."""
        return {
            name: bytes.fromhex(each[kind])
            for name, each in self.said.items()
            if each[kind] is not None
        }

    def list_of(self, kind: str) -> list[bytes]:
        return [*self.of(kind).values()]

    def parts(self, name: str) -> list[bytes]:
        return [bytes.fromhex(part) for part in self.said[name]["parts"]]

    def deliveries(self, holder: str) -> dict[str, Delivery]:
        position = [*self.of("advertisement")].index(holder)
        return {
            dealer: deliveries(sharing, self.parts(dealer))[position]
            for dealer, sharing in self.of("sharing").items()
            if dealer != holder
        }

    def words(self, name: str) -> np.ndarray:
        each = self.said[name]
        update = np.array(each["update"], np.float32)
        return encode(update, each["weight"], self.config.fixed_point)

    def steps_of(self, member: Member, name: str, before: str = "") -> list[tuple[str, bytes]]:
        """What a member of ours says, step by step, where it hears what the transcript says."""
        latch, words = MemoryLatch(), self.words(name)
        steps: dict[str, Callable[[], object]] = {
            "advertisement": lambda: member.advertise(0),
            "sharing": lambda: member.share(self.list_of("advertisement"), 0)[0],
            "acknowledgement": lambda: member.acknowledge(self.deliveries(name), 0),
            "upload": lambda: member.mask(self.members, words, latch, 0),
            "masked": words.tobytes,
            "confirmation": lambda: member.confirm(self.list_of("upload"), 0),
            "reveal": lambda: member.reveal(self.list_of("confirmation"), latch, 0),
        }
        found: list[tuple[str, bytes]] = []
        for kind, act in steps.items():
            if kind == before or self.said[name][kind] is None:
                return found
            said = act()
            assert isinstance(said, bytes)
            found.append((kind, said))
        return found

    @property
    def members(self) -> bytes:
        return bytes.fromhex(self.vector["members_message"])

    def gather(self, before: str = "") -> None:
        """Our coordinator hears what the transcript says."""
        take: dict[str, Callable[[str, bytes], object]] = {
            "advertisement": lambda _, said: self.gathering.add_advertisement(said),
            "sharing": lambda name, said: self.gathering.add_sharing(said, self.parts(name), name),
            "acknowledgement": lambda name, said: self.gathering.add_acknowledgement(said, name),
            "upload": lambda name, said: self.gathering.add_upload(said, name),
            "confirmation": lambda name, said: self.gathering.add_confirmation(said, name),
            "reveal": lambda name, said: self.gathering.add_reveal(said, name),
        }
        freeze: dict[str, Callable[[], object]] = {
            "advertisement": self.gathering.freeze_roster,
            "acknowledgement": self.gathering.freeze_members,
            "upload": self.gathering.freeze_survivors,
        }
        for kind, add in take.items():
            if kind == before:
                return
            for name, said in self.of(kind).items():
                add(name, said)
            freeze.get(kind, lambda: None)()


@pytest.mark.parametrize("name", GOOD)
def test_members_say_what_the_transcript_says(name: str) -> None:
    play = Play(vector_of(name))
    for client in play.said:
        said = play.steps_of(play.member(client), client)
        assert len(said) >= 1
        for kind, data in said:
            if kind != "sharing":  # sealing draws randomness of its own
                assert data.hex() == play.said[client][kind], kind


@pytest.mark.parametrize("name", GOOD)
def test_the_coordinator_gets_the_sum_of_the_transcript(name: str) -> None:
    play = Play(vector_of(name))
    play.gather()
    gathering, vector = play.gathering, play.vector
    assert play.config.digest.hex() == vector["config"]
    assert gathering.roster.digest.hex() == vector["roster"]
    assert gathering.freeze_members().hex() == vector["members_message"]
    assert gathering.members.digest.hex() == vector["members_digest"]
    assert gathering.agreement.survivors_digest.hex() == vector["survivors"]
    masked = {name: np.frombuffer(data, "<u4") for name, data in play.of("masked").items()}
    total: np.ndarray = np.add.reduce([*masked.values()], dtype=np.uint32)
    apply_masks(total, [mask.opposite for mask in gathering.masks()], play.config.generator)
    assert total.tobytes().hex() == vector["sum"]
    result = bytes.fromhex(vector["result"])
    key = play.coordinator_key.public
    evidence = collect(gathering, play.terms)
    assert verify_round(evidence, result, key, play.key_of, masked.__getitem__).total is not None


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_refused_where_the_vector_says(name: str) -> None:
    vector = vector_of(name)
    play, expected = Play(vector_of(vector["round"])), vector["fails_at"]
    inputs, who = [bytes.fromhex(each) for each in vector["inputs"]], vector["who"]
    act = _step(play, expected["layer"], who, inputs)
    with pytest.raises(OffsiteError, match=expected["says"]) as caught:
        act()
    assert type(caught.value).__name__ == expected["error"]


def _step(play: Play, layer: str, who: str, inputs: list[bytes]) -> Callable[[], object]:
    """The step that must refuse, once everything before it has been taken."""
    party, _, rest = layer.partition(".")
    if party == "gathering":
        play.gather(before=rest)
        add = {"upload": play.gathering.add_upload, "reveal": play.gathering.add_reveal}[rest]
        return lambda: add(inputs[0], who)
    member = play.member(who)
    step, _, dealer = rest.partition(" ")
    before = {"share": "sharing", "mask": "upload", "confirm": "confirmation", "reveal": "reveal"}
    if step == "config":
        return lambda: open_config(inputs[0], play.coordinator_key.public)
    if step == "receive":
        play.gather(before="sharing")
        secrets = MemberSecrets(bytes.fromhex(play.said[who]["entropy"]))
        given = Delivery(inputs[0], inputs[1], tuple(inputs[2:]))
        roster = play.gathering.roster
        return lambda: receive(roster, dealer, who, given, secrets, play.key_of)
    play.steps_of(member, who, before[step])
    words, latch = play.words(who), MemoryLatch()
    return {
        "share": lambda: member.share(inputs, 0),
        "mask": lambda: member.mask(inputs[0], words, latch, 0),
        "confirm": lambda: member.confirm(inputs, 0),
        "reveal": lambda: member.reveal(inputs, latch, 0),
    }[step]


def test_a_third_of_the_transcripts_are_bad_and_drops_are_in_the_good_ones() -> None:
    assert len(GOOD) >= 5 and len(BAD) * 3 >= len(FILES)
    drops = {each["drops_out"] for name in GOOD for each in vector_of(name)["members"]}
    assert drops >= {None, "share", "mask", "reveal"}
    assert {phase.name.lower() for phase in Phase} >= drops - {None}


def test_the_transcripts_are_as_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out
    assert sorted(build()) == [f"{name}.json" for name in FILES]
