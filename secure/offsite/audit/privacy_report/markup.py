"""HTML that is built, never pasted together: what is not `Html` is escaped.

Rule: text that would not print as itself becomes a space, so nothing in a ledger or a file can
rearrange the page. Attribute names are ours; their values are escaped like text.
"""

import html
from typing import TypeAlias

from offsite.emulator.printable import printable


class Html(str):
    """Markup that is already safe."""

    __slots__ = ()


Content: TypeAlias = "Html | str | None"
_VOID = frozenset({"meta", "br", "hr"})


def escaped(value: str) -> Html:
    """Text as markup."""
    return value if isinstance(value, Html) else Html(html.escape(printable(value, keep="\n")))


def tag(name: str, /, *content: Content, **attributes: "str | float | None") -> Html:
    """An element; ``class_`` stands for `class`, `_` for `-`, and None leaves something out."""
    pairs = "".join(
        f' {_name(key)}="{escaped(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Html(f"<{name}{pairs}>")
    inside = "".join(escaped(part) for part in content if part is not None)
    return Html(f"<{name}{pairs}>{inside}</{name}>")


def joined(*parts: Content) -> Html:
    """Parts one after the other."""
    return Html("".join(escaped(part) for part in parts if part is not None))


def _name(key: str) -> str:
    return key.removesuffix("_").replace("_", "-")


def _value(value: "str | float") -> str:
    return value if isinstance(value, str) else f"{value:.5g}"
