"""All secrets of one member for one round, derived from 32 random bytes.

    entropy ─┬─ channel   X-Wing key to which shares are sealed
             ├─ b         self-mask seed, 32 bytes; revealed if the member's upload counts
             ├─ sigma     mask seed, 32 bytes; revealed if it dropped out after sharing
             │    ├─ X25519 private key, ML-KEM-768 seed: agree on pair seeds
             │    └─ coin root, from which the coin r_ij of every pair comes
             ├─ nonce     32 bytes, public
             └─ coefficients of the sharing

Notable: keys live for one round, so a transcript recorded today is not opened by a key stolen
tomorrow, and nothing can be reused across rounds. Since all of it follows from the entropy and the
messages received, a member that was killed continues with the same values.

`b || sigma` is shared as one string of 64 bytes; bytewise sharing keeps the halves apart, and only
one half of a member is ever revealed.
"""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from offsite.secure.aggregation.encoding import digest, info
from offsite.secure.errors import ConfigError
from offsite.secure.sealing import SealingKey

SEED_BYTES: Final = 32
MLKEM_SEED_BYTES: Final = 64
X25519_PUBLIC_BYTES: Final = 32
MLKEM_PUBLIC_BYTES: Final = 1184
SECRET_BYTES: Final = 2 * SEED_BYTES
"""b and sigma, one after the other."""


def expand(seed: bytes, label: str, *context: bytes, size: int = SEED_BYTES) -> bytes:
    """HKDF-Expand with SHA-256 (RFC 5869, 2.3) of a uniformly random seed. `size` up to 8160."""
    return HKDFExpand(hashes.SHA256(), size, info(label, *context)).derive(seed)


@dataclass(frozen=True)
class MaskKeys:
    """What sigma gives: the keys with which pair seeds are agreed. `repr` hides them.

    The coordinator makes the same object of a dropped member once its sigma is reconstructed.
    """

    sigma: bytes = field(repr=False)

    @cached_property
    def x25519(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(expand(self.sigma, "x25519"))

    @cached_property
    def mlkem(self) -> MLKEM768PrivateKey:
        seed = expand(self.sigma, "mlkem", size=MLKEM_SEED_BYTES)
        return MLKEM768PrivateKey.from_seed_bytes(seed)

    @property
    def x25519_public(self) -> bytes:
        return self.x25519.public_key().public_bytes_raw()

    @property
    def mlkem_public(self) -> bytes:
        return self.mlkem.public_key().public_bytes_raw()

    def coin(self, other: str) -> bytes:
        """r_ij, the post-quantum half of the pair seed with a member further down the roster."""
        return expand(expand(self.sigma, "coins"), "pair", other.encode())


@dataclass(frozen=True)
class MemberSecrets:
    """Everything that a member keeps to itself. `repr` hides it."""

    entropy: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.entropy) != SEED_BYTES:
            raise ConfigError(f"expected {SEED_BYTES} random bytes, found {len(self.entropy)}")

    @property
    def nonce(self) -> bytes:
        return expand(self.entropy, "nonce")

    @property
    def self_seed(self) -> bytes:
        """b."""
        return expand(self.entropy, "self")

    @cached_property
    def masks(self) -> MaskKeys:
        """sigma and its keys."""
        return MaskKeys(expand(self.entropy, "sigma"))

    @cached_property
    def channel(self) -> SealingKey:
        return SealingKey.from_seed(expand(self.entropy, "channel"))

    @property
    def shared(self) -> bytes:
        """b || sigma."""
        return self.self_seed + self.masks.sigma

    def coefficients(self, roster: bytes, threshold: int) -> bytes:
        """Of the sharing in this roster; another roster gives other ones."""
        seed = expand(self.entropy, "coefficients", roster)
        return hashlib.shake_256(seed).digest((threshold - 1) * SECRET_BYTES)


def self_commitment(config_digest: bytes, client_id: str, self_seed: bytes) -> bytes:
    """B: binds b before anything depends on it. b has 256 bits of entropy, so it needs no salt."""
    return digest("b", config_digest, client_id.encode(), self_seed)


def share_commitment(roster: bytes, dealer: str, holder: str, half: bytes, share: bytes) -> bytes:
    """h: binds one half of one share; `half` is b"b" or b"s"."""
    return digest("share", roster, dealer.encode(), holder.encode(), half, share)
