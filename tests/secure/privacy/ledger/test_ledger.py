"""The owner's ledger over its file: a cut append, a lost end, a restart."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.secure.privacy.ledger.scenes import (
    COORDINATOR,
    DIGEST,
    NOW_UNIX_S,
    OWNER,
    STRANGER,
    Book,
    campaign,
    claimed,
    joined,
)

from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.bodies import Committed
from offsite.secure.privacy.ledger.checkpoint import countersign
from offsite.secure.privacy.ledger.ledger import Ledger

BOOK = campaign(2)
LINE = BOOK.records[-1].to_line()


def test_a_ledger_is_read_and_goes_on() -> None:
    ledger, file = Ledger.read(BOOK.data, OWNER.public)
    assert file == BOOK.data
    assert ledger.head() == BOOK.ledger.head()
    again = Book(ledger, list(BOOK.records))
    again.run(20, 10)
    other = campaign(3)
    assert again.data == other.data


@given(st.integers(0, len(LINE)))
@settings(deadline=None)
def test_an_append_that_was_cut_is_as_if_it_never_was(size: int) -> None:
    """Unless all of it is there but its line break: then it may have been acted upon."""
    before = joined(BOOK.records[:-1])
    ledger, file = Ledger.read(before + LINE[:size], OWNER.public)
    is_whole = size >= len(LINE) - 1
    assert file == (before + LINE if is_whole else before)
    assert ledger.size == len(BOOK.records) - (0 if is_whole else 1)


def test_a_claim_without_an_end_is_charged_after_a_restart() -> None:
    book = campaign(2)
    book.write(claimed(20, 7))
    book.write(Committed(8, 7, DIGEST))
    cut = joined(book.records[:-1]) + book.records[-1].to_line()[:50]
    ledger, _ = Ledger.read(cut, OWNER.public)
    (charge,) = ledger.charges
    assert (charge.claim, charge.steps) == (8, 7)
    ledger.append(charge, OWNER, NOW_UNIX_S, bytes(16))
    assert ledger.charges == ()
    assert ledger.budget.campaigns["c1"].spent == 27


def test_another_byte_in_place_of_the_line_break_is_no_cut_append() -> None:
    with pytest.raises(IntegrityError, match="restore it"):
        Ledger.read(BOOK.data[:-1] + b"\x0b", OWNER.public)


@pytest.mark.parametrize("data", [b"", b"\n", b"{", BOOK.data[:50], BOOK.data[2:]])
def test_what_is_no_ledger_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Ledger.read(data, OWNER.public)


def test_a_ledger_of_another_owner_is_refused() -> None:
    with pytest.raises(IntegrityError):
        Ledger.read(BOOK.data, STRANGER.public)


def test_a_file_that_lost_synced_entries_contradicts_a_receipt() -> None:
    note = BOOK.ledger.checkpoint(OWNER)
    receipt = countersign(note, OWNER.public, None, [], COORDINATOR, int(NOW_UNIX_S))
    Ledger.read(BOOK.data, OWNER.public, [receipt])
    with pytest.raises(IntegrityError, match="truncated: entry 7"):
        Ledger.read(joined(BOOK.records[:-1]), OWNER.public, [receipt])


def test_an_empty_ledger_has_no_name() -> None:
    with pytest.raises(IntegrityError, match="opened ledger"):
        Ledger().head()
