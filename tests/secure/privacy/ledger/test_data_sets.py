"""Record digests: the same rows are recognised under any name, and nobody else can test for one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.data_sets import RecordDigests, overlaps, salt_commitment

SALT, OTHER = b"\x01" * 32, b"\x02" * 32
ROWS = st.lists(st.binary(max_size=8), max_size=12)


def of(rows: list[bytes], persons: list[bytes] | None = None) -> RecordDigests:
    return RecordDigests.of(SALT, rows, persons or [])


@given(ROWS, ROWS)
@settings(deadline=None)
def test_sets_overlap_if_they_share_a_row(one: list[bytes], other: list[bytes]) -> None:
    assert of(one).shares_any(of(other)) == bool(set(one) & set(other))


@given(ROWS, ROWS, ROWS)
@settings(deadline=None)
def test_a_set_is_named_by_its_content(
    rows: list[bytes], more: list[bytes], people: list[bytes]
) -> None:
    assert of(rows).data_set == of(rows[::-1]).data_set
    assert (of(rows).data_set == of(more).data_set) == (sorted(rows) == sorted(more))
    assert (of(rows, people).data_set == of(rows).data_set) == (people == [])


def test_a_person_in_other_rows_is_recognised() -> None:
    one, other = of([b"a"], [b"ann", b"bob"]), of([b"b"], [b"bob"])
    assert one.shares_any(other)
    assert not one.shares_any(of([b"b"], [b"eve"]))
    assert not of([b"ann"]).shares_any(of([], [b"ann"]))  # a row is no person


def test_overlapping_sets_are_found_among_those_known() -> None:
    known = {digests.data_set: digests for digests in (of([b"a", b"b"]), of([b"c"]), of([b"d"]))}
    found = overlaps(of([b"b", b"d", b"e"]), known)
    assert set(found) == {of([b"a", b"b"]).data_set, of([b"d"]).data_set}
    assert list(found) == sorted(found)


@given(ROWS, ROWS)
@settings(deadline=None)
def test_digests_are_kept_beside_the_ledger(rows: list[bytes], people: list[bytes]) -> None:
    digests = of(rows, people)
    assert RecordDigests.from_bytes(digests.to_bytes(), digests.data_set) == digests


def test_digests_of_another_set_are_refused() -> None:
    digests = of([b"a", b"b"])
    data = digests.to_bytes()
    for changed in (data[:-32], data + bytes(32), data[:-1] + bytes([data[-1] ^ 1]), b""):
        with pytest.raises(IntegrityError, match="record digests"):
            RecordDigests.from_bytes(changed, digests.data_set)


def test_without_the_salt_nobody_can_test_for_a_row() -> None:
    one, other = RecordDigests.of(SALT, [b"a"]), RecordDigests.of(OTHER, [b"a"])
    assert one.data_set != other.data_set
    assert not one.shares_any(other)
    assert salt_commitment(SALT) != salt_commitment(OTHER)
    with pytest.raises(IntegrityError, match="salt: expected 32 bytes"):
        RecordDigests.of(b"short", [b"a"])
