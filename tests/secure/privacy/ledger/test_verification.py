"""Each way to change a ledger is found, and found where it was done."""

import dataclasses
import random

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
    Simple,
    campaign,
    claimed,
    joined,
    opened,
)

from offsite.secure.errors import IntegrityError
from offsite.secure.identity import IdentityKey
from offsite.secure.privacy.ledger.bodies import Body, Charged, Closed, Committed, LimitSet
from offsite.secure.privacy.ledger.chain import Record, Tip, next_record
from offsite.secure.privacy.ledger.checkpoint import countersign
from offsite.secure.privacy.ledger.faults import Fault, FaultKind
from offsite.secure.privacy.ledger.verification import Findings, verify_ledger

K = FaultKind
BOOK = campaign(3)
RECORDS = BOOK.records
SIZE = len(RECORDS)
Where = tuple[FaultKind, int, int]


def verify(data: bytes, checkpoints: list[bytes] | None = None) -> Findings:
    return verify_ledger(data, OWNER.public, checkpoints or [], COORDINATOR.public, Simple())


def found(data: bytes, checkpoints: list[bytes] | None = None) -> list[Where]:
    return [(item.kind, item.first, item.last) for item in verify(data, checkpoints).faults]


def receipt(book: Book, size: int) -> bytes:
    part = Book()
    for record in book.records[:size]:
        part.ledger._take(record)
    note = part.ledger.checkpoint(OWNER)
    return countersign(note, OWNER.public, None, [], COORDINATOR, int(NOW_UNIX_S))


def branch(records: list[Record], *more: Body, key: IdentityKey = OWNER) -> list[Record]:
    """Another history, by the owner's own key."""
    written = list(records)
    for body in more:
        tip = Tip.after(written[-1])
        written.append(next_record(tip, body, key, NOW_UNIX_S + 99, b"\x77" * 16))
    return written


def test_an_honest_ledger_has_no_faults() -> None:
    checkpoints = [receipt(BOOK, size) for size in (1, 4, SIZE)]
    findings = verify(BOOK.data, checkpoints)
    assert findings.faults == ()
    findings.check()
    assert list(findings.records) == RECORDS
    assert [witness.checkpoint.size for witness in findings.witnesses] == [1, 4, SIZE]
    assert findings.countersigned == SIZE
    assert findings.budget.campaigns["c1"].spent == 30


