"""The frozen list of who takes part (U1), with every signature checked: the same for all parties.

Rules: between the least and the most members of the configuration; in order of their names, each
once; every advertisement signed by the key that the directory has for an active client, made for
this round configuration; no key used twice, none that is weak.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from offsite.secure.aggregation.messages import Advertisement, claimed, opened, roster_digest
from offsite.secure.aggregation.pair_seeds import check_channel_key, check_public_keys
from offsite.secure.aggregation.round_config import RoundConfig
from offsite.secure.errors import IntegrityError, PeerError
from offsite.secure.identity import IdentityPublicKey

KeyOf = Callable[[str], IdentityPublicKey]
"""The identity key of an active client; raises IdentityError for anybody else."""


@dataclass(frozen=True, slots=True)
class Roster:
    """The members, their public keys and the digest that binds them."""

    digest: bytes
    threshold: int
    advertisements: tuple[Advertisement, ...]
    signed: tuple[bytes, ...]

    @property
    def client_ids(self) -> tuple[str, ...]:
        return tuple(entry.client_id for entry in self.advertisements)

    def position(self, client_id: str) -> int:
        """Where a member stands, from 0. Raises PeerError for anybody else."""
        try:
            return self.client_ids.index(client_id)
        except ValueError:
            raise PeerError(f"expected a member of the roster, found {client_id}") from None

    def point(self, client_id: str) -> int:
        """Where a member's shares are evaluated: never 0."""
        return self.position(client_id) + 1

    def entry(self, client_id: str) -> Advertisement:
        return self.advertisements[self.position(client_id)]


def open_advertisement(config: RoundConfig, data: bytes, key_of: KeyOf) -> Advertisement:
    """An advertisement for this round, signed by whom it names, with keys that are no trap.

    Raises:
        PeerError: anything else.
    """
    _, entry = claimed(Advertisement, data)
    entry = opened(Advertisement, data, key_of(entry.client_id))
    if entry.config != config.digest:
        raise PeerError(
            f"{entry.client_id}: expected an advertisement for this round, found one for another"
        )
    check_public_keys(entry.x25519_public, entry.mlkem_public)
    check_channel_key(entry.channel_public)  # or nobody else could deal out shares
    return entry


def freeze_roster(config: RoundConfig, signed: Sequence[bytes], key_of: KeyOf) -> Roster:
    """The roster of these signed advertisements, every one of them checked.

    Raises:
        PeerError: see the rules of the module.
    """
    if not config.least_members <= len(signed) <= config.most_members:
        raise PeerError(
            f"expected a roster of {config.least_members} to {config.most_members} members, found "
            f"{len(signed)}"
        )
    entries = tuple(open_advertisement(config, data, key_of) for data in signed)
    names = [entry.client_id for entry in entries]
    if names != sorted(set(names)):
        raise PeerError("expected a roster in the order of names, each once")
    for field in ("channel_public", "x25519_public", "mlkem_public", "self_commitment", "nonce"):
        if len({getattr(entry, field) for entry in entries}) != len(entries):
            raise IntegrityError(f"expected a {field} of its own for every member, found one twice")
    digest = roster_digest(config.digest, signed)
    return Roster(digest, config.threshold(len(entries)), entries, tuple(signed))
