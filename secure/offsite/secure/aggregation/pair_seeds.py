"""Pair seeds: what two members add and take away again. Hybrid: X25519 and ML-KEM-768.

For i before j in the roster, with the roster hash as salt:

    (ss, ct) ← Encaps(ek_j)       w = AES-256-GCM( HKDF(ss, "wrap" | i | j), r_ij )
    s_ij = HKDF( X25519(i, j) || r_ij, "mask" | i | j )

i sends ct and w through the coordinator; j opens r_ij. Both halves would have to be broken to get
s_ij, so a coordinator that keeps everything gains nothing from a quantum computer later.

Notable: the coin r_ij is transported rather than ss used as it is, because the contribution of a
member that dropped out must be computable from its sigma alone, also where it encapsulated, and
encapsulation draws randomness of its own (the library offers no other). ML-KEM answers a wrong
ciphertext with a random secret, not with an error; the wrap's tag is what detects it.

Source: Bonawitz et al. (CCS 2017) for the masks; the combination follows X-Wing's rule that both
secrets and the transcript (here through the roster hash) enter the derivation.
"""

from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from offsite.secure.aggregation.encoding import info
from offsite.secure.aggregation.keys import MLKEM_PUBLIC_BYTES, SEED_BYTES, MaskKeys
from offsite.secure.errors import IntegrityError

ENCAPSULATION_BYTES: Final = 1088
_TAG_BYTES: Final = 16
WRAP_BYTES: Final = ENCAPSULATION_BYTES + SEED_BYTES + _TAG_BYTES
_NONCE: Final = bytes(12)
"""Every wrap has a key of its own."""
_PROBE: Final = MaskKeys(bytes(SEED_BYTES))
"""No secret: agrees with a public key only to see whether that can be done."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two members, in roster order, in one roster."""

    roster: bytes
    first: str
    second: str

    def info(self, label: str) -> bytes:
        return info(label, self.first.encode(), self.second.encode())


def wrap_coin(pair: Pair, coin: bytes, mlkem_public: bytes) -> bytes:
    """The coin of `pair.first`, encrypted to the ML-KEM key of `pair.second`."""
    secret, encapsulated = _mlkem_key(mlkem_public).encapsulate()
    return encapsulated + AESGCM(_wrap_key(pair, secret)).encrypt(_NONCE, coin, None)


def unwrap_coin(pair: Pair, wrapped: bytes, keys: MaskKeys) -> bytes:
    """What `wrap_coin` sent, opened with the keys of `pair.second`.

    Raises:
        IntegrityError: it was made for another pair, roster or key, or it was changed.
    """
    if len(wrapped) != WRAP_BYTES:
        raise IntegrityError(f"expected a wrap of {WRAP_BYTES} bytes, found {len(wrapped)}")
    encapsulated, sealed = wrapped[:ENCAPSULATION_BYTES], wrapped[ENCAPSULATION_BYTES:]
    secret = keys.mlkem.decapsulate(encapsulated)
    try:
        return AESGCM(_wrap_key(pair, secret)).decrypt(_NONCE, sealed, None)
    except InvalidTag:
        raise IntegrityError(
            f"the coin of {pair.first} for {pair.second} does not open: it was changed, or sent "
            "for another round"
        ) from None


def pair_seed(pair: Pair, keys: MaskKeys, other_x25519: bytes, coin: bytes) -> bytes:
    """s_ij, the key of the pair's mask. 32 bytes; the same for both members.

    Raises:
        IntegrityError: the other's X25519 key has small order.
    """
    try:
        agreed = keys.x25519.exchange(X25519PublicKey.from_public_bytes(other_x25519))
    except ValueError:
        raise IntegrityError("expected an X25519 key of full order, found a weak one") from None
    return _derive(agreed + coin, pair.roster, pair.info("mask"))


def self_mask_key(roster: bytes, client_id: str, self_seed: bytes) -> bytes:
    """The key of a member's own mask."""
    return _derive(self_seed, roster, info("self", client_id.encode()))


def check_channel_key(public_bytes: bytes) -> None:
    """Raises IntegrityError for an X-Wing key (ML-KEM-768, then X25519) that nothing is sealed to."""
    check_public_keys(public_bytes[MLKEM_PUBLIC_BYTES:], public_bytes[:MLKEM_PUBLIC_BYTES])


def check_public_keys(x25519_public: bytes, mlkem_public: bytes) -> None:
    """Raises IntegrityError for a key that no honest member would have."""
    _mlkem_key(mlkem_public)
    try:
        _PROBE.x25519.exchange(X25519PublicKey.from_public_bytes(x25519_public))
    except ValueError:
        raise IntegrityError("expected an X25519 key of full order, found a weak one") from None


def _mlkem_key(raw: bytes) -> MLKEM768PublicKey:
    try:
        return MLKEM768PublicKey.from_public_bytes(raw)
    except ValueError:
        raise IntegrityError("expected an ML-KEM-768 key, found other bytes") from None


def _wrap_key(pair: Pair, secret: bytes) -> bytes:
    return _derive(secret, pair.roster, pair.info("wrap"))


def _derive(secret: bytes, salt: bytes, context: bytes) -> bytes:
    return HKDF(hashes.SHA256(), SEED_BYTES, salt, context).derive(secret)
