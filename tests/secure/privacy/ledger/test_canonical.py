"""One encoding for one value: the examples of RFC 8785, and whatever else JSON can hold."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.canonical import Json, canonical, parsed

# RFC 8785, appendix B: bits of a double, and how it is written.
NUMBERS = [
    ("0000000000000000", b"0"),
    ("8000000000000000", b"0"),
    ("0000000000000001", b"5e-324"),
    ("7fefffffffffffff", b"1.7976931348623157e+308"),
    ("4340000000000000", b"9007199254740992"),
    ("44b52d02c7e14af5", b"9.999999999999997e+22"),
    ("44b52d02c7e14af6", b"1e+23"),
    ("444b1ae4d6e2ef4e", b"999999999999999700000"),
    ("444b1ae4d6e2ef50", b"1e+21"),
    ("3eb0c6f7a0b5ed8c", b"9.999999999999997e-7"),
    ("3eb0c6f7a0b5ed8d", b"0.000001"),
    ("41b3de4355555553", b"333333333.3333332"),
    ("becbf647612f3696", b"-0.0000033333333333333333"),
    ("43143ff3c1cb0959", b"1424953923781206.2"),
]

VALUES: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: abs(x) < 2**53)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), inner)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(("bits", "written"), NUMBERS)
def test_numbers_are_those_of_the_rfc(bits: str, written: bytes) -> None:
    import struct

    assert canonical(struct.unpack(">d", bytes.fromhex(bits))[0]) == written


def test_names_are_sorted_by_utf_16_as_in_the_rfc() -> None:
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    written = json.loads(canonical(dict.fromkeys(names, 0)))
    assert list(written) == ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]


@given(VALUES)
@settings(deadline=None)
def test_what_is_written_is_read(value: Json) -> None:
    data = canonical(value)
    assert parsed(data, "a value") == value
    assert b"\n" not in data


@given(VALUES, st.data())
@settings(deadline=None)
def test_any_other_form_is_refused(value: Json, data: st.DataObject) -> None:
    written = canonical(value)
    loose = json.dumps(value, indent=data.draw(st.sampled_from([None, 1]))).encode()
    if loose != written:
        with pytest.raises(IntegrityError):
            parsed(loose, "a value")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1,"a":1}',
        b"1.0",
        b"01",
        b"1e0",
        b"NaN",
        b"Infinity",
        b"9007199254740993",
        b"9007199254740992",
        b'"\\u0041"',
        b'"\\ud800"',
        b'"\xff"',
        b" 1",
        b"1\n",
        b"[" * 100_000,
    ],
)
def test_no_second_form_is_read(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="expected a value as canonical JSON"):
        parsed(data, "a value")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53, "\ud800"])
def test_what_json_cannot_hold_exactly_is_not_written(value: Json) -> None:
    with pytest.raises(IntegrityError, match="hold exactly"):
        canonical(value)
