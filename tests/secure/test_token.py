"""Join tokens: one text per token, every bit covered, proofs bound to their transcript."""

import base64
import dataclasses
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure.certificates import create_authority
from offsite.secure.errors import TokenError
from offsite.secure.identity import IdentityKey
from offsite.secure.token import JoinToken, check_token_proof, proof_key, token_proof, transcript

CA_DER = create_authority(b"\x01" * 32, b"\x11" * 16, 1_780_000_000.0).cert_der
DIRECTORY_KEY = IdentityKey.from_seed(b"\x02" * 32).public.raw
bytes_of = st.binary


@given(
    token_id=bytes_of(min_size=16, max_size=16),
    secret=bytes_of(min_size=32, max_size=32),
    seed=bytes_of(min_size=32, max_size=32),
    port=st.integers(1, 65535),
)
@settings(max_examples=50)
def test_round_trip(token_id: bytes, secret: bytes, seed: bytes, port: int) -> None:
    token = JoinToken(token_id, secret, seed, CA_DER, DIRECTORY_KEY, f"localhost:{port}")
    text = token.to_text()
    assert JoinToken.parse(text) == token
    assert JoinToken.parse(f" \n{text}\r\n") == token
    assert text.removeprefix("offsite1.").replace("-", "").replace("_", "").isalnum()


def test_any_bit_change_in_a_token_is_refused(token: JoinToken) -> None:
    good = token.to_text().encode("ascii")
    for bit in range(8 * len(good)):
        changed = bytearray(good)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(TokenError):
            JoinToken.parse(changed.decode("latin-1"))


def test_a_cut_token_is_refused(token: JoinToken) -> None:
    text = token.to_text()
    for length in range(len(text)):
        with pytest.raises(TokenError):
            JoinToken.parse(text[:length])
    with pytest.raises(TokenError, match="cut or mistyped"):
        JoinToken.parse(text[:-1])
    with pytest.raises(TokenError):
        JoinToken.parse(text + text)


def test_a_token_has_one_text(token: JoinToken) -> None:
    """Bits that base64 ignores, its other alphabet, and bytes after the end are refused."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    texts = [
        dataclasses.replace(token, address="h" * length + ":1").to_text() for length in (1, 2, 3)
    ]
    loose = [text for text in texts if (len(text) - len("offsite1.")) % 4]
    assert len(loose) == 2
    for text in loose:
        other = text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]
        padded = text + "=" * (-(len(text) - len("offsite1.")) % 4)
        for wrong in (other, padded):
            with pytest.raises(TokenError):
                JoinToken.parse(wrong)
    standard = token.to_text().replace("-", "+").replace("_", "/")
    assert standard != token.to_text()
    body = token._body() + b"\x00"
    checksum = hashlib.sha256(b"offsite1." + body).digest()[:8]
    longer = "offsite1." + base64.urlsafe_b64encode(body + checksum).rstrip(b"=").decode()
    for wrong in (standard, longer):
        with pytest.raises(TokenError):
            JoinToken.parse(wrong)


@given(text=st.text(max_size=300))
@settings(max_examples=300)
def test_arbitrary_text_is_refused(text: str) -> None:
    for junk in (text, "offsite1." + text):
        with pytest.raises(TokenError):
            JoinToken.parse(junk)


@given(body=st.binary(max_size=400))
@settings(max_examples=300)
def test_a_body_that_is_no_token_is_refused_behind_a_right_checksum(body: bytes) -> None:
    checksum = hashlib.sha256(b"offsite1." + body).digest()[:8]
    text = base64.urlsafe_b64encode(body + checksum).rstrip(b"=").decode()
    with pytest.raises(TokenError):
        JoinToken.parse("offsite1." + text)


@pytest.mark.parametrize(
    "change",
    [
        {"token_id": bytes(15)},
        {"secret": bytes(33)},
        {"bootstrap_seed": b""},
        {"ca_cert_der": b"no certificate"},
        {"ca_cert_der": CA_DER + bytes(1)},
        {"ca_cert_der": bytes(5000)},
        {"directory_key": (1).to_bytes(32, "little")},
        {"directory_key": bytes(31)},
        {"address": "no-port"},
        {"address": "host:0"},
        {"address": "host:65536"},
        {"address": ":1"},
        {"address": "ho st:1"},
        {"address": "host:1\n"},
        {"address": "user@host:1"},
        {"address": "host:1/path"},
        {"address": "-host:1"},
        {"address": "h" * 300 + ":1"},
    ],
    ids=str,
)
def test_fields_of_another_shape_are_refused(token: JoinToken, change: dict[str, bytes]) -> None:
    with pytest.raises(TokenError):
        dataclasses.replace(token, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["a:1", "10.0.0.7:8443", "[::1]:8443", "x.example.:65535"])
def test_addresses(token: JoinToken, address: str) -> None:
    if address.startswith("x"):
        with pytest.raises(TokenError):
            dataclasses.replace(token, address=address)
    else:
        changed = dataclasses.replace(token, address=address)
        assert JoinToken.parse(changed.to_text()).address == address


def test_a_proof_holds_for_one_transcript_and_one_secret(token: JoinToken) -> None:
    fields = {
        "token_id": token.token_id,
        "nonce": b"\x31" * 32,
        "csr_der": b"csr",
        "identity_key": b"\x32" * 32,
        "ca_cert_der": CA_DER,
    }
    key = proof_key(token.secret)
    assert len(key) == 32 and key != token.secret
    proof = token_proof(key, transcript(**fields))
    check_token_proof(key, transcript(**fields), proof)
    for name, value in fields.items():
        other = transcript(**{**fields, name: value[:-1] + bytes([value[-1] ^ 1])})
        with pytest.raises(TokenError):
            check_token_proof(key, other, proof)
    other_key = proof_key(bytes(32))
    for used, wrong in ((other_key, proof), (token.secret, proof), (key, proof[:-1]), (key, b"")):
        with pytest.raises(TokenError):
            check_token_proof(used, transcript(**fields), wrong)


@given(data=st.data(), parts=st.lists(st.binary(max_size=8), min_size=5, max_size=5))
def test_transcripts_are_injective(data: st.DataObject, parts: list[bytes]) -> None:
    """Bytes that move from one field to the next give another transcript."""
    names = ("token_id", "nonce", "csr_der", "identity_key", "ca_cert_der")
    joined = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(joined)), min_size=4, max_size=4)))
    bounds = [0, *cuts, len(joined)]
    others = [joined[bounds[i] : bounds[i + 1]] for i in range(5)]
    same = transcript(**dict(zip(names, parts, strict=True))) == transcript(
        **dict(zip(names, others, strict=True))
    )
    assert same == (parts == others)


def test_a_transcript_is_no_envelope(token: JoinToken) -> None:
    made = transcript(token_id=b"", nonce=b"", csr_der=b"", identity_key=b"", ca_cert_der=b"")
    # An envelope's signed bytes go on with eight bytes of length, whose first is always zero.
    assert made.startswith(b"OFFSITE/1") and made[9] != 0


def test_repr_shows_no_secret(token: JoinToken) -> None:
    secret = dataclasses.replace(token, secret=b"S" * 32, bootstrap_seed=b"B" * 32)
    assert "SSSS" not in repr(secret) and "BBBB" not in repr(secret)
    with pytest.raises(TokenError) as caught:
        JoinToken.parse(secret.to_text()[:-3])
    assert secret.to_text()[20:40] not in str(caught.value)