def test_what_only_the_edge_signed_is_no_countersignature() -> None:
    findings = verify(BOOK.data, [BOOK.ledger.checkpoint(OWNER)])
    assert findings.faults == ()
    assert findings.countersigned == 0


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_flipped_bit_is_located(data: st.DataObject) -> None:
    """Any bit of any line: the fault names that entry, or it and the next if they grew together."""
    at = data.draw(st.integers(0, SIZE - 1))
    line = bytearray(RECORDS[at].to_line())
    line[data.draw(st.integers(0, len(line) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = joined(RECORDS[:at]) + bytes(line) + joined(RECORDS[at + 1 :])
    (fault,) = verify(changed).faults
    if at == SIZE - 1 and not line.endswith(b"\n"):
        assert (fault.kind, fault.first) == (K.TORN, at)
    else:
        # Without its line break it grows together with the next, if that is seen to be missing.
        last = at if line.endswith(b"\n") or at == SIZE - 2 else at + 1
        assert (fault.kind, fault.first, fault.last) == (K.CHANGED, at, last)
    with pytest.raises(IntegrityError, match=r"ledger without faults, found 1"):
        verify(changed).check()


@given(st.integers(0, SIZE - 2), st.integers(1, 3))
@settings(deadline=None)
def test_a_removed_entry_is_located(first: int, count: int) -> None:
    last = min(first + count, SIZE - 1) - 1
    assert found(joined(RECORDS[:first] + RECORDS[last + 1 :])) == [(K.REMOVED, first, last)]


@given(st.integers(0, SIZE - 2), st.data())
@settings(deadline=None)
def test_a_swapped_entry_is_located(low: int, data: st.DataObject) -> None:
    high = data.draw(st.integers(low + 1, SIZE - 1))
    records = list(RECORDS)
    records[low], records[high] = records[high], records[low]
    assert found(joined(records)) == [(K.SWAPPED, low, high)]


@given(st.integers(0, SIZE - 1), st.integers(0, SIZE))
@settings(deadline=None)
def test_a_duplicated_entry_is_located(at: int, to: int) -> None:
    records = list(RECORDS)
    records.insert(to, RECORDS[at])
    assert found(joined(records)) == [(K.DUPLICATED, at, at)]


@given(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1))
@settings(deadline=None)
def test_a_moved_entry_is_located(at: int, to: int) -> None:
    records = list(RECORDS)
    records.insert(to, records.pop(at))
    expected: list[Where] = [] if at == to else [(K.SWAPPED, at, at)]
    if abs(at - to) == 1:  # two neighbours: which of them moved cannot be told
        expected = [(K.SWAPPED, min(at, to), max(at, to))]
    assert found(joined(records)) == expected


@given(st.integers(1, SIZE - 2))
@settings(deadline=None)
def test_a_fork_is_located(at: int) -> None:
    """A second history from entry `at` on, in the same file."""
    other = branch(RECORDS[:at], LimitSet(9.0, 1e-5))
    assert found(joined([*RECORDS, other[-1]])) == [(K.FORKED, at, at)]
    assert found(joined([*other, *RECORDS[at:]])) == [(K.FORKED, at, at)]
    spliced = [*other, *RECORDS[at + 1 :]]
    assert found(joined(spliced)) == [(K.FORKED, at + 1, at + 1)]


@given(st.integers(1, SIZE - 1), st.integers(1, SIZE))
@settings(deadline=None)
def test_a_rewritten_history_is_located_by_a_checkpoint(at: int, size: int) -> None:
    """The owner signs all of it anew from entry `at` on; only a checkpoint can know."""
    other = branch(RECORDS[:at], *[record.entry.body for record in RECORDS[at:]])
    assert found(joined(other)) == []
    good = [receipt(BOOK, earlier) for earlier in range(1, at + 1)]
    expected = [(K.REWRITTEN, min(at, size - 1), size - 1)] if size > at else []
    assert found(joined(other), [*good, receipt(BOOK, size)]) == expected


@given(st.integers(1, SIZE - 1))
@settings(deadline=None)
def test_a_ledger_cut_at_its_end_is_located_by_a_checkpoint(size: int) -> None:
    assert found(joined(RECORDS[:size])) == []
    assert found(joined(RECORDS[:size]), [receipt(BOOK, SIZE)]) == [(K.TRUNCATED, size, SIZE - 1)]


def test_two_checkpoints_of_one_size_are_a_fork() -> None:
    other = Book()
    for record in branch(RECORDS[:6], LimitSet(9.0, 1e-5)):
        other.ledger._take(record)
        other.records.append(record)
    assert found(BOOK.data, [receipt(BOOK, 7), receipt(other, 7)]) == [
        (K.FORKED, 0, 6),
        (K.REWRITTEN, 6, 6),
    ]


def test_another_ledger_is_named_by_a_checkpoint_of_this_one() -> None:
    fresh = Book()
    fresh.write(dataclasses.replace(opened(), software="offsite 0.2.0"))
    assert found(fresh.data, [receipt(BOOK, 1)]) == [(K.REWRITTEN, 0, 0)]


def test_checkpoints_that_their_signers_did_not_sign_are_named() -> None:
    note = receipt(BOOK, 4)
    by_another = BOOK.ledger.checkpoint(STRANGER)
    for bad in (b"", b"text", note[:-1], note.replace(b"\n4\n", b"\n5\n"), by_another):
        assert found(BOOK.data, [bad]) == [(K.UNATTESTED, 0, SIZE - 1)]
    forged = countersign(
        BOOK.ledger.checkpoint(OWNER), OWNER.public, None, [], STRANGER, int(NOW_UNIX_S)
    )
    # A stranger's cosignature under the coordinator's name has another key id.
    assert found(BOOK.data, [forged]) == [(K.UNATTESTED, 0, SIZE - 1)]


def test_a_ledger_of_another_key_is_all_changed() -> None:
    findings = verify_ledger(BOOK.data, STRANGER.public)
    assert [(item.kind, item.first, item.last) for item in findings.faults] == [
        (K.CHANGED, 0, SIZE - 1)
    ]
    assert findings.budget.size == 0


def test_a_key_that_is_not_the_one_it_was_opened_with_is_named() -> None:
    body = dataclasses.replace(opened(), signer_key=STRANGER.public.raw)
    record = next_record(Tip(), body, OWNER, NOW_UNIX_S, bytes(16))
    assert found(record.to_line()) == [(K.INCONSISTENT, 0, 0)]


# Lies in the owner's own hand: what they are called and that they are found at their entry.
LIES: list[tuple[tuple[Body, ...], FaultKind]] = [
    ((claimed(30, 10), Charged(10, 9, "crash")), K.REFUND),
    ((claimed(30, 10), Committed(10, 2, DIGEST), claimed(32, 5)), K.REFUND),
    ((Closed("c1", 71),), K.REFUND),
    ((claimed(20, 10),), K.DOUBLE_SPENDING),
    ((Committed(8, 10, DIGEST),), K.DOUBLE_SPENDING),
    ((Closed("c1", 70), claimed(30, 1)), K.DOUBLE_SPENDING),
    ((claimed(31, 10),), K.GAP),
    ((claimed(30, 71),), K.OVERDRAWN),
]


@pytest.mark.parametrize(("more", "kind"), LIES)
def test_each_lie_is_located(more: tuple[Body, ...], kind: FaultKind) -> None:
    records = branch(RECORDS, *more)
    assert found(joined(records)) == [(kind, len(records) - 1, len(records) - 1)]


def test_each_fault_is_located() -> None:
    """Several at once, each named once: 2 flipped, 5 and 6 swapped, 8 twice."""
    lines = [record.to_line() for record in RECORDS]
    lines[2] = lines[2].replace(b"record", b"person")
    lines[5], lines[6] = lines[6], lines[5]
    lines.insert(9, lines[8])
    assert found(b"".join(lines)) == [
        (K.CHANGED, 2, 2),
        (K.DUPLICATED, 8, 8),
        (K.SWAPPED, 5, 6),
    ]


@given(st.integers(0, 2**32), st.integers(1, 5))
@settings(max_examples=200, deadline=None)
def test_no_other_file_passes(seed: int, times: int) -> None:
    """Lines and bytes changed at random: whatever is not the file itself has a fault."""
    draw = random.Random(seed)
    data = bytearray(BOOK.data)
    for _ in range(times):
        kind, at = draw.randrange(4), draw.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[at : at + draw.randrange(1, 900)]
        elif kind == 2:
            data[at:at] = data[at : at + draw.randrange(1, 900)]
        else:
            lines = bytes(data).splitlines(keepends=True)
            draw.shuffle(lines)
            data = bytearray(b"".join(lines))
        if not data:
            return
    whole = receipt(BOOK, SIZE)
    assert (found(bytes(data), [whole]) == []) == (bytes(data) == BOOK.data)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_are_read_without_a_crash(data: bytes) -> None:
    findings = verify(data)
    assert (findings.faults == ()) == (data == b"")


def test_a_fault_reads_like_a_sentence() -> None:
    assert str(Fault(K.REMOVED, 3, 3, "nothing stands there")) == (
        "removed: entry 3: nothing stands there"
    )
    assert str(Fault(K.REMOVED, 3, 5, "x")).startswith("removed: entries 3 to 5: ")
