"""The one-time join token: all that a new client needs to find and to trust a coordinator.

    text = "offsite1." base64url(body | checksum), without padding
    body = token id (16) | secret (32) | bootstrap seed (32) | directory key (32)
           | u16 length | address | u16 length | CA certificate (DER)
    checksum = SHA-256("offsite1." | body), first 8 bytes

The token carries the CA's certificate, so the coordinator is authenticated from the first byte; the
bootstrap seed, because gRPC in Python cannot make a client certificate optional; and the enrolment
authority's key, which pins the directory. The checksum only tells a cut or mistyped token from a
forged one before anything is sent.

The secret never travels: both sides compute HMAC-SHA256(proof key, transcript), where the proof key
is derived from the secret and the transcript binds the server's nonce and both of the client's new
keys. The coordinator keeps the proof key alone. Model: `kubeadm join`, step-ca.
"""

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from offsite.secure.certificates import cert_pem_of
from offsite.secure.errors import IdentityError, TokenError
from offsite.secure.identity import PUBLIC_KEY_BYTES, IdentityPublicKey

TOKEN_ID_BYTES = 16
SECRET_BYTES = 32
BOOTSTRAP_SEED_BYTES = 32
NONCE_BYTES = 32
PROOF_BYTES = 32
ADDRESS_CHARS = 261
"""A DNS name of 255 characters, a colon and a port."""
CERTIFICATE_BYTES = 4096
TOKEN_CHARS = 8192

_PREFIX = "offsite1."
_CHECKSUM_BYTES = 8
_TRANSCRIPT_LABEL = b"OFFSITE/1 enrolment"
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?):(\d{1,5})")
_WHAT_TO_DO = "copy the whole token, or ask for a new one"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A join token, checked when it is built.

    Raises:
        TokenError: a field of another length or shape.

    Guarantees: `repr` shows neither the secret nor the bootstrap seed
    (`test_repr_shows_no_secret`); a text with any bit changed, or cut, is refused by `parse`
    (`test_any_bit_change_in_a_token_is_refused`, `test_a_cut_token_is_refused`).
    """

    token_id: bytes
    secret: bytes = field(repr=False)
    bootstrap_seed: bytes = field(repr=False)
    ca_cert_der: bytes = field(repr=False)
    directory_key: bytes
    address: str

    def __post_init__(self) -> None:
        _check_length("token id", self.token_id, TOKEN_ID_BYTES)
        _check_length("secret", self.secret, SECRET_BYTES)
        _check_length("bootstrap seed", self.bootstrap_seed, BOOTSTRAP_SEED_BYTES)
        _check_address(self.address)
        _check_certificate(self.ca_cert_der)
        _check_directory_key(self.directory_key)

    def to_text(self) -> str:
        """The token as one word; it is a secret until it was used."""
        body = self._body()
        encoded = base64.urlsafe_b64encode(body + _checksum(body))
        return _PREFIX + encoded.rstrip(b"=").decode("ascii")

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Reads what `to_text` wrote; white space around it is ignored.

        Raises:
            TokenError: malformed, cut, mistyped, or from another version.
        """
        body = _body_of(text.strip())
        reader = _Reader(body)
        token = cls(
            token_id=reader.take(TOKEN_ID_BYTES),
            secret=reader.take(SECRET_BYTES),
            bootstrap_seed=reader.take(BOOTSTRAP_SEED_BYTES),
            directory_key=reader.take(PUBLIC_KEY_BYTES),
            address=reader.take_field().decode("latin-1"),
            ca_cert_der=reader.take_field(),
        )
        if token._body() != body:
            raise TokenError(f"expected a join token, found bytes after its end: {_WHAT_TO_DO}")
        return token

    def _body(self) -> bytes:
        address = self.address.encode("ascii")
        return b"".join(
            (
                self.token_id,
                self.secret,
                self.bootstrap_seed,
                self.directory_key,
                len(address).to_bytes(2, "big") + address,
                len(self.ca_cert_der).to_bytes(2, "big") + self.ca_cert_der,
            )
        )


