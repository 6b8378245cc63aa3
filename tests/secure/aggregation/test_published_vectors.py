"""Vectors that others published, through our functions wherever those let the inputs in.

From the package `cryptography-vectors`: RFC 7748 (X25519), 8032 (Ed25519), 5869 (HKDF), 8439
(ChaCha20), 9180 (HPKE) and X-Wing. Where a function of ours fixes what a vector varies (the nonce
of a keystream, the label of a derivation, the cipher of a seal), the primitive is run as we call it,
and our function is compared with a derivation that was checked against the vector.

Shamir's scheme is compared with `shamir-mnemonic`, the reference of SLIP-39: the same field.
"""

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from importlib.resources import files

import numpy as np
import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES, ChaCha20
from cryptography.hazmat.primitives.ciphers.modes import CTR
from hypothesis import given
from hypothesis import strategies as st
from shamir_mnemonic.shamir import RawShare, _interpolate

from offsite.secure import sealing
from offsite.secure.aggregation import shamir
from offsite.secure.aggregation.encoding import info
from offsite.secure.aggregation.keys import MaskKeys, expand
from offsite.secure.aggregation.keystream import BLOCK_WORDS, Generator, Keystream
from offsite.secure.aggregation.pair_seeds import Pair, _derive, pair_seed
from offsite.secure.errors import IntegrityError, SignatureError
from offsite.secure.identity import IdentityKey

Vector = Mapping[str, str]


def blocks(path: str) -> list[Vector]:
    """The vectors of a file of `NAME = value` lines, each begun by COUNT."""
    found: list[dict[str, str]] = []
    for line in files("cryptography_vectors").joinpath(path).read_text().splitlines():
        name, is_pair, value = line.partition("=")
        if not is_pair or line.startswith("#"):
            continue
        if name.strip() == "COUNT":
            found.append({})
        found[-1][name.strip()] = value.strip()
    return found


def hexed(vector: Vector, *names: str) -> Iterator[bytes]:
    return (bytes.fromhex(vector[name]) for name in names)


# RFC 7748.


@pytest.mark.parametrize(
    "vector", blocks("asymmetric/X25519/rfc7748.txt"), ids=lambda v: v["COUNT"]
)
def test_x25519_is_that_of_rfc_7748(vector: Vector) -> None:
    """A pair seed made of the vector's keys is derived from the vector's shared secret."""
    scalar, point, shared = hexed(vector, "INPUT_SCALAR", "INPUT_U", "OUTPUT_U")
    private = X25519PrivateKey.from_private_bytes(scalar)
    assert private.exchange(X25519PublicKey.from_public_bytes(point)) == shared
    keys, pair, coin = MaskKeys(bytes(32)), Pair(b"roster", "a", "b"), hashlib.sha256().digest()
    keys.__dict__["x25519"] = private
    expected = hkdf(shared + coin, b"roster", pair.info("mask"), 32)
    assert pair_seed(pair, keys, point, coin) == expected


# RFC 8032.


def signatures() -> list[tuple[bytes, bytes, bytes, bytes]]:
    """Seed, public key, message, signature: 1,024 of them, messages of 0 to 1,023 bytes."""
    path = files("cryptography_vectors").joinpath("asymmetric/Ed25519/sign.input")
    rows = [line.split(":") for line in path.read_text().splitlines()]
    found = []
    for secret, public, message, signed, _ in rows:
        seed, signature = bytes.fromhex(secret)[:32], bytes.fromhex(signed)[:64]
        found.append((seed, bytes.fromhex(public), bytes.fromhex(message), signature))
    return found


def test_identities_sign_as_in_rfc_8032() -> None:
    vectors = signatures()
    assert len(vectors) == 1024
    for seed, public, message, signature in vectors:
        key = IdentityKey.from_seed(seed)
        assert key.public.raw == public
        assert key.sign(message) == signature
        key.public.verify(message, signature)


