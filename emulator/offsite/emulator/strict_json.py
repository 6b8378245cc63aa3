"""JSON from a peer, read strictly: what is not expected is an error, never ignored.

Notable: every reader states type and bound of each field and closes the object, so an unknown key
is found; duplicate keys, NaN, infinities (`1e999` too), invalid UTF-8, lone surrogates and
unbounded nesting are refused before anything looks at a value. Strings must be printable: they end
up on terminals and in logs.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from offsite.secure.errors import PeerError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | JsonObject | None"
JsonObject: TypeAlias = "Mapping[str, JsonValue]"

MAX_DEPTH = 8
MOST_INTEGER = (1 << 53) - 1
"""The largest integer that every reader of JSON keeps exact."""


def canonical_json(value: JsonValue) -> bytes:
    """The one encoding of a value: sorted keys, no white space, UTF-8."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def parse_json(data: bytes, what: str, max_bytes: int) -> JsonValue:
    """Parses `what`, at most `max_bytes` long.

    Raises:
        PeerError: it is too long, no JSON, or holds duplicate keys or numbers that are not finite.
    """
    if len(data) > max_bytes:
        raise PeerError(f"{what}: expected at most {max_bytes} bytes, found {len(data)}")
    try:
        value: JsonValue = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise PeerError(f"{what}: expected strict JSON, found {reason}") from error
    return value


def check_plain(value: JsonValue, what: str, max_chars: int, depth: int = MAX_DEPTH) -> None:
    """Refuses deeper nesting than `depth`, long or unprintable strings, and integers that no float holds."""
    if isinstance(value, str):
        check_text(value, what, max_chars)
    elif isinstance(value, int) and abs(value) > MOST_INTEGER:
        raise PeerError(f"{what}: expected integers up to 2^53 - 1, found a larger one")
    elif isinstance(value, Mapping | Sequence):
        if depth == 0:
            raise PeerError(f"{what}: expected at most {MAX_DEPTH} levels, found more")
        if isinstance(value, Mapping):
            for key in value:
                check_text(key, what, max_chars)
            value = list(value.values())
        for item in value:
            check_plain(item, what, max_chars, depth - 1)


def check_text(text: str, what: str, max_chars: int) -> None:
    """Refuses a string that is too long or would not print as itself."""
    if len(text) > max_chars or not text.isprintable():
        raise PeerError(
            f"{what}: expected at most {max_chars} printable characters, found {text[:64]!a}"
        )


class Fields:
    """Reads one JSON object field by field; `close` refuses what nobody asked for."""

    def __init__(self, value: JsonValue, what: str) -> None:
        if not isinstance(value, Mapping):
            raise PeerError(f"{what}: expected an object, found {_kind(value)}")
        self._left = dict(value)
        self._what = what

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def value(self, name: str) -> JsonValue:
        """The field as it is; the caller checks it."""
        if name not in self._left:
            raise PeerError(f"{self._what}: expected the field {name!r}, found none")
        return self._left.pop(name)

    def text(self, name: str, max_chars: int) -> str:
        """A printable string that is not empty."""
        found = self.value(name)
        if not isinstance(found, str) or not found:
            raise self._wrong(name, "a non-empty string", found)
        check_text(found, f"{self._what}: {name}", max_chars)
        return found

    def integer(self, name: str, low: int, high: int) -> int:
        """An integer of `[low, high]`; neither `true` nor `1.0`."""
        found = self.value(name)
        if not isinstance(found, int) or isinstance(found, bool) or not low <= found <= high:
            raise self._wrong(name, f"an integer from {low} to {high}", found)
        return found

    def number(self, name: str, low: float, high: float) -> float:
        """A number of `[low, high]`."""
        found = self.value(name)
        if (
            not isinstance(found, int | float)
            or isinstance(found, bool)
            or not low <= found <= high
        ):
            raise self._wrong(name, f"a number from {low} to {high}", found)
        return float(found)

    def sha256(self, name: str) -> bytes:
        """A SHA-256 digest in lower-case hexadecimal."""
        found = self.text(name, 64)
        if len(found) != 64 or set(found) - set("0123456789abcdef"):
            raise self._wrong(name, "64 lower-case hexadecimal digits", found)
        return bytes.fromhex(found)

    def items(self, name: str, max_items: int) -> Sequence[JsonValue]:
        """An array of at most `max_items`."""
        found = self.value(name)
        if not isinstance(found, list) or len(found) > max_items:
            raise self._wrong(name, f"an array of at most {max_items}", found)
        return found

    def object(self, name: str, max_items: int) -> JsonObject:
        """An object of at most `max_items` fields."""
        found = self.value(name)
        if not isinstance(found, Mapping) or len(found) > max_items:
            raise self._wrong(name, f"an object of at most {max_items}", found)
        return found

    def close(self) -> None:
        """Refuses the fields that were not read."""
        if self._left:
            raise PeerError(f"{self._what}: found the unknown field {min(self._left)[:64]!a}")

    def _wrong(self, name: str, expected: str, found: JsonValue) -> PeerError:
        return PeerError(f"{self._what}: {name}: expected {expected}, found {_show(found)}")


def _unique(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key that occurs twice")
    return found


def _refuse_constant(name: str) -> JsonValue:
    raise ValueError(f"the number {name}")


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text[:32]}")
    return number


def _kind(value: JsonValue) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return f"an array of {len(value)}"
    return {bool: "a truth value", str: "a string"}.get(type(value), "a number")


def _show(value: JsonValue) -> str:
    if value is None:
        return "null"
    if isinstance(value, Mapping | list):
        return _kind(value)
    return ascii(value)[:64]
