"""Writes the transcripts of secure sums, or checks with `--check` that they are current.

    python -m tests.vectors.secure_sums.generate [--check]

A `good_*` file is a whole sum: every party's secrets, everything said, and the sum. A `bad_*` file
is one input that must be refused in the course of a good one: by whom, at which step, with which
error, saying what. Exactly one thing is wrong with it.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.vectors.secure_sums.reference import (
    COORDINATOR,
    Played,
    Terms,
    leaf,
    pack,
    payload_of,
    proof,
    random,
    real,
    signed,
)

HERE: Final = Path(__file__).parent
Vector = dict[str, object]


def updates(members: int, values: int) -> dict[str, tuple[list[float], float]]:
    """Multiples of 2^-10 up to 1.5, so that some are clipped, and weights of all kinds."""
    found = {}
    for index in range(members):
        raw = random("update", str(index), size=2 * values)
        numbers = [int.from_bytes(raw[2 * i : 2 * i + 2], "big") for i in range(values)]
        weight = (1.0, 0.5, 2.0**-8, 0.3)[index % 4]
        found[f"edge-{index}"] = ([(n % 3073 - 1536) / 1024 for n in numbers], weight)
    return found


GOOD: Final = {
    "good_three": Played(Terms(6, 3), updates(3, 6)),
    "good_dropout": Played(
        Terms(6, 4, round_id=random("round", size=16)), updates(4, 6), {"edge-1": "mask"}
    ),
    "good_aes": Played(Terms(6, 4, generator=2), updates(4, 6), {"edge-0": "mask"}),
    "good_late_dropouts": Played(Terms(3, 4), updates(4, 3), {"edge-3": "reveal"}),
    "good_early_dropouts": Played(Terms(3, 4), updates(4, 3), {"edge-2": "share"}),
    "good_norm_bound": Played(Terms(4, 2, norm_bound=1.0), updates(2, 4)),
}
"""`good_dropout` is what the bad ones happen in."""


def good(played: Played, what: str) -> Vector:
    def box(said: Mapping[str, bytes], name: str) -> str | None:
        return said[name].hex() if name in said else None

    members = [
        {
            "client_id": name,
            "identity_seed": random("identity", name).hex(),
            "entropy": played.parties[name].entropy.hex(),
            "update": list(values),
            "weight": weight,
            "drops_out": played.drops.get(name),
            "advertisement": box(played.advertisements, name),
            "sharing": box(played.sharings, name),
            "parts": [part.hex() for part in played.parts.get(name, {}).values()],
            "acknowledgement": box(played.acknowledgements, name),
            "upload": box(played.uploads, name),
            "masked": box(played.vectors, name),
            "confirmation": box(played.confirmations, name),
            "reveal": box(played.reveals, name),
        }
        for name, (values, weight) in sorted(played.updates.items())
    ]
    return {
        "what": what,
        "coordinator_seed": random("identity", COORDINATOR).hex(),
        "terms": played.signed_terms.hex(),
        "config": played.terms.digest.hex(),
        "roster": played.roster.hex(),
        "members_message": played.members.hex(),
        "members_digest": played.members_digest.hex(),
        "survivors": played.survivors.hex(),
        "members": members,
        "sum": played.total.hex(),
        "result": played.result.hex(),
        "fails_at": None,
    }


def bad(what: str, step: str, who: str, inputs: Sequence[bytes], error: str, says: str) -> Vector:
    """`who` refuses `inputs` at `step` in the round of `good_dropout`."""
    return {
        "what": what,
        "round": "good_dropout",
        "who": who,
        "inputs": [each.hex() for each in inputs],
        "fails_at": {"layer": step, "error": error, "says": says},
    }


ME: Final = "edge-0"
OTHER: Final = "edge-2"


def bad_terms(played: Played) -> Iterator[tuple[str, Vector]]:
    terms = played.terms

    def case(what: str, data: bytes, error: str, says: str) -> Vector:
        return bad(what, "member.config", ME, [data], error, says)

    def changed(**changes: object) -> bytes:
        other = dataclasses.replace(terms, **changes)  # type: ignore[arg-type]
        return signed("config", other.to_bytes(), COORDINATOR)

    yield "suite", case("a later suite", changed(suite="OTSA/2"), "PeerError", "found OTSA/2")
    yield (
        "generator",
        case("an unknown keystream", changed(generator=3), "PeerError", "number 3"),
    )
    yield (
        "overflow",
        case(
            "a sum that leaves the ring",
            changed(fraction_bits=28, coordinate_bound=1e300),
            "PeerError",
            "the ring holds",
        ),
    )
    nan = terms.to_bytes().replace(real(50.0), real(float("nan")))
    yield (
        "deadline",
        case(
            "a deadline that never comes",
            signed("config", nan, COORDINATOR),
            "PeerError",
            "ascending times",
        ),
    )
    yield (
        "trailing",
        case(
            "a field too many",
            signed("config", terms.to_bytes() + pack(b""), COORDINATOR),
            "IntegrityError",
            "nothing after",
        ),
    )
    forged = signed("config", terms.to_bytes(), OTHER)
    yield "signer", case("signed by a member", forged, "SignatureError", "someone else")
    plan = played.members
    yield "type", case("other signed words", plan, "SignatureError", "something else was signed")


def bad_rosters(played: Played) -> Iterator[tuple[str, Vector]]:
    adverts = [*played.advertisements.values()]
    place = [*played.advertisements].index(OTHER)
    party = played.parties[OTHER]

    def case(what: str, inputs: Sequence[bytes], error: str, says: str) -> Vector:
        return bad(what, "member.share", ME, inputs, error, says)

    def changed(**fields: bytes) -> list[bytes]:
        """With the other's advertisement changed, and signed by it again."""
        config = played.terms.digest
        own = {
            "config": config,
            "client_id": OTHER.encode(),
            "channel": party.channel_public,
            "x25519": party.x25519.public_key().public_bytes_raw(),
            "mlkem": party.mlkem_public,
            "commitment": payload_of(adverts[place])[-72:-40],
            "nonce": party.secret("nonce"),
        }
        again = signed("advertisement", pack(*(own | fields).values()), OTHER)
        return [*adverts[:place], again, *adverts[place + 1 :]]

    assert changed() == adverts
    yield "order", case("out of order", adverts[::-1], "PeerError", "order of names")
    yield "without_me", case("this member is not in it", adverts[1:], "PeerError", "member of the")
    yield "too_small", case("one alone", adverts[:1], "PeerError", "roster of 2 to 4")
    twice = [*adverts[:2], adverts[1], adverts[3]]
    yield "twice", case("one member twice", twice, "PeerError", "each once")
    other_round = changed(config=random("another round"))
    yield "other_round", case("for another round", other_round, "PeerError", "for this round")
    weak = changed(x25519=bytes(32))
    yield "weak_key", case("an X25519 key of small order", weak, "IntegrityError", "weak")
    lost = changed(channel=b"\xff" * 1216)
    yield "channel_key", case("a channel key that is none", lost, "IntegrityError", "ML-KEM-768")
    copied = changed(nonce=played.parties["edge-3"].secret("nonce"))
    yield "copied", case("another's nonce", copied, "IntegrityError", "nonce of its own")
    short = changed(nonce=bytes(31))
    yield "short_nonce", case("a nonce of 31 bytes", short, "IntegrityError", "expected 32 bytes")
    stranger = signed("advertisement", payload_of(adverts[place]), "edge-3")
    forged = [*adverts[:place], stranger, adverts[3]]
    yield "signer", case("signed by another member", forged, "SignatureError", "someone else")