def test_a_changed_published_signature_does_not_verify() -> None:
    seed, _, message, signature = signatures()[100]
    with pytest.raises(SignatureError):
        IdentityKey.from_seed(seed).public.verify(message + b"x", signature)


# RFC 5869.


def hkdf_expand(key: bytes, context: bytes, size: int) -> bytes:
    """RFC 5869, section 2.3, written from its text; checked against its vectors below."""
    out, block, counter = b"", b"", 1
    while len(out) < size:
        block = hmac.digest(key, block + context + bytes([counter]), "sha256")
        out, counter = out + block, counter + 1
    return out[:size]


def hkdf(secret: bytes, salt: bytes, context: bytes, size: int) -> bytes:
    return hkdf_expand(hmac.digest(salt, secret, "sha256"), context, size)


@pytest.mark.parametrize("vector", blocks("KDF/rfc-5869-HKDF-SHA256.txt"), ids=lambda v: v["COUNT"])
def test_derivation_is_hkdf_of_rfc_5869(vector: Vector) -> None:
    secret, salt, context, key, okm = hexed(vector, "IKM", "salt", "info", "PRK", "OKM")
    assert hkdf_expand(key, context, int(vector["L"])) == okm  # the reference is right, and
    assert hkdf(secret, salt, context, int(vector["L"])) == okm
    assert _derive(secret, salt, context) == okm[:32]  # ours of pair seeds too, and
    for size in (32, 64, 8160):  # ours of keys is the same under a label
        assert expand(key, "label", context, size=size) == hkdf_expand(
            key, info("label", context), size
        )


# RFC 8439.


@pytest.mark.parametrize("vector", blocks("ciphers/ChaCha20/rfc7539.txt"), ids=lambda v: v["COUNT"])
def test_chacha20_is_that_of_rfc_8439(vector: Vector) -> None:
    """The appendix's vectors have not changed since RFC 7539. Ours has no nonce: it is zero."""
    key, nonce, plain, cipher = hexed(vector, "KEY", "NONCE", "PLAINTEXT", "CIPHERTEXT")
    counter = int(vector["INITIAL_BLOCK_COUNTER"])
    encryptor = Cipher(ChaCha20(key, counter.to_bytes(4, "little") + nonce), None).encryptor()
    assert encryptor.update(plain) == cipher
    count = len(plain) // 4
    words = np.empty(count, np.uint32)
    zeros = np.zeros(count, np.uint32)
    Keystream(Generator.CHACHA20, key, counter * BLOCK_WORDS).next_into(words, zeros)
    found = words ^ np.frombuffer(plain[: 4 * count], "<u4")
    assert (found.tobytes() == cipher[: 4 * count]) == (nonce == bytes(12))


def test_one_of_the_chacha20_vectors_runs_through_the_keystream() -> None:
    nonces = [vector["NONCE"] for vector in blocks("ciphers/ChaCha20/rfc7539.txt")]
    assert bytes(12).hex() in nonces


@pytest.mark.parametrize(
    "vector", blocks("ciphers/AES/CTR/aes-256-ctr.txt"), ids=lambda v: v["COUNT"]
)
def test_aes_counter_mode_is_that_of_rfc_3686(vector: Vector) -> None:
    """The mode as we call it; the keystream is the same from the zero block."""
    key, block, plain, cipher = hexed(vector, "KEY", "IV", "PLAINTEXT", "CIPHERTEXT")
    assert Cipher(AES(key), CTR(block)).encryptor().update(plain) == cipher
    words, zeros = np.empty(16, np.uint32), np.zeros(16, np.uint32)
    Keystream(Generator.AES256_CTR, key).next_into(words, zeros)
    assert words.tobytes() == Cipher(AES(key), CTR(bytes(16))).encryptor().update(bytes(64))


# RFC 9180 and X-Wing.


