"""Ed25519 identities: who signs manifests, plans, updates and the directory.

An identity is separate from the TLS key: gRPC has no Ed25519 certificates, and a TLS key is
replaced every few days while an identity stays. Public keys are checked when they are built,
because OpenSSL's verification is not enough: with the neutral element as key, the signature
(R = neutral element, S = 0) verifies for every message, so its owner could deny everything.

A key with a small-order *component* on top of a proper one passes; it lets nobody forge or deny.

Source: RFC 8032, sections 5.1.2 to 5.1.7. Python cannot wipe memory, so a seed stays in it until
it is overwritten by chance.
"""

import base64
import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from offsite.secure.errors import ConfigError, IdentityError, SignatureError

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
FINGERPRINT_BYTES = 32

_P = 2**255 - 19
_D = -121665 * pow(121666, -1, _P) % _P
_ORDER_8_Y = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})
"""The y of the eight points whose order divides 8; each but 1 and -1 belongs to two of them."""


@dataclass(frozen=True, slots=True)
class IdentityPublicKey:
    """An Ed25519 public key that is safe to verify with.

    Raises:
        IdentityError: `raw` is not 32 bytes, no canonical encoding, no point of the curve, or a
            point of small order.

    Guarantees: no key of small order, in no encoding, is ever accepted
    (`test_small_order_keys_are_refused`).
    """

    raw: bytes

    def __post_init__(self) -> None:
        problem = _problem_of(self.raw)
        if problem:
            raise IdentityError(
                f"expected an Ed25519 public key, found {problem}: the key was damaged or forged"
            )

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of the raw key. 32 bytes."""
        return hashlib.sha256(self.raw).digest()

    @property
    def short(self) -> str:
        """The first 80 bits of the fingerprint, for two people to compare: `abcd-efgh-ijkl-mnop`."""
        text = base64.b32encode(self.fingerprint[:10]).decode("ascii").lower()
        return "-".join(text[start : start + 4] for start in range(0, 16, 4))

    def verify(self, message: bytes, signature: bytes) -> None:
        """Raises `SignatureError` unless `signature` is this key's over `message`."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            raise SignatureError(
                f"expected a signature by {self.short}, found one that does not verify: "
                "what was signed has changed, or another key signed it"
            ) from None


@dataclass(frozen=True, slots=True)
class IdentityKey:
    """An Ed25519 signing key. Deterministic: the same seed gives the same key and signatures.

    Guarantees: `repr` and `str` never show the seed (`test_repr_shows_no_secret`).
    """

    seed: bytes = field(repr=False)
    public: IdentityPublicKey

    @classmethod
    def from_seed(cls, seed: bytes) -> "IdentityKey":
        """The key of a 32-byte seed, which must be random and secret."""
        if len(seed) != SEED_BYTES:
            raise ConfigError(
                f"expected an identity seed of {SEED_BYTES} bytes, found {len(seed)}: "
                "restore the key file from a backup or enrol again"
            )
        private = Ed25519PrivateKey.from_private_bytes(seed)
        return cls(bytes(seed), IdentityPublicKey(private.public_key().public_bytes_raw()))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte signature over `message`; the caller separates domains."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(message)


def _problem_of(raw: bytes) -> str | None:
    if len(raw) != PUBLIC_KEY_BYTES:
        return f"{len(raw)} bytes instead of {PUBLIC_KEY_BYTES}"
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    if y >= _P:
        return "an encoding that is not canonical"
    if y in _SMALL_ORDER_Y:
        return "a point of small order"
    if not _is_on_curve(y):
        return "no point of the curve"
    return None


def _is_on_curve(y: int) -> bool:
    """Whether x² = (y² - 1) / (d·y² + 1) has a solution modulo p, by Euler's criterion."""
    numerator, denominator = (y * y - 1) % _P, (_D * y * y + 1) % _P
    # u/v and u·v are squares together, and the product needs no inversion.
    return pow(numerator * denominator, (_P - 1) // 2, _P) == 1
