"""Sealing, against the published X-Wing vectors and against an HPKE sender written out here."""

import hashlib
import json
from itertools import pairwise

import cryptography_vectors
import pytest
from cryptography.hazmat.backends.openssl.backend import backend
from cryptography.hazmat.bindings._rust import openssl as rust_openssl
from cryptography.hazmat.primitives import hashes, hmac, hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure import sealing
from offsite.secure.errors import ConfigError, IntegrityError, MachineError
from offsite.secure.sealing import SealingKey, open_sealed, seal

KEY = SealingKey.from_seed(b"\x41" * 32)
MAGIC = b"OFFSEAL1"


def xwing_vectors() -> list[dict[str, str]]:
    with cryptography_vectors.open_vector_file("HPKE/hpke-pq-test-vectors.json", "r") as file:
        return [vector for vector in json.load(file) if vector["kem_id"] == 0x647A]


def test_xwing_vectors_give_the_published_public_keys() -> None:
    vectors = xwing_vectors()
    assert vectors
    for vector in vectors:
        key = SealingKey.from_seed(bytes.fromhex(vector["skRm"]))
        assert key.public_bytes == bytes.fromhex(vector["pkRm"])


def test_xwing_vectors_open() -> None:
    """The published ciphertexts use ChaCha20-Poly1305 and AAD, so not through `open_sealed`."""
    vector = next(vector for vector in xwing_vectors() if vector["kdf_id"] == 1)  # type: ignore[comparison-overlap]
    private = hpke.MLKEM768X25519PrivateKey(*sealing._expand(bytes.fromhex(vector["skRm"])))
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    first = vector["encryptions"][0]
    opened = rust_openssl.hpke._decrypt_with_aad(
        suite,
        bytes.fromhex(vector["enc"]) + bytes.fromhex(first["ct"]),  # type: ignore[index]
        private,
        bytes.fromhex(vector["info"]),
        bytes.fromhex(first["aad"]),  # type: ignore[index]
    )
    assert opened == bytes.fromhex(first["pt"])  # type: ignore[index]


def extract(salt: bytes, ikm: bytes) -> bytes:
    mac = hmac.HMAC(salt or bytes(32), hashes.SHA256())
    mac.update(ikm)
    return mac.finalize()


class ReferenceSender:
    """RFC 9180 base mode, sections 4 and 5.1, over X-Wing: written from the specifications."""

    suite_id = b"HPKE" + bytes.fromhex("647a00010002")

    def labeled_extract(self, salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return extract(salt, b"HPKE-v1" + self.suite_id + label + ikm)

    def labeled_expand(self, secret: bytes, label: bytes, info: bytes, length: int) -> bytes:
        labeled = length.to_bytes(2, "big") + b"HPKE-v1" + self.suite_id + label + info
        return HKDFExpand(hashes.SHA256(), length, labeled).derive(secret)

    def encapsulate(self, public: bytes, x25519_seed: bytes) -> tuple[bytes, bytes]:
        mlkem_secret, mlkem_ct = MLKEM768PublicKey.from_public_bytes(public[:1184]).encapsulate()
        ephemeral = X25519PrivateKey.from_private_bytes(x25519_seed)
        x25519_ct = ephemeral.public_key().public_bytes_raw()
        x25519_secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(public[1184:]))
        combined = mlkem_secret + x25519_secret + x25519_ct + public[1184:] + rb"\.//^\ "[:6]
        return hashlib.sha3_256(combined).digest(), mlkem_ct + x25519_ct

    def seal(self, public: bytes, plaintext: bytes, info: bytes) -> bytes:
        shared, enc = self.encapsulate(public, b"\x77" * 32)
        psk_id_hash = self.labeled_extract(b"", b"psk_id_hash", b"")
        info_hash = self.labeled_extract(b"", b"info_hash", info)
        schedule = b"\x00" + psk_id_hash + info_hash
        secret = self.labeled_extract(shared, b"secret", b"")
        key = self.labeled_expand(secret, b"key", schedule, 32)
        nonce = self.labeled_expand(secret, b"base_nonce", schedule, 12)
        return enc + AESGCM(key).encrypt(nonce, plaintext, b"")


def info_of(context: bytes, index: int, segments: int) -> bytes:
    numbers = (index, segments, len(context))
    return b"offsite/1 seal" + b"".join(n.to_bytes(8, "big") for n in numbers) + context