def bad_parts(played: Played) -> Iterator[tuple[str, Vector]]:
    """What a dealer that lies deals to this member: sharing, part, proof."""
    dealer, holder = ME, OTHER  # the dealer stands before the holder, so there is a coin
    share = played.shares(dealer)[holder]
    place = [*played.advertisements].index(holder)

    def dealt(part: bytes) -> list[bytes]:
        parts = dict(played.parts[dealer]) | {holder: part}
        leaves = [leaf(each) for each in parts.values()]
        return [played.sharing(dealer, [*parts.values()]), part, *proof(leaves, place)]

    def case(
        what: str, inputs: Sequence[bytes], says: str, error: str = "IntegrityError"
    ) -> Vector:
        return bad(what, f"member.receive {dealer}", holder, inputs, error, says)

    own = played.parts[dealer][holder]
    sealed, wrap = _fields(own)[:2]
    first, second = (
        played.commitment(dealer, holder, b"b", share[:32]),
        played.commitment(dealer, holder, b"s", share[32:]),
    )
    assert dealt(own)[0] == played.sharings[dealer]
    yield (
        "not_in_the_tree",
        case(
            "a part that was not signed",
            [dealt(own)[0], own[:-1] + b"\0", *dealt(own)[2:]],
            "proof of inclusion",
        ),
    )
    yield (
        "swapped",
        case(
            "halves committed to the wrong way round",
            dealt(pack(sealed, wrap, second, first)),
            "committed to",
        ),
    )
    yield (
        "short_share",
        case(
            "a share of 63 bytes",
            dealt(played.part(dealer, holder, share[:63])),
            "share of 64 bytes",
        ),
    )
    yield (
        "coin",
        case(
            "a coin that does not open",
            dealt(pack(sealed, wrap[:-1] + bytes([wrap[-1] ^ 1]), first, second)),
            "does not open",
        ),
    )
    yield "no_coin", case("no coin", dealt(pack(sealed, b"", first, second)), "wrap of 1136 bytes")
    context_of_other = played.parts[dealer]["edge-3"]
    yield "other_holder", case("sealed to another member", dealt(context_of_other), "does not open")
    moved = signed(
        "sharing", pack(random("x"), dealer.encode(), payload_of(dealt(own)[0])[-32:]), dealer
    )
    yield (
        "other_roster",
        case("of another roster", [moved, *dealt(own)[1:]], "for this roster", "PeerError"),
    )


