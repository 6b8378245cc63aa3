"""Checkpoints: neither edge nor coordinator can rewrite history alone."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secure.privacy.ledger.scenes import (
    COORDINATOR,
    NOW_UNIX_S,
    OWNER,
    STRANGER,
    Book,
    campaign,
    opened,
    reserved,
    started,
)

from offsite.secure.errors import IntegrityError, PeerError, SignatureError
from offsite.secure.privacy.ledger.bodies import LimitSet
from offsite.secure.privacy.ledger.checkpoint import (
    Checkpoint,
    check_receipt,
    countersign,
    open_checkpoint,
    sign_checkpoint,
)
from offsite.secure.privacy.ledger.notes import Note

NOW = int(NOW_UNIX_S)


def receipt(book: Book, known: Checkpoint | None = None, head: Checkpoint | None = None) -> bytes:
    note = sign_checkpoint(head or book.ledger.head(), OWNER)
    proof = book.ledger.growth(known.size) if known else []
    return countersign(note, OWNER.public, known, proof, COORDINATOR, NOW)


def test_a_checkpoint_is_countersigned_and_its_receipt_is_checked() -> None:
    book = campaign()
    data = receipt(book)
    head = book.ledger.head()
    assert open_checkpoint(data, OWNER.public) == head
    assert check_receipt(data, head, COORDINATOR.public) == NOW
    with pytest.raises(SignatureError):
        check_receipt(data, head, STRANGER.public)
    with pytest.raises(SignatureError):
        check_receipt(book.ledger.checkpoint(OWNER), head, COORDINATOR.public)
    with pytest.raises(IntegrityError, match="receipt for the checkpoint"):
        check_receipt(data, book.ledger.head(3), COORDINATOR.public)


def test_a_checkpoint_is_a_plain_text() -> None:
    text = campaign().ledger.head().to_text()
    origin, size, root = text.splitlines()
    assert origin.startswith("offsite/ledger/")
    assert size == "10"
    assert len(root) == 44


@given(st.integers(1, 10), st.integers(1, 10))
@settings(deadline=None)
def test_a_coordinator_countersigns_what_grew(old: int, new: int) -> None:
    book = campaign()
    known, head = book.ledger.head(old), book.ledger.head(new)
    note = sign_checkpoint(head, OWNER)
    part = Book()
    for record in book.records[:new]:
        part.ledger._take(record)
    if new < old:
        with pytest.raises(PeerError, match=f"at least {old} entries, found {new}"):
            countersign(note, OWNER.public, known, [], COORDINATOR, NOW)
    else:
        proof = part.ledger.growth(old)
        countersign(note, OWNER.public, known, proof, COORDINATOR, NOW)


def test_a_coordinator_countersigns_one_history() -> None:
    book, other = campaign(2), campaign(2)
    known = book.ledger.head()
    book.write(LimitSet(5.0, 1e-5))
    other.write(LimitSet(9.0, 1e-5))
    receipt(book, known)
    with pytest.raises(IntegrityError, match="consistency"):
        receipt(other, book.ledger.head())
    other.write(LimitSet(9.0, 1e-5))
    with pytest.raises(IntegrityError, match="consistency"):
        receipt(other, book.ledger.head())
    receipt(other, known)  # what a coordinator that never saw the first history would sign


def test_a_new_ledger_is_not_a_continued_one() -> None:
    fresh = Book()
    fresh.write(dataclasses.replace(opened(), owner="edge-2"))
    fresh.write(LimitSet(8.0, 1e-5))
    with pytest.raises(PeerError, match="a new ledger forgets what was spent"):
        receipt(fresh, started().ledger.head(2))


def test_a_checkpoint_of_another_edge_is_refused() -> None:
    note = sign_checkpoint(campaign().ledger.head(), STRANGER)
    with pytest.raises(SignatureError):
        open_checkpoint(note, OWNER.public)


def test_a_checkpoint_hides_what_stands_in_the_ledger() -> None:
    """Two ledgers that differ only in salts have nothing in common that a coordinator sees."""
    heads = []
    for salt in (b"\x01" * 16, b"\x02" * 16):
        book = Book()
        book.ledger.append(opened(), OWNER, NOW_UNIX_S, salt)
        book.ledger.append(LimitSet(8.0, 1e-5), OWNER, NOW_UNIX_S, salt)
        heads.append(book.ledger.head())
    assert heads[0].root != heads[1].root
    assert heads[0].ledger_id != heads[1].ledger_id
    assert heads[0].size == heads[1].size


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("offsite/ledger/", "offsite/other/"),
        ("\n10\n", "\n010\n"),
        ("\n10\n", "\n-1\n"),
        ("\n10\n", "\n0\n"),
        ("\n10\n", f"\n{2**60}\n"),
        ("\n10\n", "\n10\nextension\n"),
        ("=\n", "=\nextension\n"),
        ("=\n", "=\n\n"),
        ("=\n", "="),
        ("=\n", "\n"),
    ],
)
def test_what_is_no_checkpoint_is_refused(old: str, new: str) -> None:
    text = campaign().ledger.head().to_text()
    assert old in text
    with pytest.raises(IntegrityError, match="checkpoint of a ledger"):
        Checkpoint.from_text(text.replace(old, new))


def test_a_signed_text_that_is_no_checkpoint_is_refused() -> None:
    with pytest.raises(IntegrityError, match="checkpoint of a ledger"):
        open_checkpoint(Note("hello\n").signed_by(OWNER, "hello").to_bytes(), OWNER.public)


def test_reservations_do_not_show_in_what_the_coordinator_gets() -> None:
    book = started()
    book.write(reserved())
    data = receipt(book)
    for secret in (b"c1", b"1/100", reserved().data_set.hex().encode()):
        assert secret not in data