def test_the_format_is_the_documented_one() -> None:
    sealed = MAGIC + ReferenceSender().seal(KEY.public_bytes, b"text", info_of(b"round 1", 0, 1))
    assert open_sealed(KEY, sealed, b"round 1") == b"text"


@given(plaintext=st.binary(max_size=500), context=st.binary(max_size=80))
@settings(max_examples=50)
def test_round_trip(plaintext: bytes, context: bytes) -> None:
    sealed = seal(KEY.public_bytes, plaintext, context)
    assert len(sealed) == len(MAGIC) + len(plaintext) + sealing.SEGMENT_OVERHEAD_BYTES
    assert open_sealed(KEY, sealed, context) == plaintext


def test_any_bit_change_in_a_sealed_blob_is_refused() -> None:
    good = seal(KEY.public_bytes, b"update", b"context")
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            open_sealed(KEY, bytes(changed), b"context")


def test_cut_and_longer_blobs_are_refused() -> None:
    good = seal(KEY.public_bytes, b"update", b"context")
    for bad in (b"", *(good[:length] for length in range(0, len(good), 7)), good + b"\x00"):
        with pytest.raises(IntegrityError):
            open_sealed(KEY, bad, b"context")


def test_another_context_or_key_is_refused() -> None:
    sealed = seal(KEY.public_bytes, b"update", b"plan 1 edge-1")
    with pytest.raises(IntegrityError):
        open_sealed(KEY, sealed, b"plan 1 edge-2")
    with pytest.raises(IntegrityError):
        open_sealed(SealingKey.from_seed(b"\x42" * 32), sealed, b"plan 1 edge-1")


def segments_of(sealed: bytes) -> list[bytes]:
    step = sealing.SEGMENT_BYTES + sealing.SEGMENT_OVERHEAD_BYTES
    bounds = [*range(len(MAGIC), len(sealed), step), len(sealed)]
    return [sealed[start:end] for start, end in pairwise(bounds)]


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SEGMENT_BYTES", 10)


@pytest.mark.usefixtures("small_segments")
@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 20, 25])
def test_segments_round_trip(length: int) -> None:
    plaintext = bytes(range(length))
    sealed = seal(KEY.public_bytes, plaintext, b"c")
    assert len(segments_of(sealed)) == max(1, -(-length // 10))
    assert open_sealed(KEY, sealed, b"c") == plaintext


@pytest.mark.usefixtures("small_segments")
def test_segments_stay_in_their_places() -> None:
    first, second, third = segments_of(seal(KEY.public_bytes, bytes(range(30)), b"c"))
    other = segments_of(seal(KEY.public_bytes, bytes(30), b"c"))
    assert open_sealed(KEY, MAGIC + first + second + third, b"c") == bytes(range(30))
    for wrong in (
        [second, first, third],
        [first, third],
        [first, second],
        [first, first, second],
        [first, second, third, third],
        [],
    ):
        with pytest.raises(IntegrityError):
            open_sealed(KEY, MAGIC + b"".join(wrong), b"c")
    # The sender is anonymous: what keeps a stranger's segment out is the signature inside.
    assert open_sealed(KEY, MAGIC + first + other[1] + third, b"c") != bytes(range(30))


@pytest.mark.parametrize("length", [0, 1215, 1217])
def test_public_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(IntegrityError, match=str(length)):
        seal(bytes(length), b"", b"")


def test_public_keys_that_are_none_are_refused() -> None:
    for forged in (
        b"\xff" * 1184 + KEY.public_bytes[1184:],  # coefficients out of range
        KEY.public_bytes[:1184] + bytes(32),  # X25519 point of small order
    ):
        with pytest.raises(IntegrityError, match="sealing key"):
            seal(forged, b"", b"")


def test_a_machine_without_mlkem_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(backend), "mlkem_supported", lambda self: False)
    sealed = b"OFFSEAL1" + bytes(1136)
    for call in (
        sealing.check_support,
        lambda: SealingKey.from_seed(bytes(32)),
        lambda: seal(KEY.public_bytes, b"", b""),
        lambda: open_sealed(KEY, sealed, b""),
    ):
        with pytest.raises(MachineError, match=r"OpenSSL 3\.5"):
            call()


def test_seeds() -> None:
    assert SealingKey.from_seed(KEY.seed) == KEY
    assert len(KEY.public_bytes) == sealing.PUBLIC_KEY_BYTES
    with pytest.raises(ConfigError):
        SealingKey.from_seed(bytes(31))


def test_repr_shows_no_secret() -> None:
    assert "AAAA" not in repr(KEY) and KEY.seed.hex() not in repr(KEY)