def bad_members(played: Played) -> Iterator[tuple[str, Vector]]:
    """Phase 3: over whom the coordinator asks for masks."""
    names = played.member_names
    few = played.members_message(names[:2])
    yield (
        "members_few",
        bad(
            "members below the threshold",
            "member.mask",
            ME,
            [few],
            "PolicyError",
            "at least 3 members",
        ),
    )
    without = played.members_message(names[1:])
    yield (
        "members_without_me",
        bad("this member left out", "member.mask", ME, [without], "PeerError", "left out"),
    )
    forged = played.members_message(names, OTHER)
    yield (
        "members_signer",
        bad(
            "members that a member drew",
            "member.mask",
            ME,
            [forged],
            "SignatureError",
            "someone else",
        ),
    )
    unknown = played.members_message([*names, "edge-9"])
    yield (
        "members_unknown",
        bad("an invented member", "member.mask", ME, [unknown], "PeerError", "edge-9"),
    )


def bad_survivors(played: Played) -> Iterator[tuple[str, Vector]]:
    """Phases 3 to 5: who is said to be in the sum, and who has confirmed it."""
    uploads = [*played.uploads.values()]
    yield (
        "survivors_few",
        bad(
            "two survivors of four",
            "member.confirm",
            ME,
            uploads[:2],
            "PolicyError",
            "at least 3 survivors",
        ),
    )
    short = played.upload(OTHER, played.terms.values, played.vectors[OTHER])
    yield (
        "survivors_words",
        bad(
            "a shorter vector",
            "member.confirm",
            ME,
            [uploads[0], short, uploads[2]],
            "PeerError",
            "upload of this sum",
        ),
    )
    mine = played.upload(ME, played.terms.values + 1, bytes(4))
    yield (
        "survivors_mine_changed",
        bad(
            "another vector in this member's name",
            "member.confirm",
            ME,
            [mine, *uploads[1:]],
            "PeerError",
            "own upload",
        ),
    )
    words = [*played.confirmations.values()]
    yield (
        "confirmations_few",
        bad(
            "two confirmations",
            "member.reveal",
            ME,
            words[:2],
            "PolicyError",
            "expected 3 confirmations",
        ),
    )
    split = played.confirmation(OTHER, random("another set"))
    yield (
        "confirmations_split",
        bad(
            "one of another set of survivors",
            "member.reveal",
            ME,
            [words[0], split, words[2]],
            "PeerError",
            "told its members different things",
        ),
    )


