"""Sealing: encryption to the coordinator that a later quantum computer does not open either.

HPKE (RFC 9180), base mode, one shot per segment, with X-Wing (ML-KEM-768 and X25519), HKDF-SHA256
and AES-256-GCM. The sender is anonymous, so what is sealed must be signed inside.

    sealed  = "OFFSEAL1" | segment...
    segment = HPKE(SEGMENT_BYTES of plaintext, fewer only in the last one), 1136 bytes longer
    info    = "offsite/1 seal" | u64 index | u64 segments | u64 len(context) | context

Segments exist because AES-GCM in OpenSSL takes less than 2 GiB at a time and an update may be
longer; index and count in `info` make a moved, missing or extra segment fail.

Randomness: the library draws the ephemeral keys of `seal` itself; HPKE in `cryptography` has no
other interface. Everything else is deterministic. ML-KEM needs OpenSSL 3.5 or later.
Sources: RFC 9180; X-Wing, draft-connolly-cfrg-xwing-kem, section 5.2 (key from a 32-byte seed).
"""

import hashlib
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.backends.openssl.backend import backend
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from offsite.secure.errors import ConfigError, IntegrityError, MachineError

SEED_BYTES = 32
PUBLIC_KEY_BYTES = 1216
SEGMENT_BYTES = 64 << 20
SEGMENT_OVERHEAD_BYTES = 1136
"""Encapsulated key (1120) and tag (16)."""

_MAGIC = b"OFFSEAL1"
_INFO_LABEL = b"offsite/1 seal"
_MLKEM_PUBLIC_BYTES = 1184
_MLKEM_SEED_BYTES = 64


def check_support() -> None:
    """Raises `MachineError` if this machine's OpenSSL lacks ML-KEM; there is no weaker fallback."""
    if not backend.mlkem_supported():
        raise MachineError(
            f"expected OpenSSL 3.5 or later with ML-KEM, found {backend.openssl_version_text()}: "
            "install the `cryptography` wheel from PyPI, which brings its own"
        )


@dataclass(frozen=True, slots=True)
class SealingKey:
    """The key that opens. The same seed gives the same key. `repr` hides the seed."""

    seed: bytes = field(repr=False)
    public_bytes: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> "SealingKey":
        """The X-Wing key of a 32-byte seed, which must be random and secret."""
        if len(seed) != SEED_BYTES:
            raise ConfigError(
                f"expected a sealing seed of {SEED_BYTES} bytes, found {len(seed)}: "
                "restore the key file from a backup"
            )
        mlkem, x25519 = _expand(seed)
        public = mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()
        return cls(bytes(seed), public)


def seal(public_bytes: bytes, plaintext: bytes, context: bytes) -> bytes:
    """Encrypts to the owner of `public_bytes` (1216 bytes), bound to `context`.

    Draws its own randomness, so two calls never give the same bytes.

    Raises:
        IntegrityError: `public_bytes` is no X-Wing public key.
    """
    public_key, suite = _public_key(public_bytes), _suite()
    view = memoryview(plaintext)
    segments = max(1, -(-len(plaintext) // SEGMENT_BYTES))
    parts = [_MAGIC]
    for index in range(segments):
        segment = view[index * SEGMENT_BYTES : (index + 1) * SEGMENT_BYTES]
        try:
            parts.append(suite.encrypt(segment, public_key, _info(context, index, segments)))
        except ValueError:  # the X25519 half is a point of small order
            raise IntegrityError(
                "expected a sealing key, found one that nothing can be sealed to: it was forged"
            ) from None
    return b"".join(parts)


def open_sealed(key: SealingKey, sealed: bytes, context: bytes) -> bytes:
    """Decrypts what `seal` made for this key and this context.

    Raises:
        IntegrityError: another key, another context, or changed bytes; which one cannot be told.

    Guarantees: any changed bit, a cut, and moved, missing or repeated segments are refused
    (`test_any_bit_change_in_a_sealed_blob_is_refused`, `test_segments_stay_in_their_places`).
    """
    check_support()
    if sealed[: len(_MAGIC)] != _MAGIC:
        raise IntegrityError(
            f"expected a sealed blob that begins with {_MAGIC!r}, found "
            f"{bytes(sealed[: len(_MAGIC)])!r}: this is something else"
        )
    private_key = hpke.MLKEM768X25519PrivateKey(*_expand(key.seed))
    view = memoryview(sealed)[len(_MAGIC) :]
    step = SEGMENT_BYTES + SEGMENT_OVERHEAD_BYTES
    segments = max(1, -(-len(view) // step))
    parts = []
    for index in range(segments):
        segment = view[index * step : (index + 1) * step]
        parts.append(_open_segment(private_key, segment, _info(context, index, segments)))
    return b"".join(parts)


def _suite() -> hpke.Suite:
    return hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


def _open_segment(
    private_key: hpke.MLKEM768X25519PrivateKey, segment: memoryview, info: bytes
) -> bytes:
    try:
        return _suite().decrypt(segment, private_key, info)
    except (InvalidTag, ValueError):
        raise IntegrityError(
            "expected a blob sealed to this key and for this purpose, found one that does not "
            "open: it was changed, cut, or sealed for another coordinator, round or client"
        ) from None


def _expand(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    check_support()
    wide = hashlib.shake_256(seed).digest(_MLKEM_SEED_BYTES + 32)
    return (
        MLKEM768PrivateKey.from_seed_bytes(wide[:_MLKEM_SEED_BYTES]),
        X25519PrivateKey.from_private_bytes(wide[_MLKEM_SEED_BYTES:]),
    )


def _public_key(public_bytes: bytes) -> hpke.MLKEM768X25519PublicKey:
    check_support()
    if len(public_bytes) != PUBLIC_KEY_BYTES:
        raise IntegrityError(
            f"expected a sealing key of {PUBLIC_KEY_BYTES} bytes, found {len(public_bytes)}"
        )
    try:
        mlkem = MLKEM768PublicKey.from_public_bytes(public_bytes[:_MLKEM_PUBLIC_BYTES])
    except ValueError:
        raise IntegrityError(
            "expected a sealing key, found bytes that are no ML-KEM-768 key: it was damaged"
        ) from None
    x25519 = X25519PublicKey.from_public_bytes(public_bytes[_MLKEM_PUBLIC_BYTES:])
    return hpke.MLKEM768X25519PublicKey(mlkem, x25519)


def _info(context: bytes, index: int, segments: int) -> bytes:
    numbers = (index, segments, len(context))
    return _INFO_LABEL + b"".join(number.to_bytes(8, "big") for number in numbers) + context
