"""Frozen dataclasses to JSON and back, by the types of their fields.

Every kind of entry is a frozen dataclass; this module is the only one that knows how a field looks
in JSON, so that no entry has a reader and a writer that can disagree.

    str, int, bool, StrEnum   themselves          Fraction       "numerator/denominator"
    float                     a number            bytes          lower-case hex
    tuple                     an array            dataclass      an object of all its fields
    None                      null                a mechanism    as `mechanisms.py` writes it

Reading is strict: unknown, missing and mistyped fields are refused. It may accept a second form of
a value (upper-case hex, 2/4); `entries.py` compares what was read with what would be written.
"""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from fractions import Fraction
from typing import TypeVar

from offsite.secure.errors import IntegrityError
from offsite.secure.privacy.ledger.canonical import Json
from offsite.secure.privacy.mechanisms import Mechanism, mechanism_from_json

T = TypeVar("T")

TEXT_CHARS = 200
DIGEST_BYTES = 32


def to_json(value: object) -> Json:
    """The JSON of a field's value, or of a whole dataclass."""
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, StrEnum) else value
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Mechanism):
        return dict(value.to_json())
    assert dataclasses.is_dataclass(value), type(value)
    return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}


def from_json(kind: type[T], document: Json) -> T:
    """The dataclass of type `kind` that `document` holds.

    Raises:
        IntegrityError: a field is missing, unknown, of another type, or out of its bounds.
    """
    found = _read(kind, document, kind.__name__)
    assert isinstance(found, kind)
    return found


def check_text(name: str, text: str) -> None:
    """Raises IntegrityError unless `text` is one printable line of 1 to 200 characters."""
    if not (0 < len(text) <= TEXT_CHARS and text.isprintable()):
        raise IntegrityError(
            f"{name}: expected 1 to {TEXT_CHARS} printable characters on one line, found "
            f"{text[:TEXT_CHARS]!r}"
        )


def check_digest(name: str, digest: bytes, size: int = DIGEST_BYTES) -> None:
    """Raises IntegrityError unless `digest` has `size` bytes."""
    if len(digest) != size:
        raise IntegrityError(f"{name}: expected {size} bytes, found {len(digest)}")


def check_count(name: str, count: int, least: int = 0) -> None:
    """Raises IntegrityError unless `count` is at least `least`."""
    if count < least:
        raise IntegrityError(f"{name}: expected at least {least}, found {count}")


def check_number(name: str, number: float, above: float, most: float = math.inf) -> None:
    """Raises IntegrityError unless `number` is finite, beyond `above` and at most `most`."""
    if not (math.isfinite(number) and above < number <= most):
        raise IntegrityError(
            f"{name}: expected a number above {above} and at most {most}, found {number}"
        )


@functools.cache
def _types(kind: type) -> Mapping[str, object]:
    return typing.get_type_hints(kind)


def _read(kind: object, document: Json, name: str) -> object:
    if kind == Mechanism:
        return mechanism_from_json(document)
    if isinstance(kind, types.UnionType):
        return _read_union(kind, document, name)
    if typing.get_origin(kind) is tuple:
        if not isinstance(document, list):
            raise _mistyped(name, "an array", document)
        item = typing.get_args(kind)[0]
        return tuple(_read(item, value, name) for value in document)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_object(kind, document, name)
    assert isinstance(kind, type), kind
    return _read_scalar(kind, document, name)


def _read_union(kind: types.UnionType, document: Json, name: str) -> object:
    """`X | None`. The only other union is that of the mechanisms, which has its own reader."""
    if document is None and types.NoneType in kind.__args__:
        return None
    (inner,) = (item for item in kind.__args__ if item is not types.NoneType)
    return _read(inner, document, name)


def _read_object(kind: type, document: Json, name: str) -> object:
    if not isinstance(document, dict):
        raise _mistyped(name, "an object", document)
    expected = _types(kind)
    if document.keys() != expected.keys():
        raise IntegrityError(
            f"{name}: expected the fields {sorted(expected)}, found {sorted(document)}"
        )
    fields = {key: _read(expected[key], document[key], f"{name}.{key}") for key in expected}
    made: object = kind(**fields)
    return made


def _read_scalar(kind: type, document: Json, name: str) -> object:
    if kind is float and isinstance(document, int | float) and not isinstance(document, bool):
        return float(document)
    if kind is int and isinstance(document, int) and not isinstance(document, bool):
        return document
    if kind is bool and isinstance(document, bool):
        return document
    if not isinstance(document, str) or kind in (float, int, bool):
        raise _mistyped(name, kind.__name__, document)
    try:
        return bytes.fromhex(document) if kind is bytes else kind(document)
    except (ValueError, ZeroDivisionError):
        raise _mistyped(name, kind.__name__, document) from None


def _mistyped(name: str, expected: str, found: Json) -> IntegrityError:
    return IntegrityError(f"{name}: expected {expected}, found {str(found)[:TEXT_CHARS]!r}")