def hpke_vectors(path: str, kem: int) -> list[dict[str, object]]:
    """Base mode, HKDF-SHA256, with the ciphers that the library has."""
    vectors = json.loads(files("cryptography_vectors").joinpath("HPKE", path).read_text())
    return [
        vector
        for vector in vectors
        if (vector["mode"], vector["kem_id"], vector["kdf_id"]) == (0, kem, 1)
        and vector["aead_id"] in CIPHERS
    ]


CIPHERS = {1: hpke.AEAD.AES_128_GCM, 2: hpke.AEAD.AES_256_GCM, 3: hpke.AEAD.CHACHA20_POLY1305}
X25519_KEM = 0x20
X_WING_KEM = 0x647A


def opened(vector: dict[str, object], suite: hpke.Suite, key: object) -> None:
    """The first message, as ours travel: encapsulated key, then ciphertext."""
    first = vector["encryptions"][0]  # type: ignore[index]
    sealed = bytes.fromhex(str(vector["enc"])) + bytes.fromhex(first["ct"])
    context, added = bytes.fromhex(str(vector["info"])), bytes.fromhex(first["aad"])
    # The vectors add data, which the public interface does not take; the tag covers it.
    plain = openssl.hpke._decrypt_with_aad(suite, sealed, key, context, added)
    assert plain == bytes.fromhex(first["pt"])


@pytest.mark.parametrize(
    "vector", hpke_vectors("test-vectors.json", X25519_KEM), ids=lambda v: f"aead-{v['aead_id']}"
)
def test_hpke_is_that_of_rfc_9180(vector: dict[str, object]) -> None:
    suite = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, CIPHERS[int(str(vector["aead_id"]))])
    opened(vector, suite, X25519PrivateKey.from_private_bytes(bytes.fromhex(str(vector["skRm"]))))


def test_sealing_keys_are_those_of_x_wing() -> None:
    """From a vector's seed, our key has the vector's public half, and opens what was sealed to it."""
    (vector,) = hpke_vectors("hpke-pq-test-vectors.json", X_WING_KEM)
    key = sealing.SealingKey.from_seed(bytes.fromhex(str(vector["skRm"])))
    assert key.public_bytes == bytes.fromhex(str(vector["pkRm"]))
    suite = hpke.Suite(
        hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, CIPHERS[int(str(vector["aead_id"]))]
    )
    private = hpke.MLKEM768X25519PrivateKey(*sealing._expand(key.seed))
    opened(vector, suite, private)
    with pytest.raises(IntegrityError):  # as a blob of ours it is none: other cipher, other info
        sealing.open_sealed(key, sealing._MAGIC + bytes.fromhex(str(vector["enc"])), b"")


# SLIP-39.


@given(st.integers(1, 12), st.binary(min_size=1, max_size=64), st.data())
def test_shares_interpolate_as_in_slip_39(
    threshold: int, secret: bytes, data: st.DataObject
) -> None:
    """Points, secret and all: whatever any threshold of shares fixes, both compute the same."""
    points = data.draw(st.lists(st.integers(1, 254), min_size=threshold, max_size=20, unique=True))
    coefficients = hashlib.shake_256(secret).digest((threshold - 1) * len(secret))
    shares = shamir.split(secret, threshold, points, coefficients)
    chosen = data.draw(st.permutations(range(len(points))))[:threshold]
    theirs = [RawShare(points[i], shares[i]) for i in chosen]
    assert _interpolate(theirs, 0) == secret
    assert shamir.combine({points[i]: shares[i] for i in chosen}) == secret
    for other in set(range(len(points))) - set(chosen):
        assert _interpolate(theirs, points[other]) == shares[other]


@given(st.dictionaries(st.integers(1, 255), st.binary(min_size=8, max_size=8), min_size=1))
def test_any_shares_combine_as_in_slip_39(shares: dict[int, bytes]) -> None:
    """Also shares that nobody split: the two agree on every set of points and values."""
    if len(shares) > 1:
        theirs = _interpolate([RawShare(point, share) for point, share in shares.items()], 0)
        assert shamir.combine(shares) == theirs
