"""JSON with one encoding for one value: what the ledger hashes, signs and stores.

Writing is RFC 8785 (sorted keys, shortest numbers, no spaces). Reading accepts nothing but what
writing would give back, so two parties that read the same bytes read the same value, and nothing
can hide in a repeated key, a second form of a number or an unknown escape.

Numbers are IEEE doubles, as RFC 8785 has them: an integer beyond 2^53 - 1 is refused, and whole
floats come back as integers (`fields.py` turns them back by the field's type).
"""

import json
from typing import TypeAlias

import rfc8785

from offsite.secure.errors import IntegrityError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_UNREADABLE = (ValueError, TypeError, RecursionError, OverflowError)


def canonical(value: Json) -> bytes:
    """The one encoding of a value.

    Raises:
        IntegrityError: it has none: NaN, an infinity, an integer beyond 2^53 - 1, a lone surrogate.
    """
    try:
        return rfc8785.dumps(value)
    except _UNREADABLE as error:
        raise IntegrityError(f"expected a value that JSON can hold exactly: {error}") from None


def parsed(data: bytes, what: str) -> Json:
    """The value whose one encoding `data` is; `what` names it in errors.

    Raises:
        IntegrityError: no JSON, or JSON in another form.
    """
    try:
        value: Json = json.loads(data.decode("utf-8"))
        is_canonical = rfc8785.dumps(value) == data
    except _UNREADABLE as error:
        raise IntegrityError(f"expected {what} as canonical JSON, found none: {error}") from None
    if not is_canonical:
        raise IntegrityError(
            f"expected {what} as canonical JSON (RFC 8785), found another form of it: it was "
            "written or changed by something else"
        )
    return value
