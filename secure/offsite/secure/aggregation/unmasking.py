"""Phase 5 on the coordinator's side: from revealed halves to the sum.

Every revealed half is compared with the dealer's commitment before it is used, so a wrong one is
laid at its holder's door. A reconstructed b or sigma is compared with what its dealer published in
phase 1; if that fails although all shares fit, the dealer has cheated.

    sum = Σ_{i in U3} y_i  −  Σ_{i in U3} PRG(self_i)  −  Σ_{i in U3, k in U2∖U3} ±PRG(s_ik)

Anybody with the masked uploads, the parts and the reveals computes the same words: that is what an
audit does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offsite.secure.aggregation import shamir
from offsite.secure.aggregation.dealing import check_half
from offsite.secure.aggregation.keys import MaskKeys, self_commitment
from offsite.secure.aggregation.masks import Mask, Sign
from offsite.secure.aggregation.messages import B_HALF, SIGMA_HALF, Members, Part, Reveal
from offsite.secure.aggregation.pair_seeds import Pair, pair_seed, self_mask_key, unwrap_coin
from offsite.secure.aggregation.roster import Roster
from offsite.secure.errors import IntegrityError, PeerError

Dealt = Mapping[str, Sequence[Part]]
"""The parts of every dealer of U2, in roster order."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What phases 1 to 4 fixed."""

    config: bytes
    roster: Roster
    members: Members  # U2
    survivors: tuple[str, ...]  # U3
    survivors_digest: bytes

    @property
    def dropped(self) -> tuple[str, ...]:
        """U2 without U3."""
        return tuple(name for name in self.members.client_ids if name not in self.survivors)

    def half_of(self, name: str) -> bytes:
        """Which half is revealed of a member."""
        return B_HALF if name in self.survivors else SIGMA_HALF


def check_reveal(agreement: Agreement, reveal: Reveal, dealt: Dealt) -> None:
    """Raises PeerError unless every half is the one that its dealer committed to for this holder."""
    roster, holder = agreement.roster, reveal.client_id
    if (reveal.roster, reveal.survivors) != (roster.digest, agreement.survivors_digest):
        raise PeerError(f"{holder}: expected shares of this sum, found those of another")
    names = agreement.members.client_ids
    if len(reveal.halves) != len(names):
        raise IntegrityError(f"{holder}: expected {len(names)} shares, found {len(reveal.halves)}")
    position = roster.position(holder)
    for dealer, value in zip(names, reveal.halves, strict=True):
        part = dealt[dealer][position]
        check_half(roster, dealer, holder, agreement.half_of(dealer), value, part)


def masks_of_sum(agreement: Agreement, reveals: Sequence[Reveal], dealt: Dealt) -> list[Mask]:
    """The masks that the sum of the survivors' vectors still carries.

    Args:
        reveals: checked ones, of at least a threshold of holders; more are not used.

    Raises:
        IntegrityError: a dealer's secret is not the one that it committed to.
    """
    roster = agreement.roster
    used = sorted(reveals, key=lambda reveal: reveal.client_id)[: roster.threshold]
    if len(used) < roster.threshold:
        raise PeerError(f"expected {roster.threshold} reveals, found {len(used)}")
    points = {roster.point(reveal.client_id): reveal.halves for reveal in used}
    masks = []
    for index, name in enumerate(agreement.members.client_ids):
        secret = shamir.combine({point: halves[index] for point, halves in points.items()})
        if name in agreement.survivors:
            masks.append(_self_mask(agreement, name, secret))
        else:
            masks += _pair_masks(agreement, name, secret, dealt)
    return masks


def _self_mask(agreement: Agreement, name: str, self_seed: bytes) -> Mask:
    roster = agreement.roster
    commitment = self_commitment(agreement.config, name, self_seed)
    if commitment != roster.entry(name).self_commitment:
        raise _cheated(name, "self-mask seed")
    return Mask(self_mask_key(roster.digest, name, self_seed), Sign.PLUS)


def _pair_masks(agreement: Agreement, name: str, sigma: bytes, dealt: Dealt) -> list[Mask]:
    """The masks that the survivors share with a member that dropped out, as the survivors used them."""
    roster, keys = agreement.roster, MaskKeys(sigma)
    entry = roster.entry(name)
    if (keys.x25519_public, keys.mlkem_public) != (entry.x25519_public, entry.mlkem_public):
        raise _cheated(name, "mask seed")
    position, masks = roster.position(name), []
    for other in agreement.survivors:
        other_x25519 = roster.entry(other).x25519_public
        if roster.position(other) < position:  # the survivor stands before: it added
            pair = Pair(roster.digest, other, name)
            coin, sign = unwrap_coin(pair, dealt[other][position].wrap, keys), Sign.PLUS
        else:
            pair, coin, sign = Pair(roster.digest, name, other), keys.coin(other), Sign.MINUS
        masks.append(Mask(pair_seed(pair, keys, other_x25519, coin), sign))
    return masks


def _cheated(name: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{name} has shared out another {what} than it committed to: the round is refused; evict it"
    )
