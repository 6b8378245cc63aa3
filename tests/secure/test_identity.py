"""Ed25519 identities, against RFC 8032's vectors and against every weak key there is."""

import cryptography_vectors
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from offsite.secure.errors import ConfigError, IdentityError, SignatureError
from offsite.secure.identity import IdentityKey, IdentityPublicKey

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
ORDER = 2**252 + 27742317777372353535851937790883648493
Point = tuple[int, int]


def add(a: Point, b: Point) -> Point:
    """The complete addition law of the twisted Edwards curve, affine (RFC 8032, 5.1.4)."""
    (x1, y1), (x2, y2) = a, b
    product = D * x1 * x2 * y1 * y2
    x3 = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P)
    y3 = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P)
    return x3 % P, y3 % P


def multiply(scalar: int, point: Point) -> Point:
    result: Point = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point, scalar = add(point, point), scalar >> 1
    return result


def lift(y: int) -> Point | None:
    """A point with this y, if the curve has one (RFC 8032, 5.1.3)."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    return (x, y) if x * x % P == square else None


def small_order_points() -> set[Point]:
    """All eight: multiples of a point of order 8, found by clearing the large prime order."""
    for y in range(2, 100):
        point = lift(y)
        if point is None:
            continue
        generator = multiply(ORDER, point)
        found = {multiply(k, generator) for k in range(8)}
        if len(found) == 8:
            return found
    raise AssertionError("no point of order 8 found")


def encodings(point: Point) -> list[bytes]:
    """Canonical and other encodings that a lax decoder takes for this point."""
    x, y = point
    signs = {x & 1} if x else {0, 1}
    values = [y] + ([y + P] if y + P < 2**255 else [])
    return [(value | sign << 255).to_bytes(32, "little") for value in values for sign in signs]


SMALL_ORDER = sorted(raw for point in small_order_points() for raw in encodings(point))


def rfc8032_vectors() -> list[list[str]]:
    with cryptography_vectors.open_vector_file("asymmetric/Ed25519/sign.input", "r") as file:
        return [line.split(":") for line in file.read().splitlines()]


def test_rfc8032_vectors() -> None:
    vectors = rfc8032_vectors()
    assert len(vectors) == 1024
    for secret, public, message, signed, _ in vectors:
        key = IdentityKey.from_seed(bytes.fromhex(secret)[:32])
        text, signature = bytes.fromhex(message), bytes.fromhex(signed)[:64]
        assert key.public.raw == bytes.fromhex(public)
        assert key.sign(text) == signature
        key.public.verify(text, signature)


def test_the_attack_with_a_small_order_key_is_real() -> None:
    """Why keys are checked: OpenSSL takes this signature for any message."""
    neutral = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), b"anything at all")


def test_there_are_eight_small_order_points() -> None:
    assert len(small_order_points()) == 8
    # 8 canonical; 2 with the sign of x = 0 set; y = 0 and y = 1 fit a second time, twice each.
    assert len(set(SMALL_ORDER)) == 14


@pytest.mark.parametrize("raw", SMALL_ORDER, ids=bytes.hex)
def test_small_order_keys_are_refused(raw: bytes) -> None:
    with pytest.raises(IdentityError):
        IdentityPublicKey(raw)


@pytest.mark.parametrize("sign", [0, 1])
def test_encodings_that_are_not_canonical_are_refused(sign: int) -> None:
    for y in range(P, 2**255):
        with pytest.raises(IdentityError, match="canonical"):
            IdentityPublicKey((y | sign << 255).to_bytes(32, "little"))


def test_what_is_no_point_is_refused() -> None:
    refused = 0
    for y in range(2, 60):
        raw = y.to_bytes(32, "little")
        if lift(y) is None:
            refused += 1
            with pytest.raises(IdentityError, match="no point"):
                IdentityPublicKey(raw)
        else:
            IdentityPublicKey(raw)
    assert refused > 10


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(IdentityError, match=str(length)):
        IdentityPublicKey(b"\x05" * length)
    with pytest.raises(ConfigError, match=str(length)):
        IdentityKey.from_seed(b"\x05" * length)


def test_signatures_of_others_are_refused(signer: IdentityKey, stranger: IdentityKey) -> None:
    for signature in (stranger.sign(b"text"), signer.sign(b"Text"), b"", bytes(64)):
        with pytest.raises(SignatureError):
            signer.public.verify(b"text", signature)


def test_a_signature_has_one_form(signer: IdentityKey) -> None:
    """S + L would be a second valid S for a lax verifier."""
    signature = signer.sign(b"text")
    second = int.from_bytes(signature[32:], "little") + ORDER
    with pytest.raises(SignatureError):
        signer.public.verify(b"text", signature[:32] + second.to_bytes(32, "little"))


def test_fingerprints(signer: IdentityKey, stranger: IdentityKey) -> None:
    assert len(signer.public.fingerprint) == 32
    assert signer.public.fingerprint != stranger.public.fingerprint
    groups = signer.public.short.split("-")
    assert [len(group) for group in groups] == [4, 4, 4, 4]


def test_repr_shows_no_secret(signer: IdentityKey) -> None:
    for text in (repr(signer), str(signer), f"{signer}"):
        assert signer.seed.hex() not in text
        assert repr(signer.seed)[2:-1] not in text
        assert "seed" not in text
