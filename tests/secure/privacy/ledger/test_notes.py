"""Signed notes: the published note of `golang.org/x/mod/sumdb/note`, and every changed bit."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secure.privacy.ledger.scenes import COORDINATOR, NOW_UNIX_S, OWNER, STRANGER

from offsite.secure.errors import IntegrityError, PeerError, SignatureError
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.ledger.notes import Note, NoteKey, SignatureType

# note_test.go of golang.org/x/mod/sumdb/note: key, secret key, text and signature.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETER_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
PETER_TEXT = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
)
PETER_NOTE = (
    f"{PETER_TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFY"
    "C2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
).encode()

NAME = "offsite/coordinator"
TIME = int(NOW_UNIX_S)
COSIGNER = NoteKey(NAME, SignatureType.COSIGNATURE, COORDINATOR.public)
SIGNER = NoteKey("owner", SignatureType.TEXT, OWNER.public)
NOTE = Note("one\ntwo\n").signed_by(OWNER, "owner").cosigned_by(COORDINATOR, NAME, TIME)


def test_the_published_note_verifies() -> None:
    note = Note.from_bytes(PETER_NOTE)
    assert note.text == PETER_TEXT
    assert note.verify(NoteKey.from_text(PETER)) is None


def test_the_published_note_is_made_again_byte_for_byte() -> None:
    key = IdentityKey.from_seed(PETER_SEED)
    assert NoteKey("PeterNeumann", SignatureType.TEXT, key.public).to_text() == PETER
    assert Note(PETER_TEXT).signed_by(key, "PeterNeumann").to_bytes() == PETER_NOTE


def test_both_signatures_verify_each_under_its_own_key() -> None:
    note = Note.from_bytes(NOTE.to_bytes())
    assert note == NOTE
    assert note.verify(SIGNER) is None
    assert note.verify(COSIGNER) == TIME
    assert NoteKey.from_text(COSIGNER.to_text()) == COSIGNER


def test_a_cosignature_signs_its_time_and_the_text() -> None:
    """The message of tlog-cosignature, written out here."""
    signature = NOTE.signatures[1].signature
    assert signature[:8] == TIME.to_bytes(8, "big")
    message = f"cosignature/v1\ntime {TIME}\none\ntwo\n".encode()
    COORDINATOR.public.verify(message, signature[8:])


def test_signatures_of_others_are_passed_over_and_do_not_count() -> None:
    stranger = NoteKey("owner", SignatureType.TEXT, STRANGER.public)
    note = Note("one\n").signed_by(STRANGER, "owner").signed_by(OWNER, "owner")
    assert note.verify(SIGNER) is None
    with pytest.raises(SignatureError, match="expected a note signed by owner"):
        Note("one\n").signed_by(OWNER, "owner").verify(stranger)


def test_a_signature_of_one_type_is_none_of_the_other() -> None:
    as_text = NoteKey(NAME, SignatureType.TEXT, COORDINATOR.public)
    assert as_text.key_id != COSIGNER.key_id
    with pytest.raises(SignatureError):
        NOTE.verify(as_text)


@given(st.data())
@settings(deadline=None)
def test_any_bit_change_in_a_note_is_refused(data: st.DataObject) -> None:
    """Refused as a note, or by at least one of its two signatures; never read as another text."""
    changed = bytearray(NOTE.to_bytes())
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PeerError):
        note = Note.from_bytes(bytes(changed))
        note.verify(SIGNER)
        note.verify(COSIGNER)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"\n\n\xe2\x80\x94 a AAAAAAAA\n",
        b"text\xff\n\n\xe2\x80\x94 a AAAAAAAA\n",
        b"te\txt\n\n\xe2\x80\x94 a AAAAAAAA\n",
        b"text\n\n- a AAAAAAAA\n",
        b"text\n\n\xe2\x80\x94 a\n",
        b"text\n\n\xe2\x80\x94 a AAAAAA==\n",
        b"text\n\n\xe2\x80\x94 a AAAAAAB=\n",
        b"text\n\n\xe2\x80\x94 a+b AAAAAAAA\n",
        b"text\n\n\xe2\x80\x94 a AAAAAAAA",
        b"text\n\n" + 17 * b"\xe2\x80\x94 a AAAAAAAA\n",
        b"x" * 20_000,
    ],
)
def test_what_is_no_note_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Note.from_bytes(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "PeterNeumann",
        PETER.replace("c74f20a3", "c74f20a4"),
        PETER.replace("c74f20a3", "C74F20A3"),
        PETER.replace("PeterNeumann", "Peter Neumann"),
        PETER.replace("+AR", "+ZR"),
        PETER[:-4],
        PETER + "\n",
    ],
)
def test_what_is_no_verifier_key_is_refused(text: str) -> None:
    with pytest.raises(PeerError):
        NoteKey.from_text(text)