def transcript(
    *, token_id: bytes, nonce: bytes, csr_der: bytes, identity_key: bytes, ca_cert_der: bytes
) -> bytes:
    """What a new client signs with its identity key and proves to know the secret over.

    It binds the attempt (server nonce), both new keys and the CA that the client was told to trust,
    so that no proof can be moved to another attempt, key or coordinator. Its first bytes differ
    from those of every envelope's pre-authentication encoding.
    """
    fields = (token_id, nonce, csr_der, identity_key, ca_cert_der)
    return _TRANSCRIPT_LABEL + b"".join(len(part).to_bytes(4, "big") + part for part in fields)


def proof_key(secret: bytes) -> bytes:
    """HKDF-SHA256 of a token's secret: the key of its proofs, which the coordinator stores. 32 bytes.

    Whoever reads the store can make a proof with it, but cannot rebuild the token.
    """
    return HKDF(hashes.SHA256(), 32, salt=None, info=b"offsite/1 token proof").derive(secret)


def token_proof(key: bytes, transcript: bytes) -> bytes:
    """HMAC-SHA256 of the transcript under the token's proof key. 32 bytes."""
    return hmac.digest(key, transcript, "sha256")


def check_token_proof(key: bytes, transcript: bytes, proof: bytes) -> None:
    """Raises `TokenError` unless `proof` was made with the proof key over `transcript`.

    Guarantees: a proof for another transcript or by another key is refused
    (`test_a_proof_holds_for_one_transcript_and_one_secret`); the comparison takes the same time
    wherever the bytes differ (`hmac.compare_digest`).
    """
    if not hmac.compare_digest(token_proof(key, transcript), proof):
        raise TokenError(
            "expected proof that the join token is known, found a wrong one: check the token, or "
            "ask for a new one"
        )


class _Reader:
    """Takes fields off the front of a token's body."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, count: int) -> bytes:
        start, self._position = self._position, self._position + count
        if self._position > len(self._data):
            raise TokenError(f"expected a whole join token, found a cut one: {_WHAT_TO_DO}")
        return self._data[start : self._position]

    def take_field(self) -> bytes:
        return self.take(int.from_bytes(self.take(2), "big"))


def _body_of(text: str) -> bytes:
    """The body of a token's text, once its alphabet and its checksum were checked."""
    if not text.startswith(_PREFIX) or len(text) > TOKEN_CHARS or not text.isascii():
        raise TokenError(
            f"expected a join token that begins with {_PREFIX!r}, found something else: "
            + _WHAT_TO_DO
        )
    encoded = text.removeprefix(_PREFIX)
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), b"-_", validate=True)
    except ValueError:
        raise TokenError(
            f"expected a whole join token, found one with characters missing or mistyped: "
            f"{_WHAT_TO_DO}"
        ) from None
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # The re-encoding catches bits that base64 ignores at the end of its last character.
    canonical = base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") == encoded
    if not canonical or not hmac.compare_digest(_checksum(body), checksum):
        raise TokenError(
            f"expected a whole join token, found one that was cut or mistyped: {_WHAT_TO_DO}"
        )
    return body


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode("ascii") + body).digest()[:_CHECKSUM_BYTES]


def _check_length(name: str, value: bytes, expected: int) -> None:
    if len(value) != expected:
        raise TokenError(f"expected a {name} of {expected} bytes, found {len(value)}")


def _check_address(address: str) -> None:
    match = _ADDRESS.fullmatch(address) if len(address) <= ADDRESS_CHARS else None
    if match is None or not 0 < int(match.group(1)) < 1 << 16:
        raise TokenError(
            f"expected an address like 'coordinator.example:8443', found {address[:80]!r}: "
            "ask for a new token"
        )


def _check_certificate(ca_cert_der: bytes) -> None:
    if len(ca_cert_der) > CERTIFICATE_BYTES:
        raise TokenError(
            f"expected a CA certificate of at most {CERTIFICATE_BYTES} bytes, "
            f"found {len(ca_cert_der)}"
        )
    try:
        cert_pem_of(ca_cert_der)
    except IdentityError as error:
        raise TokenError(f"the token's CA certificate is wrong: {error}") from None


def _check_directory_key(directory_key: bytes) -> None:
    try:
        IdentityPublicKey(directory_key)
    except IdentityError as error:
        raise TokenError(f"the token's directory key is wrong: {error}") from None
