"""Envelopes: one encoding, one type, one signer, every bit covered."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure import envelope as envelopes
from offsite.secure.envelope import Envelope, from_bytes, sign, to_bytes, verify
from offsite.secure.errors import IntegrityError, SignatureError
from offsite.secure.identity import IdentityKey

TYPE = "application/vnd.offsite.test+json"


@given(payload=st.binary(max_size=300))
def test_round_trip(payload: bytes) -> None:
    key = IdentityKey.from_seed(b"\x07" * 32)
    read = from_bytes(to_bytes(sign(TYPE, payload, key)))
    assert verify(read, TYPE, key.public) == payload


def test_the_signature_covers_the_documented_encoding(signer: IdentityKey) -> None:
    envelope = sign("t", b"pay", signer)
    message = b"OFFSITE/1" + bytes(7) + b"\x01t" + bytes(7) + b"\x03pay"
    signer.public.verify(message, envelope.signature)
    assert to_bytes(envelope) == (
        b"OFFSENV1" + message[9:] + signer.public.fingerprint + envelope.signature
    )


def refuse(data: bytes, key: IdentityKey) -> type[Exception]:
    with pytest.raises((IntegrityError, SignatureError)) as caught:
        verify(from_bytes(data), TYPE, key.public)
    return type(caught.value)


def test_any_bit_change_in_an_envelope_is_refused(signer: IdentityKey) -> None:
    good = to_bytes(sign(TYPE, b'{"answer":42}', signer))
    lengths_and_magic = {*range(16), *range(16 + len(TYPE), 24 + len(TYPE))}
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        leaf = refuse(bytes(changed), signer)
        if bit // 8 in lengths_and_magic:
            assert leaf is IntegrityError
        elif bit // 8 >= 24 + len(TYPE):  # payload, key id, signature
            assert leaf is SignatureError


@given(payload=st.binary(min_size=1, max_size=200), data=st.data())
@settings(max_examples=200)
def test_any_bit_change_at_any_payload_is_refused(payload: bytes, data: st.DataObject) -> None:
    key = IdentityKey.from_seed(b"\x07" * 32)
    changed = bytearray(to_bytes(sign(TYPE, payload, key)))
    bit = data.draw(st.integers(0, 8 * len(changed) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    refuse(bytes(changed), key)


def test_a_cut_or_longer_envelope_is_refused(signer: IdentityKey) -> None:
    good = to_bytes(sign(TYPE, b"payload", signer))
    for length in range(len(good)):
        assert refuse(good[:length], signer) is IntegrityError
    assert refuse(good + b"\x00", signer) is IntegrityError


@given(data=st.binary(max_size=400))
@settings(max_examples=300)
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    for junk in (data, b"OFFSENV1" + data):
        with pytest.raises(IntegrityError):
            from_bytes(junk)


def test_an_envelope_of_another_type_is_refused(signer: IdentityKey) -> None:
    envelope = sign("application/vnd.offsite.manifest+json", b"{}", signer)
    with pytest.raises(SignatureError, match="something else was signed"):
        verify(envelope, TYPE, signer.public)
    renamed = dataclasses.replace(envelope, payload_type=TYPE)
    with pytest.raises(SignatureError, match="does not verify"):
        verify(renamed, TYPE, signer.public)


def test_bytes_cannot_move_between_type_and_payload(signer: IdentityKey) -> None:
    envelope = sign("ab", b"cd", signer)
    moved = Envelope("abc", b"d", envelope.key_id, envelope.signature)
    with pytest.raises(SignatureError):
        verify(moved, "abc", signer.public)


def test_another_signer_is_refused(signer: IdentityKey, stranger: IdentityKey) -> None:
    envelope = sign(TYPE, b"{}", stranger)
    with pytest.raises(SignatureError, match=stranger.public.fingerprint.hex()[:16]):
        verify(envelope, TYPE, signer.public)
    claimed = dataclasses.replace(envelope, key_id=signer.public.fingerprint)
    with pytest.raises(SignatureError, match="does not verify"):
        verify(claimed, TYPE, signer.public)


def test_the_payload_limit_is_checked_before_the_payload(signer: IdentityKey) -> None:
    data = to_bytes(sign(TYPE, bytes(100), signer))
    assert len(from_bytes(data, payload_limit=100).payload) == 100
    with pytest.raises(IntegrityError, match="at most 99"):
        from_bytes(data, payload_limit=99)


@pytest.mark.parametrize("payload_type", ["", "x" * 129, "a\nb", "ä", "a\x7f"])
def test_odd_types_are_refused(payload_type: str, signer: IdentityKey) -> None:
    with pytest.raises(IntegrityError):
        sign(payload_type, b"", signer)
    odd = Envelope(payload_type, b"", bytes(32), bytes(64))
    with pytest.raises(IntegrityError):
        to_bytes(odd)
    raw = payload_type.encode("latin-1")
    data = b"OFFSENV1" + len(raw).to_bytes(8, "big") + raw + bytes(8) + bytes(96)
    with pytest.raises(IntegrityError):
        from_bytes(data)


def test_repr_is_short(signer: IdentityKey) -> None:
    assert len(repr(sign(TYPE, bytes(10_000), signer))) < 120
    assert envelopes.PAYLOAD_TYPE_CHARS == 128
