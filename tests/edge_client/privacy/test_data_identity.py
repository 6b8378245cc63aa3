"""Which data it is: rows count and not their order or file; shared records and persons are found."""

import random

import pytest

from offsite.edge_client.data import Data, DataReport, Layout, PairRow, TextRow
from offsite.edge_client.data_formats import Format
from offsite.edge_client.privacy.data_identity import DataIdentity
from offsite.secure.errors import IntegrityError

SALT = bytes(range(32))


def data_of(*texts: str, persons: tuple[str, ...] | None = None) -> Data:
    rows = tuple(TextRow(line, text) for line, text in enumerate(texts, start=1))
    report = DataReport("a", Format.JSONL, Layout.TEXT, len(rows), len(rows), 0, ())
    return Data(rows, report, persons)


def identity(*texts: str, persons: tuple[str, ...] | None = None) -> DataIdentity:
    return DataIdentity.of(data_of(*texts, persons=persons), SALT)


def test_the_same_rows_in_another_order_are_the_same_data() -> None:
    texts = [f"row {number}" for number in range(50)]
    mixed = random.Random(0).sample(texts, len(texts))
    assert identity(*texts) == identity(*mixed)
    assert identity(*texts).fingerprint != identity(*texts[1:]).fingerprint


def test_one_shared_record_is_an_overlap_and_none_is_not() -> None:
    first = identity(*(f"a {number}" for number in range(1000)))
    assert first.overlaps(identity("a 999", "b"))
    assert not first.overlaps(identity("b", "c", "a 1000"))


def test_a_shared_person_is_an_overlap_whatever_the_records_say() -> None:
    first = identity("a", "b", persons=("ann", "bob"))
    assert first.overlaps(identity("c", persons=("bob",)))
    assert not first.overlaps(identity("c", persons=("eve",)))
    assert not first.overlaps(identity("ann"))  # a record is not a person


def test_layouts_do_not_meet_by_accident() -> None:
    report = DataReport("a", Format.JSONL, Layout.PAIR, 1, 1, 0, ())
    pair = DataIdentity.of(Data((PairRow(1, "a", "b"),), report), SALT)
    assert not pair.overlaps(identity("ab")) and not pair.overlaps(identity("a", "b"))


def test_nothing_is_recognised_without_the_salt() -> None:
    assert not identity("a").overlaps(DataIdentity.of(data_of("a"), bytes(32)))


def test_an_identity_survives_its_file_and_nothing_else_is_one() -> None:
    found = identity("a", "b", persons=("p", "q"))
    stored = found.to_bytes()
    assert DataIdentity.from_bytes(stored) == found
    for wrong in (b"", stored[:-1], b"x" + stored, stored[:20]):
        with pytest.raises(IntegrityError, match="record digests"):
            DataIdentity.from_bytes(wrong)
