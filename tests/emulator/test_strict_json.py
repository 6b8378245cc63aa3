"""JSON from a peer is read strictly."""

import pytest

from offsite.emulator.strict_json import Fields, canonical_json, check_plain, parse_json
from offsite.secure.errors import PeerError


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":1e999}',
        b'{"a":-1e999}',
        b"NaN",
        b"-Infinity",
        b'{"a":1,"a":2}',
        b"\xff",
        b"[" * 100_000,
        b"9" * 5_000,
        b"{} {}",
        b"",
    ],
)
def test_what_is_not_strict_json_is_refused(data: bytes) -> None:
    with pytest.raises(PeerError, match="test: expected strict JSON"):
        parse_json(data, "test", 1 << 20)


def test_length_nesting_and_unprintable_text_are_bounded() -> None:
    with pytest.raises(PeerError, match="at most 3 bytes, found 4"):
        parse_json(b"1234", "test", 3)
    with pytest.raises(PeerError, match="levels"):
        check_plain([[[]]], "test", 8, depth=2)
    for text in ("x" * 9, "\x1b", "\n", "\ud800"):
        with pytest.raises(PeerError, match="printable"):
            check_plain({"key": [text]}, "test", 8)
        with pytest.raises(PeerError, match="printable"):
            check_plain({text: 1}, "test", 8)


@pytest.mark.parametrize("number", [2**53, -(2**53), 10**400])
def test_integers_that_a_reader_could_not_keep_are_refused(number: int) -> None:
    """A release that stated 10**400 bytes made `inspect` end with a traceback."""
    check_plain({"bytes": 2**53 - 1}, "test", 8)
    with pytest.raises(PeerError, match="2\\^53"):
        check_plain({"bytes": number}, "test", 8)


def test_an_object_is_read_field_by_field() -> None:
    fields = Fields({"a": 1, "b": True}, "test")
    assert fields.integer("a", 0, 1) == 1
    with pytest.raises(PeerError, match="unknown field 'b'"):
        fields.close()
    with pytest.raises(PeerError, match="b: expected an integer from 0 to 1, found True"):
        fields.integer("b", 0, 1)
    with pytest.raises(PeerError, match="expected the field 'a', found none"):
        fields.integer("a", 0, 1)
    fields.close()


def test_one_value_has_one_encoding() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("inf"))