def bad_replies(played: Played) -> Iterator[tuple[str, Vector]]:
    """What a member sends that lies: its header, its halves."""
    upload = played.upload("edge-1", played.terms.values + 1, bytes(28))
    yield (
        "upload_of_another",
        bad(
            "a header that another member signed",
            "gathering.upload",
            OTHER,
            [upload],
            "SignatureError",
            "someone else",
        ),
    )
    halves = played.halves(OTHER)
    both = [played.shares(ME)[OTHER][32:], *halves[1:]]
    yield (
        "reveal_sigma_of_survivor",
        bad(
            "sigma of a survivor",
            "gathering.reveal",
            OTHER,
            [played.revealing(OTHER, both)],
            "IntegrityError",
            "committed to",
        ),
    )
    yield (
        "reveal_few",
        bad(
            "a half too few",
            "gathering.reveal",
            OTHER,
            [played.revealing(OTHER, halves[:-1])],
            "IntegrityError",
            "expected 4 shares",
        ),
    )
    lie = bytes([halves[0][0] ^ 1]) + halves[0][1:]
    yield (
        "reveal_wrong_share",
        bad(
            "a share with one bit changed",
            "gathering.reveal",
            OTHER,
            [played.revealing(OTHER, [lie, *halves[1:]])],
            "IntegrityError",
            "committed to",
        ),
    )


def _fields(data: bytes) -> list[bytes]:
    found, position = [], 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 8], "big")
        found.append(data[position + 8 : position + 8 + size])
        position += 8 + size
    return found


_WHAT: Final = {
    "good_three": "three members, none drops out",
    "good_dropout": "one of four drops out after it has shared: its masks are taken away",
    "good_aes": "AES-256 in counter mode; the first of four drops out, who drew the coins of all its pairs",
    "good_late_dropouts": "one of four falls silent before it reveals",
    "good_early_dropouts": "one of four is in the roster and deals out nothing",
    "good_norm_bound": "two members, updates scaled down to a norm",
}


def build() -> dict[str, str]:
    """Every file by its name."""
    vectors = {name: good(played, _WHAT[name]) for name, played in GOOD.items()}
    base = GOOD["good_dropout"]
    for prefix, cases in (
        ("terms_", bad_terms(base)),
        ("roster_", bad_rosters(base)),
        ("part_", bad_parts(base)),
        ("", bad_members(base)),
        ("", bad_survivors(base)),
        ("", bad_replies(base)),
    ):
        vectors |= {f"bad_{prefix}{name}": vector for name, vector in cases}
    return {f"{name}.json": json.dumps(vector, indent=1) + "\n" for name, vector in vectors.items()}


def main(arguments: Sequence[str]) -> int:
    wanted = build()
    found = {path.name: path.read_text() for path in HERE.glob("*.json")}
    wrong = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
    for name in wrong:
        if arguments == ["--check"]:
            print(f"not as generated: {name}")
        elif name in wanted:
            (HERE / name).write_text(wanted[name])
        else:
            (HERE / name).unlink()
    return 1 if wrong and arguments == ["--check"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
