"""Phase 2: dealing out b and sigma in shares, and checking what was dealt.

    dealer i, holder j:   share_ij = Shamir share of (b_i || sigma_i) at the point of j
                          sealed   = HPKE(share_ij) to j's channel key, bound to roster, i and j
                          commits  = H("share", roster, i, j, half, half of share_ij), both halves
                          wrap     = the coin of the pair, if i stands before j

The dealer signs the Merkle root over all parts. A holder opens its part, compares the share with
the commitments, and opens the coin; whatever does not fit is a complaint against the dealer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from offsite.secure.aggregation import merkle, shamir
from offsite.secure.aggregation.encoding import info
from offsite.secure.aggregation.keys import (
    SECRET_BYTES,
    SEED_BYTES,
    MemberSecrets,
    share_commitment,
)
from offsite.secure.aggregation.messages import B_HALF, SIGMA_HALF, Part, Sharing, opened
from offsite.secure.aggregation.pair_seeds import Pair, unwrap_coin, wrap_coin
from offsite.secure.aggregation.roster import KeyOf, Roster
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.sealing import open_sealed, seal


@dataclass(frozen=True, slots=True)
class Delivery:
    """What the coordinator forwards to a holder from one dealer."""

    sharing: bytes  # signed by the dealer
    part: bytes
    proof: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """What a holder has from a dealer, checked: the share, and the coin if the dealer stands before."""

    share: bytes
    coin: bytes | None

    def half(self, half: bytes) -> bytes:
        return self.share[:SEED_BYTES] if half == B_HALF else self.share[SEED_BYTES:]


def deal(roster: Roster, dealer: str, secrets: MemberSecrets) -> list[bytes]:
    """One part for every member, in roster order, the dealer's own among them."""
    points = range(1, len(roster.advertisements) + 1)
    coefficients = secrets.coefficients(roster.digest, roster.threshold)
    shares = shamir.split(secrets.shared, roster.threshold, points, coefficients)
    holders = roster.client_ids
    return [
        _part(roster, dealer, holder, share, secrets).to_bytes()
        for holder, share in zip(holders, shares, strict=True)
    ]


def own_share(roster: Roster, dealer: str, secrets: MemberSecrets) -> Held:
    """The share that a dealer keeps of its own secret."""
    points = range(1, len(roster.advertisements) + 1)
    coefficients = secrets.coefficients(roster.digest, roster.threshold)
    shares = shamir.split(secrets.shared, roster.threshold, points, coefficients)
    return Held(shares[roster.position(dealer)], None)


def parts_root(parts: Sequence[bytes]) -> bytes:
    """What a dealer signs."""
    return merkle.root([merkle.leaf_digest(part) for part in parts])


def deliveries(sharing: bytes, parts: Sequence[bytes]) -> list[Delivery]:
    """What goes to every member, in roster order, with the proof that the dealer meant it for it."""
    proofs = merkle.all_inclusion_proofs([merkle.leaf_digest(part) for part in parts])
    return [
        Delivery(sharing, part, tuple(proof)) for part, proof in zip(parts, proofs, strict=True)
    ]


def receive(
    roster: Roster, dealer: str, holder: str, given: Delivery, secrets: MemberSecrets, key_of: KeyOf
) -> Held:
    """What `dealer` has dealt to `holder`, once everything about it was checked.

    Raises:
        PeerError: a complaint against the dealer (or the coordinator between the two).
    """
    # (1) The dealer's word, for this roster.
    sharing = opened(Sharing, given.sharing, key_of(dealer))
    if sharing.roster != roster.digest or sharing.client_id != dealer:
        raise PeerError(f"{dealer}: expected a sharing for this roster, found another")
    # (2) This part is the one that it meant for us.
    leaf, size = merkle.leaf_digest(given.part), len(roster.advertisements)
    position = roster.position(holder)
    merkle.check_inclusion(leaf, position, size, given.proof, sharing.parts_root)
    part = Part.from_bytes(given.part)
    # (3) The share opens, and is the one that it has committed to.
    share = open_sealed(secrets.channel, part.sealed, _context(roster, dealer, holder))
    if len(share) != SECRET_BYTES:  # its halves could not be revealed
        raise IntegrityError(
            f"{dealer}: expected a share of {SECRET_BYTES} bytes, found {len(share)}"
        )
    held = Held(share, None)
    for half in (B_HALF, SIGMA_HALF):
        check_half(roster, dealer, holder, half, held.half(half), part)
    # (4) The coin of the pair opens, where the dealer stands before us.
    if roster.position(dealer) > position:
        if part.wrap:
            raise IntegrityError(f"{dealer}: expected no coin, it stands behind {holder}")
        return held
    pair = Pair(roster.digest, dealer, holder)
    return Held(share, unwrap_coin(pair, part.wrap, secrets.masks))


def check_half(
    roster: Roster, dealer: str, holder: str, half: bytes, value: bytes, part: Part
) -> None:
    """Raises IntegrityError unless `value` is the half of the share that the dealer committed to."""
    if share_commitment(roster.digest, dealer, holder, half, value) != part.commitment(half):
        raise IntegrityError(
            f"the share of {dealer} for {holder} is not the one that {dealer} has committed to"
        )


def _part(roster: Roster, dealer: str, holder: str, share: bytes, secrets: MemberSecrets) -> Part:
    held = Held(share, None)
    commitments = [
        share_commitment(roster.digest, dealer, holder, half, held.half(half))
        for half in (B_HALF, SIGMA_HALF)
    ]
    if holder == dealer:
        return Part(b"", b"", *commitments)
    entry = roster.entry(holder)
    sealed = seal(entry.channel_public, share, _context(roster, dealer, holder))
    wrap = b""
    if roster.position(dealer) < roster.position(holder):
        pair = Pair(roster.digest, dealer, holder)
        wrap = wrap_coin(pair, secrets.masks.coin(holder), entry.mlkem_public)
    return Part(sealed, wrap, *commitments)


def _context(roster: Roster, dealer: str, holder: str) -> bytes:
    return info("sealed share", roster.digest, dealer.encode(), holder.encode())
