"""Bytes and who signed them: every manifest, plan, update and directory travels in one.

The signature covers the exact payload bytes behind a pre-authentication encoding with the payload
type, so that a signed plan can never pass for a manifest. Nothing is ever re-serialised to verify
it: protobuf and JSON both have many encodings of one value.

    PAE   = "OFFSITE/1" | u64(len(type)) | type | u64(len(payload)) | payload
    bytes = "OFFSENV1" | u64(len(type)) | type | u64(len(payload)) | payload | key id | signature

with u64 big-endian. The second is for files and blobs; on the wire the four fields travel as
`offsite.v1.SignedEnvelope`. Source: DSSE (secure-systems-lab), with binary lengths.
"""

from dataclasses import dataclass

from offsite.secure import limits
from offsite.secure.errors import IntegrityError, SignatureError
from offsite.secure.identity import (
    FINGERPRINT_BYTES,
    SIGNATURE_BYTES,
    IdentityKey,
    IdentityPublicKey,
)

PAYLOAD_TYPE_CHARS = 128
_DOMAIN = b"OFFSITE/1"
_MAGIC = b"OFFSENV1"
_LENGTH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed payload as it arrived; not trusted before `verify` returned its payload.

    Guarantees: a change of any bit of its bytes is refused by `from_bytes` or by `verify`
    (`test_any_bit_change_in_an_envelope_is_refused`).
    """

    payload_type: str
    payload: bytes
    key_id: bytes
    signature: bytes

    def __repr__(self) -> str:
        return (
            f"Envelope({self.payload_type!r}, {len(self.payload)} bytes, "
            f"key_id={self.key_id.hex()[:16]})"
        )


def sign(payload_type: str, payload: bytes, key: IdentityKey) -> Envelope:
    """Signs `payload` under the media type `payload_type` (printable ASCII, 1 to 128 characters)."""
    _check_type(payload_type)
    signature = key.sign(_pre_authentication(payload_type, payload))
    return Envelope(payload_type, bytes(payload), key.public.fingerprint, signature)


def verify(envelope: Envelope, expected_type: str, public_key: IdentityPublicKey) -> bytes:
    """Returns the payload once its type, its signer and its signature were checked.

    Raises:
        SignatureError: another type, another signer, or a signature that does not verify.

    Guarantees: an envelope of one type is never accepted as another
    (`test_an_envelope_of_another_type_is_refused`).
    """
    # (1) What it claims to be.
    if envelope.payload_type != expected_type:
        raise SignatureError(
            f"expected {expected_type}, found {envelope.payload_type[:PAYLOAD_TYPE_CHARS]!r}: "
            "something else was signed"
        )
    # (2) Who claims to have signed it; an early and clearer answer than (3) gives.
    if envelope.key_id != public_key.fingerprint:
        raise SignatureError(
            f"expected {expected_type} signed by key {public_key.fingerprint.hex()[:16]}, found "
            f"key {envelope.key_id.hex()[:16]}: it comes from someone else, or the key has changed"
        )
    # (3) The signature, over type and exact bytes.
    message = _pre_authentication(envelope.payload_type, envelope.payload)
    public_key.verify(message, envelope.signature)
    return envelope.payload


def to_bytes(envelope: Envelope) -> bytes:
    """The envelope as bytes for a file or a blob."""
    _check_type(envelope.payload_type)
    return b"".join(
        (
            _MAGIC,
            _with_length(envelope.payload_type.encode("ascii")),
            _with_length(envelope.payload),
            envelope.key_id,
            envelope.signature,
        )
    )


def from_bytes(data: bytes, payload_limit: int = limits.MANIFEST_BYTES) -> Envelope:
    """Reads what `to_bytes` wrote; there is exactly one encoding of an envelope.

    Raises:
        IntegrityError: not an envelope, cut, followed by more bytes, or above `payload_limit`.
    """
    if data[: len(_MAGIC)] != _MAGIC:
        raise IntegrityError(
            f"expected a signed envelope that begins with {_MAGIC!r}, found "
            f"{bytes(data[: len(_MAGIC)])!r}: this is another kind of file"
        )
    raw_type, position = _read_field(data, len(_MAGIC), PAYLOAD_TYPE_CHARS, "payload type")
    payload, position = _read_field(data, position, payload_limit, "payload")
    expected_bytes = position + FINGERPRINT_BYTES + SIGNATURE_BYTES
    if len(data) != expected_bytes:
        raise IntegrityError(
            f"expected an envelope of {expected_bytes} bytes, found {len(data)}: it was cut or "
            "something was appended; fetch it again"
        )
    payload_type = raw_type.decode("latin-1")
    _check_type(payload_type)
    key_id = data[position : position + FINGERPRINT_BYTES]
    return Envelope(payload_type, payload, key_id, data[position + FINGERPRINT_BYTES :])


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    # "replace" cannot make two types equal that (1) of `verify` tells apart.
    raw_type = payload_type.encode("ascii", "replace")
    return b"".join((_DOMAIN, _with_length(raw_type), _with_length(payload)))


def _with_length(field: bytes) -> bytes:
    return len(field).to_bytes(_LENGTH_BYTES, "big") + field


def _read_field(data: bytes, position: int, limit: int, name: str) -> tuple[bytes, int]:
    """The length-prefixed field at `position` and where it ends."""
    start = position + _LENGTH_BYTES
    length = int.from_bytes(data[position:start], "big")
    if length > limit:
        raise IntegrityError(f"expected a {name} of at most {limit} bytes, found {length}")
    if len(data) < start + length:
        raise IntegrityError(
            f"expected {length} bytes of {name}, found {max(0, len(data) - start)}: the envelope "
            "was cut; fetch it again"
        )
    return data[start : start + length], start + length


def _check_type(payload_type: str) -> None:
    fits = 0 < len(payload_type) <= PAYLOAD_TYPE_CHARS
    if not (fits and payload_type.isascii() and payload_type.isprintable()):
        raise IntegrityError(
            f"expected a media type of 1 to {PAYLOAD_TYPE_CHARS} printable ASCII characters, "
            f"found {payload_type[:PAYLOAD_TYPE_CHARS]!r}"
        )
